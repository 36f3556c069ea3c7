"""From conversations and pairs to rows of token ids. What fits is kept, what does not is counted, nothing is cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.judges.preference import answer_tokens, encode_pair
from rlhf_bench.harness.judges.reward import encode
from rlhf_bench.harness.types import Checkpoint, Conversation, Preference
from rlhf_bench.trainers.data import BadRow
from rlhf_bench.trainers.data.template import encode_conversation
from rlhf_bench.trainers.packing import pack
from rlhf_bench.trainers.questions import questions
from rlhf_bench.trainers.recipes import Training
from rlhf_bench.trainers.starts import config_of

IGNORED = -100
Row = dict[str, Any]
Facts = dict[str, int]


def room(recipe: Training, start: Checkpoint) -> int:
    """How many tokens a row may have: the recipe's limit, or the model's context where that is shorter."""
    config = config_of(Path(start.path))
    return min(recipe.max_length, config.get("max_position_embeddings") or recipe.max_length)


def pair_rows(preferences: Sequence[Preference], tokenizer: Any, limit: int) -> tuple[list[Row], Facts]:
    """Rows {prompt, chosen, rejected: token ids; margin} of the pairs that fit, and how many did and did not."""
    rows = []
    for pair in preferences:
        prompt, chosen = encode(tokenizer, pair.prompt, pair.chosen)
        _, rejected = encode(tokenizer, pair.prompt, pair.rejected)
        if len(prompt) + max(len(chosen), len(rejected)) <= limit:
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": pair.margin})
    return rows, _facts("pairs", len(rows), len(preferences), limit)


def conversation_rows(
    conversations: Sequence[Conversation], tokenizer: Any, limit: int, packing: bool
) -> tuple[list[Row], Facts]:
    """Rows {input_ids, labels} of the conversations that fit, labels IGNORED but for the assistant's tokens.

    With `packing` several make one row, and `seq_lengths` says where each ends.
    """
    rows = []
    for number, conversation in enumerate(conversations):
        try:
            ids, assistant = encode_conversation(tokenizer, conversation)
        except BadRow as fault:
            raise UserError(f"conversation {number}: {fault}") from None
        if len(ids) <= limit:
            labels = [token if own else IGNORED for token, own in zip(ids, assistant, strict=True)]
            rows.append({"input_ids": ids, "labels": [IGNORED, *labels[1:]]})  # nothing stands before the first
    facts = _facts("conversations", len(rows), len(conversations), limit)
    if not packing:
        return rows, facts
    packed = [_joined([rows[index] for index in group]) for group in pack([len(r["input_ids"]) for r in rows], limit)]
    return packed, {**facts, "rows": len(packed)}


def question_rows(
    preferences: Sequence[Preference], tokenizer: Any, limit: int, packing: bool, seed: int
) -> tuple[list[Row], Facts, tuple[int, int]]:
    """Rows {input_ids, seq_lengths, right} of pairs as questions, and the tokens of the answers A and B.

    A row holds one question, or several with `packing`; `right` has 0 (A) or 1 (B) for each.
    """
    letters = answer_tokens(tokenizer)
    rows = []
    for question in questions(preferences, seed):
        ids = encode_pair(tokenizer, question.prompt, question.a, question.b)
        if len(ids) < limit:  # and the letter
            rows.append({"input_ids": ids, "seq_lengths": [len(ids)], "right": [int(not question.a_is_better)]})
    facts = _facts("pairs", len(rows), len(preferences), limit)
    if not packing:
        return rows, facts, letters
    packed = [_joined([rows[index] for index in group]) for group in pack([len(r["input_ids"]) for r in rows], limit)]
    return packed, {**facts, "rows": len(packed)}, letters


def _joined(rows: Sequence[Row]) -> Row:
    lengths = [len(row["input_ids"]) for row in rows]
    return {**{key: [each for row in rows for each in row[key]] for key in rows[0]}, "seq_lengths": lengths}


def _facts(what: str, kept: int, given: int, limit: int) -> Facts:
    if not kept:
        raise UserError(f"all {given} {what} are longer than {limit} tokens: raise max_length or shorten them")
    return {what: kept, "over_length": given - kept}
