"""`rlhf-bench train`: reward models and DPO policies from preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_bench.cli import options, show, tables, wiring

if TYPE_CHECKING:
    from rlhf_bench.harness.store import Store
    from rlhf_bench.harness.types import Checkpoint, Preference

app = typer.Typer(help="Train a reward model or a DPO policy from preference pairs.", no_args_is_help=True)

Data = Annotated[
    str, typer.Option("--data", "-d", help="JSON lines with prompt, chosen, rejected; or demo (packaged pairs).")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="The checkpoint's folder; it must not hold another model.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="A recipe in YAML.")]
Preset = Annotated[str | None, typer.Option(help="A packaged recipe.", autocompletion=options.presets)]
Set = Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe; repeatable.")]
Alias = Annotated[str | None, typer.Option(callback=wiring.checked_alias, help="A name for the checkpoint.")]
Backend = Annotated[str, typer.Option(help="Who trains.")]


@app.command("rm")
def reward_model(
    data: Data,
    out: Out,
    config: Config = None,
    preset: Preset = None,
    set_: Set = None,
    alias: Alias = None,
    backend: Backend = "trl",
    json: options.Json = False,
) -> None:
    """Train a Bradley-Terry reward model on the recipe's `base`."""
    from rlhf_bench.harness.models import resolve
    from rlhf_bench.trainers.backends import get_backend
    from rlhf_bench.trainers.recipes import RewardRecipe, recipe_from

    recipe = recipe_from(RewardRecipe, config, preset, set_ or [])
    trainer = get_backend(backend)
    pairs = _pairs(data)
    track = show.bars()
    with wiring.open_store() as store:
        base = resolve(recipe.base, store, track)
        _registered(store, trainer.train_reward(recipe, pairs, base, out.absolute(), track), alias, json)


@app.command("dpo")
def dpo(
    data: Data,
    out: Out,
    model: Annotated[str, typer.Option("--model", "-m", help="The policy to start from.")] = wiring.DEFAULT_MODEL,
    reference: Annotated[
        str | None, typer.Option(help="The reference policy.", show_default="the policy it starts from")
    ] = None,
    config: Config = None,
    preset: Preset = None,
    set_: Set = None,
    alias: Alias = None,
    backend: Backend = "trl",
    json: options.Json = False,
) -> None:
    """Train a policy by direct preference optimisation."""
    from rlhf_bench.harness.models import resolve
    from rlhf_bench.trainers.backends import get_backend
    from rlhf_bench.trainers.recipes import DPORecipe, recipe_from

    recipe = recipe_from(DPORecipe, config, preset, set_ or [])
    trainer = get_backend(backend)
    pairs = _pairs(data)
    track = show.bars()
    with wiring.open_store() as store:
        policy = resolve(model, store, track)
        anchor = policy if reference is None else resolve(reference, store, track)
        _registered(store, trainer.train_dpo(recipe, pairs, policy, anchor, out.absolute(), track), alias, json)


def _pairs(data: str) -> list[Preference]:
    from rlhf_bench.trainers.data import read_preferences
    from rlhf_bench.trainers.preferences import damaged_preferences

    return damaged_preferences(wiring.prompts("demo"), seed=0) if data == "demo" else read_preferences(Path(data))


def _registered(store: Store, checkpoint: Checkpoint, alias: str | None, json: bool) -> None:
    store.register(checkpoint, alias=alias)
    if json:
        show.as_json(checkpoint)
        return
    show.say(f"{tables.short(checkpoint.digest)} in {checkpoint.path}")
    show.say(f"next: rlhf-bench run --model {alias or checkpoint.path}")
