"""Result files on the command line: what a path stands for, and a policy from a few options.

    FILE ─► what its first line looks like ─► lm_eval_files.read | annotations.read ─► a run of the given store

So two files of another harness can be gated with nothing kept of them: the store is a temporary one.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.files import user_path

if TYPE_CHECKING:
    from pydantic import BaseModel

    from rlhf_bench.harness.policy import Policy
    from rlhf_bench.harness.store import Store
    from rlhf_bench.harness.types import Report

Kind: TypeAlias = Literal["lm-eval", "annotations"]
PEEK_BYTES = 1 << 24
ACCEPTED = (
    "lm-eval's output folder, its results_*.json or a samples_*.jsonl (--log_samples), or AlpacaEval's annotations "
    "(.json, .jsonl or .csv, gzipped or not; FILE:MODEL picks one of several models)"
)
_SUFFIX = re.compile(r"\.(json|jsonl|csv)(\.gz)?$")
_RESULTS = ("results_*.json", "*/results_*.json")
C = TypeVar("C", bound="BaseModel")


def is_file(text: str) -> bool:
    """Whether a name on the command line means result files and not a run of the store.

    A name with a slash, or with the ending of such a file, is always a path, there or not; another one only where it is
    a folder that holds lm-eval's results. "champion" and "latest" are runs, whatever lies in the working folder.
    """
    path, _ = _parted(text)
    if "/" in text or _SUFFIX.search(path.name):
        return True
    if text == "champion" or text.startswith("latest") or not os.path.isdir(path):
        return False
    return any(next(path.glob(pattern), None) for pattern in _RESULTS)


def load(text: str, store: Store) -> str:
    """The id of the run that these files hold, read into `store` to be gated.

    Two files of one model are two states of it. Raises UserError for anything but `ACCEPTED`.
    """
    return read(text, store, apart=True).run_id


def read(text: str, store: Store, name: str | None = None, *, apart: bool = False) -> Report:
    """Keep what FILE or FILE:MODEL holds as a finished run; `name` and `apart` as in lm_eval_files.read."""
    from rlhf_bench.suites import lm_eval_files
    from rlhf_bench.suites.annotations import read as read_annotations

    path, model = _parted(text)
    try:
        str(path).encode()
    except UnicodeEncodeError:  # os.fsdecode's way to keep bytes that are none
        raise UserError(f"{path} has a name that is no Unicode: rename it") from None
    if _kind(path) == "annotations":
        return read_annotations(path, store, model=model, name=name)
    if model is not None:
        raise UserError(f"{path} is of lm-eval and holds one model: ':{model}' picks one of AlpacaEval's annotations")
    return lm_eval_files.read(path, store, name, apart=apart)


def inline_policy(
    targets: Sequence[str],
    guards: Sequence[str],
    alpha: float,
    benchmarks: Mapping[str, Mapping[str, Any]],
    higher: Mapping[str, Mapping[str, bool]] = {},
) -> Policy:
    """The policy of `--target BENCHMARK[:METRIC][=MIN_EFFECT]` and `--guard BENCHMARK[:METRIC]=MARGIN`.

    `benchmarks` are the candidate's (RunData.benchmarks): a metric that is not named is the benchmark's own. `higher`
    says which metrics are better when higher, where files do (claims.HIGHER); others are. A decision has `alpha` to
    itself, as with no store there is no ledger. Raises UserError, one line with the option.
    """
    from rlhf_bench.harness.policy import Guard, Policy, Target

    if not targets or not guards:
        what, form = ("guard", "BENCHMARK=MARGIN") if targets else ("target", "BENCHMARK")
        raise UserError(f"no --{what}: a gate needs a target and a guard; add --{what} {form}, or name a --policy")
    improve = [_rule(Target, f"--target {each}", each, "min_effect", benchmarks, higher) for each in targets]
    keep = [_rule(Guard, f"--guard {each}", each, "margin", benchmarks, higher) for each in guards]
    given = {"name": "inline", "alpha": alpha, "ledger": "none", "targets": improve, "guards": keep}
    return _checked(Policy, "these --target and --guard" if 0 < alpha <= 0.25 else f"--alpha {alpha:g}", given)


def _rule(
    cls: type[C],
    option: str,
    text: str,
    key: str,
    benchmarks: Mapping[str, Mapping[str, Any]],
    higher: Mapping[str, Mapping[str, bool]],
) -> C:
    """The target or guard of an option's text; `key` is what its number is."""
    rest, equals, number = text.rpartition("=") if "=" in text else (text, "", "")
    name, _, metric = (rest, "", "") if rest in benchmarks else rest.partition(":")
    if name not in benchmarks:
        raise UnknownName("benchmark in the candidate's run", name, benchmarks, f"{option} asks for it.")
    if not equals and key == "margin":
        raise UserError(f"{option}: no margin: --guard {rest}=0.02 lets it lose less than two points")
    given: dict[str, Any] = {"benchmark": name, "metric": metric or benchmarks[name]["metric"]}
    if not higher.get(name, {}).get(given["metric"], True):
        given["direction"] = "lower"
    return _checked(cls, option, given | ({key: _fraction(option, number)} if equals else {}))


def _fraction(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        percent = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*%\s*", text)
        hint = f"; did you mean {float(percent[1]) / 100:g}?" if percent else ""
        raise UserError(f"{option}: '{text}' is no fraction of the score, as 0.02 is for two points{hint}") from None


def _checked(cls: type[C], source: str, given: Mapping[str, Any]) -> C:
    """What `given` makes, or the first thing that is wrong with it as one line."""
    from pydantic import ValidationError

    try:
        return cls.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
        raise UserError(f"{source}: {f'{key}: ' if key else ''}{said}") from None


def _parted(text: str) -> tuple[Path, str | None]:
    """FILE and MODEL of FILE:MODEL. What stands before a colon is the file if it exists, or else has its ending."""
    places = [place for place, sign in enumerate(text) if sign == ":"]
    if places and not os.path.exists(text):
        for place in places:
            path = Path(text[:place])
            if text[place + 1 :] and (os.path.isfile(path) or _SUFFIX.search(path.name)):
                return user_path(path), text[place + 1 :]
    return user_path(text), None


def _kind(path: Path) -> Kind:
    """Whose files these are, by the first line. Raises UserError where they are nobody's."""
    if os.path.isdir(path):
        return "lm-eval"
    if not os.path.exists(path):
        raise UserError(f"there is no {path}: give {ACCEPTED}")
    if not os.path.isfile(path):
        raise UserError(f"{path} is a pipe or a device, which can be read only once: write it to a file first")
    if re.search(r"\.csv(\.gz)?$", path.name):
        return "annotations"
    start, zipped = _start(path)
    if not start:
        raise UserError(f"{path} is empty, and no result file: give {ACCEPTED}")
    if start.startswith("["):
        return "annotations"
    first, name = _object(start), path.name.removesuffix(".gz")
    ours = {"preference", "generator_2"} & first.keys()
    says = {"doc_id", "resps"} <= first.keys() or "results" in first or re.match(r'\{\s*"results"\s*:', start)
    if says or (not ours and re.match(r"samples_.*\.jsonl$|results_.*\.json$", name)):
        if zipped:
            raise UserError(f"{path} is compressed: lm-eval's files are read as it wrote them, so unpack it first")
        return "lm-eval"
    if ours:
        return "annotations"
    raise UserError(f"{path} is no result file that is known here: give {ACCEPTED}")


def _start(path: Path) -> tuple[str, bool]:
    """The beginning of a file, unzipped, and whether it was zipped; what does not decode is left out."""
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            content = (gzip.GzipFile(fileobj=plain) if zipped else plain).read(PEEK_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return content.decode(errors="ignore").lstrip("\ufeff \t\r\n"), zipped


def _object(start: str) -> dict[str, Any]:
    """The object that the text begins with, on one line or several; empty where there is none."""
    try:
        found, _ = json.JSONDecoder().raw_decode(start)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
