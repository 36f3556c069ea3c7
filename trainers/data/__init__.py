"""Training data: one internal form, many layouts.

    file, folder, hub ─► sources (raw rows) ─► formats (what a row is) ─► read_preferences, read_conversations,
                                                                          read_prompts, read_ranked
    write ─► the layouts that others read;   template ─► token ids, by the model's own chat template

| format | columns | gives |
|---|---|---|
| ultrafeedback | instruction, completions (response, overall_score) | ranked, preferences, prompts |
| shp | history, human_ref_A, human_ref_B, labels, score_ratio | preferences, conversations, prompts |
| rlhflow | prompt or context_messages, responses, rewards | ranked, preferences, prompts |
| hh-rlhf | chosen, rejected: "\\n\\nHuman: …\\n\\nAssistant: …" | preferences, conversations, prompts |
| preference | prompt, chosen, rejected: text or turns; LLaMA-Factory's conversations, chosen, rejected | the same |
| implicit | chosen, rejected: whole conversations (UltraFeedback binarised), or texts that begin alike | the same |
| unpaired | prompt, completion, label; or messages, label | the same |
| alpaca | instruction, input, output, system, history | conversations, prompts |
| prompt-completion | prompt, completion or response | conversations, prompts |
| messages, sharegpt | messages (role, content); conversations (from, value), system | conversations, prompts |
| prompt | prompt, context_messages, instruction or question | prompts |

The margin of a pair is the column `margin`, else the difference of its scores (score_chosen, score_rejected and their
like), else 1.
"""

from __future__ import annotations

from rlhf_bench.trainers.data.formats import FORMATS, Format, Kind, Ranked
from rlhf_bench.trainers.data.read import (
    OnBadRow,
    Rows,
    read_conversations,
    read_preferences,
    read_prompts,
    read_ranked,
)
from rlhf_bench.trainers.data.template import check_template, check_text, encode_conversation, stops_of
from rlhf_bench.trainers.data.turns import BadRow
from rlhf_bench.trainers.data.write import write

__all__ = [
    "FORMATS",
    "BadRow",
    "Format",
    "Kind",
    "OnBadRow",
    "Ranked",
    "Rows",
    "check_template",
    "check_text",
    "encode_conversation",
    "read_conversations",
    "read_preferences",
    "read_prompts",
    "read_ranked",
    "stops_of",
    "write",
]
