"""`rlhf-bench models`: the checkpoints of this store, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlhf_bench.cli import lookup, options, show, tables
from rlhf_bench.harness.errors import UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.store import Champion, How
    from rlhf_bench.harness.types import Checkpoint

app = typer.Typer(help="List, fetch, register, verify, show, export and push checkpoints.")
ModelName = Annotated[
    str, typer.Argument(help="Alias, beginning of a digest, champion, or a registered model's folder.")
]


@app.callback(invoke_without_command=True)
def _models(context: typer.Context, json: options.Json = False) -> None:
    if context.invoked_subcommand is None:
        listing(json)


@app.command("list")
def listing(json: options.Json = False) -> None:
    """The registered checkpoints, and the models that are built in.

    The candidate of a loop's iteration is called LOOP-ITERATION, that of a retry LOOP-ITERATION-retry-NUMBER.
    """
    from rlhf_bench.harness.weights import BUILTIN

    with lookup.open_store() as store:
        known, champion = store.checkpoints(), store.champion()
    leader = champion.checkpoint if champion else None
    if json:
        show.as_json([_described(each, names, leader) for each, names in known])
        return
    rows = [
        (called(names, _how(each, champion)), tables.short(each.digest), tables.short(each.parent), made_by(each))
        for each, names in known
    ]
    show.table("models", ("model", "digest", "parent", "made by"), rows)
    for name in sorted(set(BUILTIN) - {alias for _, names in known for alias in names}):
        show.say(f"built in, not fetched yet: {name} (`rlhf-bench models fetch {name}`)")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A built-in model, or hf:org/name[@revision].")] = lookup.DEFAULT_MODEL,
    json: options.Json = False,
) -> None:
    """Get a model's weights, verify and register them."""
    from rlhf_bench.harness.models import resolve

    with lookup.open_store() as store:
        found = resolve(name, store, show.bars())
    show.as_json(found) if json else show.say(f"{name} {tables.short(found.digest)} in {found.path}")


@app.command()
def register(
    path: Annotated[Path, typer.Argument(help="A folder of safetensors weights, configuration and tokenizer.")],
    alias: Annotated[str, typer.Option(callback=lookup.checked_alias, help="The name it is to have.")],
    json: options.Json = False,
) -> None:
    """Know a checkpoint by the digest of its files and by a name."""
    from rlhf_bench.harness.checkpoint import checkpoint_digest
    from rlhf_bench.harness.types import Checkpoint

    found = Checkpoint(str(path.resolve()), checkpoint_digest(path))
    with lookup.open_store() as store:
        store.register(found, alias=alias)
    show.as_json(found) if json else show.say(f"{alias} {tables.short(found.digest)} in {found.path}")


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Models; all registered ones when absent.")] = None,
    json: options.Json = False,
) -> None:
    """Read the files of every model again and compare them with what was registered. Exit code: 2 for any other."""
    from rlhf_bench.harness import checkpoint

    with lookup.open_store() as store:
        known = store.checkpoints()
        chosen = [lookup.find_checkpoint(store, name) for name in names] if names else [each for each, _ in known]
    wrong: dict[str, str] = {}
    for each in chosen:
        try:
            checkpoint.verify(each)
        except UserError as error:
            wrong[each.digest] = str(error)
            show.complain(f"error: {error}")
        else:
            if not json:
                show.say(f"unchanged {tables.short(each.digest)} {each.path}")
    if json:
        show.as_json([{"digest": c.digest, "path": c.path, "wrong": wrong.get(c.digest)} for c in chosen])
    if wrong:
        raise typer.Exit(UserError.exit_code)


@app.command("show")
def show_model(name: ModelName, json: options.Json = False) -> None:
    """A checkpoint with its parents, back to the first."""
    with lookup.open_store() as store:
        chain = lookup.lineage(store, lookup.find_checkpoint(store, name))
        names = {each.digest: aliases for each, aliases in store.checkpoints()}
        champion = store.champion()
    leader = champion.checkpoint if champion else None
    if json:
        show.as_json([_described(each, names.get(each.digest, ()), leader) for each in chain])
        return
    rows = [(called(names.get(c.digest, ()), _how(c, champion)), c.digest, c.parent, made_by(c)) for c in chain]
    tables.lineage(rows)
    show.say(f"{chain[0].digest} in {chain[0].path}")


@app.command()
def export(
    name: ModelName,
    out: Annotated[Path, typer.Argument(help="The new folder (hf) or file (gguf).")],
    form: Annotated[
        Literal["hf", "gguf"],
        typer.Option("--format", help="A folder for transformers, or a file for llama.cpp, made by its converter."),
    ] = "hf",
    json: options.Json = False,
) -> None:
    """Copy a checkpoint, or convert it, to a place outside of this store; its files are checked first."""
    from rlhf_bench.harness.export import export_folder, export_gguf

    with lookup.open_store() as store:
        found = lookup.find_checkpoint(store, name)
    written = (export_folder if form == "hf" else export_gguf)(found, out.absolute())
    if json:
        show.as_json({"digest": found.digest, "format": form, "path": str(written)})
        return
    show.say(f"{tables.short(found.digest)} in {written}")


@app.command()
def push(
    name: ModelName,
    repository: Annotated[str, typer.Argument(help="org/name on the hub; a new one is made, private.")],
    public: Annotated[bool, typer.Option("--public", help="Everyone may see it.")] = False,
    json: options.Json = False,
) -> None:
    """Put a checkpoint into a repository of the Hugging Face hub, by the token in HF_TOKEN."""
    from rlhf_bench.harness.export import push as to_hub

    with lookup.open_store() as store:
        found = lookup.find_checkpoint(store, name)
    address = to_hub(found, repository, public=public)
    show.as_json({"digest": found.digest, "commit": address}) if json else show.say(address)


def called(names: Sequence[str], how: How | None) -> str:
    """The aliases of a checkpoint, and where it is champion a star, which tells of force and of a rollback."""
    star = {None: "", "forced": " ★ champion (forced)", "rollback": " ★ champion (rollback)"}.get(how, " ★ champion")
    return (", ".join(names) or "–") + star


def _how(checkpoint: Checkpoint, champion: Champion | None) -> How | None:
    """How this checkpoint became the present champion; None where it is not."""
    return champion.how if champion and champion.checkpoint == checkpoint.digest else None


def made_by(checkpoint: Checkpoint) -> str:
    """How a checkpoint was made, in one cell; nothing where that is not known."""
    recipe = checkpoint.recipe
    return str(recipe.get("trainer") or recipe.get("source") or recipe.get("spec") or "")


def _described(each: Checkpoint, names: tuple[str, ...], champion: str | None) -> dict[str, Any]:
    return {
        "names": list(names),
        "digest": each.digest,
        "parent": each.parent,
        "path": each.path,
        "recipe": dict(each.recipe),
        "champion": each.digest == champion,
    }
