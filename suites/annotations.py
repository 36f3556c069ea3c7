"""AlpacaEval's annotations as runs of the store: its `annotations.json`, and rows with lengths in place of answers.

Whoever has such files of two models can compare and gate them here, with no model, no judge and no key. An instruction
is a sample, what the baseline answered its reference, so that two models' rows pair where both agree. The score is the
preference for the model less 1, from 0 to 1; a missing one is ungraded. The judge is the file's annotator and the
baseline the benchmark's version, so that files judged by another or against another are refused by name; where a file
names none, its models compare only with each other.

Rows with lengths (columns index, len_1, len_2) are joined by their index to AlpacaEval's instructions and baseline,
where these are on this machine: then they pair with the rows of full files and have a length-controlled win rate.

Data: as in judged.alpaca_eval. Differs: a model's row without an answer (null) is ungraded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_bench.harness.codec import digest, sample_digest
from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import (
    Benchmark,
    Completion,
    Estimate,
    EvalProtocol,
    Message,
    Record,
    Report,
    Request,
    Sample,
    Score,
)
from rlhf_bench.suites import alpaca_eval, data
from rlhf_bench.suites.imported import Made, keep, recorded, sha256_of
from rlhf_bench.suites.judged.alpaca_eval import BASELINES, GAMED, RECOVERED, Annotation, read_annotations

NAME, METRIC, PROTOCOL = "alpaca_eval", "win_rate", "alpaca_eval-file"
NO_TEXT = "the file has the answer's length and not its text"


def read(path: Path, store: Store, *, model: str | None = None, name: str | None = None) -> Report:
    """Keep the annotations of one model in `path` as a finished run.

    `model` picks one of a file of several; `name` is what it is called here. The same rows are the same run, and other
    rows of the same model another state of it. Raises UserError, one line with file and row, for what is malformed,
    UnknownName for a model that is not there.
    """
    found = _of_one_model(path, read_annotations([path]), model)
    sha256 = sha256_of(path)
    judge = _agreed(path, "judges", [each.judge for each in found], sha256)
    baseline = _agreed(path, "baselines", [each.baseline for each in found], sha256)
    records = [_record(each, baseline) for each in found]
    who = [NAME, _unicode(found[0], found[0].model), _unicode(found[0], judge), _unicode(found[0], baseline)]
    said = {r.digest: [r.completions[0].text, r.score.value, dict(r.score.also)] for r in records}
    identity = digest([who, said])
    called = name or found[0].model
    made = Made(
        model=called,
        checkpoint=identity,
        identity=identity,
        protocol=EvalProtocol(PROTOCOL),
        judge=judge,
        engine={"engine": NAME, "model": called},
        source={"file": path.name, "sha256": sha256},
    )
    return keep(made, [_benchmark(baseline, records)], records, store)


def _of_one_model(path: Path, found: Sequence[Annotation], model: str | None) -> list[Annotation]:
    models = list(dict.fromkeys(each.model for each in found))
    if model is None and len(models) > 1:
        shown = ", ".join(models[:6]) + ", …" * (len(models) > 6)
        raise UserError(f"{path} holds {len(models)} models ({shown}): name one, as in {path.name}:{models[0]}")
    if model is not None and model not in models:
        raise UnknownName(f"model in {path}", model, models)
    return [each for each in found if each.model == (model or models[0])]


def _agreed(path: Path, what: str, names: Sequence[str], sha256: str) -> str:
    """The one judge or baseline of the rows; what a file does not name is like no other file's."""
    found = sorted(set(names))
    if len(found) > 1:
        shown = ", ".join(each or "none" for each in found[:6])
        raise UserError(f"{path} mixes {len(found)} {what} ({shown}): keep the rows of one")
    return found[0] or f"not named in file {sha256[:12]}"


def _record(each: Annotation, baseline: str) -> Record:
    name = f"{NAME}/{each.place}"
    instruction, dataset, theirs = _asked(each)
    row: dict[str, Any] = {"instruction": instruction, "dataset": dataset, "generator": baseline}
    asked = Request(name, (Message("user", instruction),))
    sample = Sample(name, (asked,), theirs, {"stratum": dataset} if dataset else {}, row)
    nulls = [
        f"output_{side} is null" for side, chars in ((1, each.baseline_chars), (2, each.model_chars)) if chars != chars
    ]
    why = "" if each.preference is not None else "no preference in the file"
    why = nulls[0] if nulls else why
    also = {} if nulls else {"length_chars": each.model_chars}
    return Record(
        NAME,
        sample_digest(sample),
        sample,
        (_completion(name, each),),
        Score(name, None if why else each.preference, why, also),
    )


def _asked(each: Annotation) -> tuple[str, str, str]:
    """A row's instruction, its dataset and the baseline's answer; those of a row of lengths are found by its index."""
    dataset = _text(each, "dataset")
    if "output_1" in each.row.fields:
        return _unicode(each, str(each.instruction)), dataset, _text(each, "output_1")
    official = _official(each.instruction) if isinstance(each.instruction, int) and each.baseline in BASELINES else {}
    if not official or len(official["output"]) != each.baseline_chars:
        return f"instruction {each.instruction}", dataset, ""
    return official["instruction"], dataset or official["dataset"], official["output"]


def _official(index: int) -> Mapping[str, Any]:
    """AlpacaEval's own row of this index with the baseline's answer; empty where it is not on this machine."""
    here = data.rows("alpaca_eval/baseline") if data.find("alpaca_eval/baseline") else ()
    return here[index] if index < len(here) else {}


def _completion(name: str, each: Annotation) -> Completion:
    if each.row.fields.get("output_2") is not None:
        return Completion(name, 0, _text(each, "output_2"), "stop", 0)
    return Completion(name, 0, "", "error", 0, why="output_2 is null" if "output_2" in each.row.fields else NO_TEXT)


def _text(each: Annotation, field: str) -> str:
    """A text that may be missing or null."""
    value = each.row.fields.get(field)
    if value is not None and not isinstance(value, str):
        raise each.row.wrong(field, "should be text")
    return _unicode(each, value or "")


def _unicode(each: Annotation, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as "\\ud800" in JSON
        raise UserError(f"{each.row.path}, row {each.row.number}: text that is no Unicode") from None
    return text


def _benchmark(baseline: str, records: Sequence[Record]) -> Benchmark:
    facts = {"version": f"against {baseline}", "metric": METRIC, "kind": "continuous", "samples": len(records)}
    return replace(recorded(NAME, facts), judged=True, summarise=partial(_summarise, baseline))


def _summarise(baseline: str, records: Sequence[Record]) -> list[Estimate]:
    """The discrete and the length-controlled win rate; in place of the latter the reason where there can be none."""
    none = Estimate(NAME, "lc_win_rate", None, None, None, None, 0, len(records))
    if baseline not in BASELINES:
        return [replace(none, why=f"lc_win_rate is defined against {BASELINES[0]}, and the baseline is {baseline}")]
    if not data.find("alpaca_eval/baseline") or not (data.find(GAMED) or data.find(RECOVERED)):
        why = "no data for lc_win_rate: `rlhf-bench suites fetch alpaca_eval alpaca_eval_lc` gets them"
        return [replace(none, why=why)]
    try:
        return alpaca_eval.summarise(records)
    except LookupError as error:
        return [replace(none, why=f"no lc_win_rate: {error.args[0]}")]
