"""Names on the command line to what they mean: the store, runs, models, suites, prompts, files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.files import user_path

if TYPE_CHECKING:
    from rlhf_bench.harness.store import Run, Store
    from rlhf_bench.harness.types import Checkpoint, Sample, Suite

DEMO = "demo"
DEMO_JUDGE = "demo-reward"
DEFAULT_MODEL = "smollm2-135m-instruct"


def open_store() -> Store:
    """The store that RLHF_BENCH_STORE or RLHF_BENCH_HOME names."""
    from rlhf_bench.harness.store import Store, default_store_url

    return Store(default_store_url())


def default_model(store: Store) -> str:
    """The champion, or the model that is built in while there is none."""
    return DEFAULT_MODEL if store.champion() is None else "champion"


def lasting(spec: str) -> str:
    """The name of a model or judge, with the file in it named so that it is found from any folder."""
    kind, colon, file = spec.partition(":")
    return f"{kind}:{user_path(file).absolute()}" if kind in ("outputs", "replay") and colon else spec


def suite(names: str, include_path: Sequence[str] = ()) -> Suite:
    """The suites, benchmarks and lm-eval tasks of a comma-separated list. Raises UserError."""
    from rlhf_bench import suites

    folders = [Path(folder) for folder in include_path]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--include-path {folder} is no folder: give one that holds lm-eval task files (YAML)")
    return suites.suite(names, folders)


def data_names(names: Iterable[str]) -> list[str]:
    """The pinned files of these suites, benchmarks or files; of all suites where none is named."""
    from rlhf_bench import suites
    from rlhf_bench.suites.pins import PINS

    wanted = list(names) or list(suites.SUITES)
    found = ([name] if name in PINS else [n for each in suite(name).benchmarks for n in each.needs] for name in wanted)
    return list(dict.fromkeys(need for needs in found for need in needs))


def prompts(name: str, beside: Path | None = None) -> Sequence[Sample]:
    """The packaged training prompts ("demo"), or those of a JSON file, sought beside the file `beside` first."""
    if name == DEMO:
        from rlhf_bench.suites.demo import training_prompts

        return training_prompts()
    from rlhf_bench.trainers.data import read_prompts

    return read_prompts(sought(name, beside))


def sought(name: str, beside: Path | None) -> Path:
    near = beside.parent / name if beside else None
    return near if near is not None and near.exists() else Path(name)


def find_run(store: Store, text: str, like: Run | None = None, *, whole: bool = False) -> Run:
    """The last finished run of a model ("champion", an alias), or else the run with this id or prefix, or "latest".

    Of a model's runs one that was made as `like` was is preferred; with `like`, or with `whole`, one that was not
    stopped early before all others, since nothing is held against a part. A name comes first: an alias such as "c2" may
    also be how some run's id begins.
    """
    champion = store.champion()
    if text == "champion" and champion is None and "champion" not in store.aliases():
        raise UserError("there is no champion yet: `rlhf-bench promote --first MODEL` or `rlhf-bench iterate` sets one")
    digest = champion.checkpoint if text == "champion" and champion else store.aliases().get(text)
    return store.run(text) if digest is None else last_run(store, digest, text, like, whole)


def last_run(store: Store, digest: str, name: str, like: Run | None = None, whole: bool = False) -> Run:
    """The last finished run of this checkpoint, as find_run prefers them. Raises UserError for none."""
    found = [each for each in store.runs() if each.checkpoint == digest and each.status == "complete"]
    if not found:
        suite_option = f" --suite {like.suite}" if like else ""
        raise UserError(f"'{name}' has no finished run: `rlhf-bench run --model {name}{suite_option}` makes one")
    if whole or like is not None:
        found.sort(key=_was_stopped)
    return next((each for each in found if like and _conditions(each) == _conditions(like)), found[0])


def _was_stopped(run: Run) -> bool:
    from rlhf_bench.harness.claims import STOPPED

    return STOPPED in run.manifest


def _conditions(run: Run) -> list[object]:
    names = ("protocol_digest", "judge_identity", "benchmarks")
    engine = run.manifest.get("engine", {})
    return [*(run.manifest.get(name) for name in names), engine.get("engine"), engine.get("dtype")]


def find_checkpoint(store: Store, name: str) -> Checkpoint:
    """A registered checkpoint: "champion", an alias, the beginning of a digest, or its folder. Raises UnknownName."""
    champion = store.champion()
    if name == "champion" and champion is not None:
        name = champion.checkpoint
    found = store.alias(name) or store.checkpoint(name)
    if found is None:
        folder = str(Path(name).resolve())
        found = next((each for each, _ in reversed(store.checkpoints()) if each.path == folder), None)
    if found is None:
        raise UnknownName("registered model", name, store.aliases(), "`rlhf-bench models` lists them.")
    return found


def name_of(checkpoint: Checkpoint, store: Store) -> str:
    """What a checkpoint is called here: its first alias, else its folder; `resolve` finds it by either."""
    return next(
        (name for name, known in sorted(store.aliases().items()) if known == checkpoint.digest), checkpoint.path
    )


def checked_alias(name: str | None) -> str | None:
    """The name, if a model may be called so. Raises UserError where it means something else already."""
    from rlhf_bench.harness.weights import BUILTIN

    taken = {"champion", "latest", DEMO_JUDGE, *BUILTIN}
    if name is not None and (not name or any(sign in name for sign in ":/\\~ ") or name in taken):
        raise UserError(f"'{name}' cannot be an alias: no colon, slash, tilde or space, and no built-in name")
    return name


def lineage(store: Store, checkpoint: Checkpoint) -> list[Checkpoint]:
    """The checkpoint and its parents, back to the first one that is registered."""
    chain = [checkpoint]
    while (parent := chain[-1].parent) and parent not in {each.digest for each in chain}:
        found = store.checkpoint(parent)
        if found is None:
            break
        chain.append(found)
    return chain
