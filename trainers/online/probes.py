"""Probes: the same few prompts, answered greedily by the initial policy and by every candidate, to read side by side.

    work/probes/NAME-KEY.jsonl    {sample_id, prompt, response, finish_reason, tokens, reward}, a line a prompt
    work/probes.html              all of them, a column a model

KEY is the digest of prompts, weights, engine and reward, so that the same answers are not made twice. Numbers say that
a policy changed, and often not how; ten answers do. They are read by people, and gate nothing.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_bench.harness.codec import digest, plain
from rlhf_bench.harness.engines import Engine
from rlhf_bench.harness.engines.stored import stored_or_asked
from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.files import write
from rlhf_bench.harness.progress import Track, silent
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Completion, Conversation, Message, Request, Sample, Sampling
from rlhf_bench.trainers.data import read_prompts
from rlhf_bench.trainers.preferences import conversation

if TYPE_CHECKING:
    from rlhf_bench.trainers.online.scoring import Scoring

PACKAGED = "packaged"
MAX_TOKENS = 256
MOST = 200
"""More prompts than these nobody reads side by side, and each model answers them all."""
ROW = {"sample_id": str, "prompt": list, "response": str, "finish_reason": str, "tokens": int}
TURN = ("role", "content")
_FILE = re.compile(r"[^A-Za-z0-9._-]+|^\.+")


@dataclass(frozen=True, slots=True)
class Scorer:
    """What gives an answer a reward. `identity` is a digest of weights and protocol; `rewards` may load them."""

    identity: str
    rewards: Callable[[Sequence[tuple[Conversation, str]]], Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Probed:
    """The answers of one model, by what people call it; `rows` are those of its file."""

    name: str
    rows: Sequence[Mapping[str, Any]]


def scorer_of(scoring: Scoring) -> Scorer | None:
    """The reward model of training, loaded when an answer is new; None of a judge that only compares."""
    rates = scoring.rates
    return None if rates is None else Scorer(scoring.identity, lambda items: rates().rewards(items))


def read_probes(source: str = PACKAGED, max_tokens: int = MAX_TOKENS) -> list[Sample]:
    """The packaged prompts, or those of a file in any layout that `train` reads; each to be answered greedily.

    No answer gets more tokens than `max_tokens`, the loop's own limit, or than MAX_TOKENS.

    Raises UserError for a file without prompts, or with more than anyone reads.
    """
    if source == PACKAGED:
        text = files(__package__).joinpath("probes.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        return [_sample(row["id"], (Message("user", row["prompt"]),), max_tokens) for row in rows]
    given = read_prompts(source)
    if len(given) > MOST:
        raise UserError(f"{source} has {len(given)} probe prompts, to be read side by side: give at most {MOST}")
    return [_sample(str(number), conversation(each), max_tokens) for number, each in enumerate(given, start=1)]


def _sample(name: str, prompt: Conversation, max_tokens: int) -> Sample:
    return Sample(name, (Request(name, prompt, Sampling(max_tokens=min(max_tokens, MAX_TOKENS))),), "")


def probe(
    name: str,
    probes: Sequence[Sample],
    engine: Engine,
    folder: Path,
    store: Store,
    *,
    scorer: Scorer | None = None,
    track: Track = silent,
) -> Probed:
    """The answers of `engine` to the probes, written to `folder`; read from there if these very ones are there.

    A prompt that the engine cannot answer (one too long for it) has finish_reason "error"; a file is only written where
    all are answered. Without a `scorer`, or where it cannot read an answer, the reward is None.
    """
    requests = [each.requests[0] for each in probes]
    by = None if scorer is None else scorer.identity
    key = digest([[plain(request) for request in requests], engine.checkpoint, engine.identity, by])
    path = folder / f"{_FILE.sub('-', name)[-40:]}-{key[:12]}.jsonl"
    if path.exists():
        return Probed(name, _read(path, probes))
    said: dict[Request, Completion] = {}
    with track(f"probes: {name}", len(requests)) as advance:
        for request, completion in stored_or_asked(requests, engine, store):
            said[request] = completion
            advance(1)
    rows = _rows(probes, [said[request] for request in requests], scorer)
    if all(row["finish_reason"] != "error" for row in rows):
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return Probed(name, rows)


def _rows(probes: Sequence[Sample], said: Sequence[Completion], scorer: Scorer | None) -> list[dict[str, Any]]:
    prompts = [conversation(each) for each in probes]
    items = [(prompt, each.text) for prompt, each in zip(prompts, said, strict=True)]
    whole = [place for place, each in enumerate(said) if each.finish_reason != "error"]
    rewards = scorer.rewards([items[place] for place in whole]) if scorer is not None and whole else [None] * len(whole)
    rated = dict(zip(whole, rewards, strict=True))
    return [
        {
            "sample_id": each.sample_id,
            "prompt": [plain(turn) for turn in prompt],
            "response": each.text if each.finish_reason != "error" else each.why,
            "finish_reason": each.finish_reason,
            "tokens": each.tokens,
            "reward": rated.get(place),
        }
        for place, (prompt, each) in enumerate(zip(prompts, said, strict=True))
    ]


def _read(path: Path, probes: Sequence[Sample]) -> list[dict[str, Any]]:
    """The rows of a file that `probe` wrote for these probes. Raises Fault for any other one."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        good = [row["sample_id"] for row in rows] == [each.id for each in probes]
        good = good and all(isinstance(row[name], kind) for row in rows for name, kind in ROW.items())
        good = good and all(isinstance(turn[key], str) for row in rows for turn in row["prompt"] for key in TURN)
        good = good and all(isinstance(row["reward"], int | float | None) for row in rows)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        good = False
    if not good:
        raise Fault(f"{path} is not what was written there: remove it, and its probes are answered again")
    return rows


STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff }
table { border-collapse: collapse }
th, td { border: 1px solid #ccc; padding: .5rem .7rem; vertical-align: top; text-align: left; min-width: 16rem }
thead th { position: sticky; top: 0; background: #eee }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; max-width: 34rem }
.about { color: #666; font-size: 12px; margin-bottom: .3rem }
.same { color: #888 }
"""
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, direction overrides and halves of surrogate pairs: what a page must not be given."""


def page(title: str, probed: Sequence[Probed]) -> str:
    """A static page with a row a prompt and a column a model: no script, nothing from elsewhere, all text escaped."""
    heads = "".join(f"<th>{_escaped(each.name)}</th>" for each in probed)
    answers = [{asked(row): row for row in each.rows} for each in probed]
    body = []
    for key in dict.fromkeys(key for each in answers for key in each):
        rows = [each.get(key) for each in answers]
        cells = "".join(_cell(row, rows[place - 1] if place else None) for place, row in enumerate(rows))
        body.append(f"<tr><th scope=row>{_prompt(key)}</th>{cells}</tr>")
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{_escaped(title)}</title><style>{STYLE}</style></head><body><h1>{_escaped(title)}</h1>\n"
        f"<table><thead><tr><th>prompt</th>{heads}</tr></thead><tbody>\n" + "\n".join(body) + "\n</tbody></table>"
        "<p>Greedy answers. “as before” marks one that is the same as in the column to its left.</p></body></html>\n"
    )


def write_page(work: Path, title: str, probed: Sequence[Probed]) -> Path:
    """The page in `work`/probes.html. Raises Fault."""
    path = work / "probes.html"
    write(path, page(title, probed))
    return path


def asked(row: Mapping[str, Any]) -> str:
    """What tells a prompt apart: its name and its turns. A file of another set of probes may share names."""
    return json.dumps([row["sample_id"], [[turn[key] for key in TURN] for turn in row["prompt"]]])


def _prompt(key: str) -> str:
    name, turns = json.loads(key)
    plain_text = len(turns) == 1 and turns[0][0] == "user"
    parts = [content if plain_text else f"{role}: {content}" for role, content in turns]
    texts = "".join(f"<div class=text dir=auto>{_escaped(part)}</div>" for part in parts)
    return f"<div class=about>{_escaped(name)}</div>{texts}"


def _cell(row: Mapping[str, Any] | None, before: Mapping[str, Any] | None) -> str:
    if row is None:
        return "<td class=same>not asked</td>"
    same = before is not None and row["response"] == before["response"]
    text = "" if same else f"<div class=text dir=auto>{_escaped(row['response'])}</div>"
    return f"<td{' class=same' if same else ''}><div class=about>{_escaped(about(row, same=same))}</div>{text}</td>"


def about(row: Mapping[str, Any], *, same: bool = False) -> str:
    """`reward 1.23, 86 tokens, cut` of an answer, and whether it is the `same` as before."""
    ended = {"length": "cut", "error": "failed"}.get(row["finish_reason"], "")
    reward = "" if row["reward"] is None else f"reward {row['reward']:.2f}"
    return ", ".join(part for part in (reward, f"{row['tokens']} tokens", ended, "as before" if same else "") if part)


def _escaped(text: str) -> str:
    return html.escape(_HIDDEN.sub("\ufffd", text))
