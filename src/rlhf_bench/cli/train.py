"""`rlhf-bench train`: SFT, reward models, preference models and DPO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlhf_bench.cli import live, lookup, options, show, tables
from rlhf_bench.cli.data import Format, OnBadRow
from rlhf_bench.harness.errors import Fault, UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.progress import Track
    from rlhf_bench.harness.store import Store
    from rlhf_bench.harness.types import Checkpoint, Conversation, Preference
    from rlhf_bench.trainers.plan import TrainingPlan
    from rlhf_bench.trainers.recipes import Training

Kind = Literal["sft", "reward", "preference", "dpo"]
COMMANDS: dict[str, tuple[Kind, str]] = {
    "sft": ("sft", "Tune a model on the assistant's turns of conversations."),
    "rm": ("reward", "Train a Bradley-Terry reward model: a linear head that scores an answer."),
    "pm": ("preference", "Train a pairwise preference model: it reads two answers and says which is better."),
}
app = typer.Typer(
    help="Train: SFT, a reward model (rm), a preference model (pm), a policy by DPO.", no_args_is_help=True
)

Data = Annotated[
    str,
    typer.Option(
        "--data", "-d", help="A file, a folder, hf:org/name[:split], in any known layout; or demo (packaged)."
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="The checkpoint's folder; it must not hold another model.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="A recipe in YAML.")]
Preset = Annotated[
    str | None, typer.Option(help="A packaged recipe.", show_default="the paper's", autocompletion=options.presets)
]
Set = Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe; repeatable.")]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="The model to start from.", show_default="the recipe's base")
]
Backend = Annotated[str, typer.Option(help="Who trains: trl, torch, or one that a package brings.")]
Alias = Annotated[str | None, typer.Option(callback=lookup.checked_alias, help="A name for the checkpoint.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be trained, and do not.")]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the commands share."""

    kind: Kind
    data: str
    out: Path
    config: Path | None
    preset: str | None
    settings: Sequence[str]
    model: str | None
    form: str | None
    on_bad_row: Literal["fail", "skip"]
    backend: str
    alias: str | None
    dry_run: bool
    json: bool


def _schema(kind: Kind) -> Callable[[bool], None]:
    def shown(wanted: bool) -> None:
        if wanted:
            from rlhf_bench.harness.config import schema
            from rlhf_bench.trainers.recipes import KINDS

            print(schema(KINDS[kind]))
            raise typer.Exit

    return shown


def _schema_option(kind: Kind) -> Any:
    return typer.Option(
        False,
        "--schema",
        callback=_schema(kind),
        is_eager=True,
        help="Show the recipe's JSON schema, for editors, and exit.",
    )


def _add(name: str, kind: Kind, summary: str) -> None:
    def command(
        data: Data,
        out: Out,
        config: Config = None,
        preset: Preset = None,
        set_: Set = None,
        model: Model = None,
        form: Format = None,
        on_bad_row: OnBadRow = "fail",
        backend: Backend = "trl",
        alias: Alias = None,
        dry_run: DryRun = False,
        json: options.Json = False,
        schema: bool = _schema_option(kind),
    ) -> None:
        settings = set_ or []
        _train(Asked(kind, data, out, config, preset, settings, model, form, on_bad_row, backend, alias, dry_run, json))

    app.command(name, help=summary)(command)


for _name, (_kind, _summary) in COMMANDS.items():
    _add(_name, _kind, _summary)


@app.command("dpo")
def dpo(
    data: Data,
    out: Out,
    config: Config = None,
    preset: Preset = None,
    set_: Set = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The policy to start from.", show_default=lookup.DEFAULT_MODEL),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The reference policy.", show_default="the policy it starts from")
    ] = None,
    form: Format = None,
    on_bad_row: OnBadRow = "fail",
    backend: Backend = "trl",
    alias: Alias = None,
    dry_run: DryRun = False,
    json: options.Json = False,
    schema: bool = _schema_option("dpo"),
) -> None:
    """Train a policy by direct preference optimisation."""
    settings = set_ or []
    asked = Asked("dpo", data, out, config, preset, settings, model, form, on_bad_row, backend, alias, dry_run, json)
    _train(asked, reference)


def _train(asked: Asked, reference: str | None = None) -> None:
    from rlhf_bench.harness.models import resolve
    from rlhf_bench.trainers.backends import METRICS, get_backend, rank
    from rlhf_bench.trainers.recipes import KINDS, recipe_from

    recipe: Any = recipe_from(KINDS[asked.kind], asked.config, asked.preset, asked.settings)
    trainer = get_backend(asked.backend)
    if asked.model is not None and asked.kind != "dpo":
        recipe = recipe.model_copy(update={"base": asked.model})
    rows, places, skipped = _rows(asked)
    out = asked.out.absolute()
    track = _track(out.with_name(out.name + ".work") / METRICS)
    with lookup.open_store() as store:
        policy = asked.model or lookup.DEFAULT_MODEL
        start = resolve(policy if asked.kind == "dpo" else recipe.base, store, track)
        anchor = start if reference is None else resolve(reference, store, track)
        trainer.check(recipe, None if asked.dry_run else start)
        models = [start, anchor] if asked.kind == "dpo" else [start]
        rows, plan = _planned(asked, recipe, rows, places, skipped, models)
        if asked.dry_run and asked.json:
            show.as_json({"recipe": recipe, "plan": plan, "skipped": skipped, "needs": recipe.needs})
        elif not asked.json and not rank():
            _announce(asked, recipe, plan, skipped)
        if asked.dry_run:
            return
        if asked.kind == "sft":
            checkpoint = trainer.train_sft(recipe, rows, start, out, track)
        elif asked.kind == "reward":
            checkpoint = trainer.train_reward(recipe, rows, start, out, track)
        elif asked.kind == "preference":
            checkpoint = trainer.train_preference(recipe, rows, start, out, track)
        else:
            checkpoint = trainer.train_dpo(recipe, rows, start, anchor, out, track)
        if not rank():
            _done(store, checkpoint, asked)


def _track(metrics: Path) -> Track:
    """Progress, with the last step's figures; of several processes the first one shows it."""
    from rlhf_bench.harness.progress import silent
    from rlhf_bench.trainers.backends import rank

    return silent if rank() else show.bars(live.note(metrics))


def _rows(asked: Asked) -> tuple[list[Any], list[str], dict[str, int]]:
    """The data as the recipe takes them, the row that each is from, and how many were left out, by reason."""
    from rlhf_bench.trainers.data import read_conversations, read_preferences

    if asked.data == lookup.DEMO:
        packaged = _demo(asked.kind)
        return packaged, [f"{lookup.DEMO} row {number}" for number in range(1, len(packaged) + 1)], {}
    read = read_conversations if asked.kind == "sft" else read_preferences
    rows: Any = read(asked.data, form=asked.form, on_bad_row=asked.on_bad_row)
    places = [f"{asked.data} row {number}" for number in rows.numbers]
    return list(rows), places, {reason: count for reason, count in rows.skipped.items() if count}


def _demo(kind: Kind) -> list[Any]:
    """The packaged prompts: with their reference answers, or these against damaged ones."""
    from rlhf_bench.harness.types import Message
    from rlhf_bench.trainers.preferences import conversation, damaged_preferences

    samples = lookup.prompts(lookup.DEMO)
    if kind == "sft":
        return [(*conversation(each), Message("assistant", each.reference)) for each in samples]
    return damaged_preferences(samples, seed=0)


def _planned(
    asked: Asked,
    recipe: Training,
    rows: list[Any],
    places: Sequence[str],
    skipped: dict[str, int],
    models: Sequence[Checkpoint],
) -> tuple[list[Any], TrainingPlan]:
    """The plan, and the rows without those whose text the model's tokenizer takes for control tokens."""
    from rlhf_bench.harness.types import Preference
    from rlhf_bench.trainers.backends import check_given
    from rlhf_bench.trainers.chat import check_data, tokenizer_at, wearing
    from rlhf_bench.trainers.plan import plan_of
    from rlhf_bench.trainers.recipes import SFTRecipe
    from rlhf_bench.trainers.rows import room

    check_given(recipe, rows, *models)
    start = models[0]
    given = recipe.chat_template if isinstance(recipe, SFTRecipe) else None
    tokenizer = wearing(tokenizer_at(Path(start.path)), given, start)
    rows = _without_control_tokens(tokenizer, rows, places, skipped, asked.on_bad_row)
    if asked.kind != "preference":  # which puts everything into one turn
        check_data(tokenizer, [row.prompt if isinstance(row, Preference) else row for row in rows])
    return rows, plan_of(recipe, rows, tokenizer, room(recipe, start))


def _without_control_tokens(
    tokenizer: Any, rows: list[Any], places: Sequence[str], skipped: dict[str, int], on_bad_row: str
) -> list[Conversation] | list[Preference]:
    from rlhf_bench.trainers.data import BadRow, check_text

    kept = []
    for place, row in zip(places, rows, strict=True):
        try:
            check_text(tokenizer, row)
        except BadRow as fault:
            if on_bad_row == "fail":
                raise UserError(f"{place}: {fault}; mend it, or --on-bad-row skip") from None
            skipped[fault.reason] = skipped.get(fault.reason, 0) + 1
        else:
            kept.append(row)
    if rows and not kept:
        raise UserError("every row holds a control token of the model's tokenizer as text: nothing is left")
    return kept


def _announce(asked: Asked, recipe: Training, plan: TrainingPlan, skipped: dict[str, int]) -> None:
    """What will be trained: rows, steps, tokens, and what the preset takes."""
    about = "" if plan.exact else "about "
    left_out = [f"{count} {reason}" for reason, count in skipped.items()]
    if plan.used < plan.given:
        left_out.append(f"{about}{plan.given - plan.used} over {plan.limit} tokens")
    what = "conversations" if asked.kind == "sft" else "pairs"
    rest = f" ({', '.join(left_out)} left out)" if left_out else ""
    show.say(f"data: {about}{plan.used:,} {what}{rest}")
    packed = f"{about}{plan.rows:,} packed rows, " if plan.rows != plan.used else ""
    show.say(f"training: {packed}{about}{plan.steps:,} steps of {recipe.batch_size}, {about}{plan.tokens:,} tokens")
    if recipe.needs is not None:
        needs = recipe.needs
        how = "measured" if needs.measured else "estimated"
        hours = show.duration(needs.hours * 3600)
        show.say(f"needs: {hours} and {needs.memory_gb:g} GB on {needs.machine} ({how} for the preset's own data)")


def _done(store: Store, checkpoint: Checkpoint, asked: Asked) -> None:
    from rlhf_bench.trainers.backends import METRICS

    if checkpoint.digest == checkpoint.parent:
        raise Fault(
            f"{checkpoint.path} holds the very weights that it began from, so it was not registered: the training was "
            "too short, or learning_rate too small for the precision that the weights are saved in"
        )
    store.register(checkpoint, alias=asked.alias)
    if asked.json:
        show.as_json(checkpoint)
        return
    name = asked.alias or checkpoint.path
    show.say(f"{tables.short(checkpoint.digest)} in {checkpoint.path}")
    show.say(f"{live.course(Path(checkpoint.path) / METRICS)} ({METRICS} there has each)")
    judge = {"reward": f"--judge {name}", "preference": f"--judge pm:{name}"}.get(asked.kind)
    show.say(f"next: rlhf-bench run {f'--suite chat {judge}' if judge else f'--model {name}'}")
