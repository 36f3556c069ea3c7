"""What the trainers make of SmolLM2-135M-Instruct and real data, all of it through the command line.

    RLHF_BENCH_DATA=… python benchmarks/trainers_show.py            # an hour or so on two free cores
    RLHF_BENCH_DATA=… python benchmarks/trainers_show.py --quick    # a tenth of the rows

RLHF_BENCH_DATA is a folder whose `training` holds HH-RLHF's harmless test pairs and LLaMA-Factory's Alpaca and DPO
demos. Four trainings with the torch back end, from the packaged presets (`SETTINGS` says what differs):

    rm, pm    pairs of HH-RLHF whose question to a preference model has at most 256 tokens, drawn by a seed; then
              `judge reward` on other pairs, of other prompts, which neither has seen
    sft, dpo  one epoch, so the loss of every step is that of rows which the model has not been trained on before

Where it stops it goes on: what is done is kept in `--home`. Written: results/trainers_show.json, its table beside it
(.md), and docs/training-curves.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).resolve().parent
SEED = 0
SHORT, LONGER = 256, 384
TRAIN, HELD_OUT = 400, 300
BY_PM = 120
"""Of the pairs held out, those that the preference model is asked: it reads each twice."""
SFT_ROWS, DPO_ROWS = 320, 120
LAST = '{"rank": 16, "alpha": 32, "layers": 10}'
SETTINGS = {
    "rm": [f"max_length={SHORT}", "learning_rate=3e-4"],
    "pm": [f"max_length={SHORT}", "learning_rate=3e-4", "lora.layers=6"],
    "sft": [f"max_length={SHORT}", "epochs=1", "learning_rate=1e-3"],
    "dpo": [f"max_length={LONGER}", "epochs=1", "batch_size=2", "learning_rate=3e-4", f"lora={LAST}", "micro_batch=1"],
}
PRESETS = {"rm": "demo-reward", "pm": "demo-preference", "sft": "demo-sft", "dpo": "demo-dpo"}
Figures = dict[str, Any]


def prepare(data: Path, home: Path, tenth: bool) -> None:
    """Write the rows that are trained on and held out into `home`."""
    from transformers import AutoTokenizer

    from rlhf_bench.harness.judges.preference import encode_pair
    from rlhf_bench.harness.judges.reward import encode
    from rlhf_bench.harness.weights import fetch_smollm2
    from rlhf_bench.trainers.data import encode_conversation, read_conversations, read_preferences, write

    share = 10 if tenth else 1
    draw, tokenizer = random.Random(SEED), AutoTokenizer.from_pretrained(fetch_smollm2())
    harmless = read_preferences(str(data / "hh_rlhf_harmless_base.test.jsonl.gz"), on_bad_row="skip")
    first = {p.prompt: p for p in harmless if p.chosen != p.rejected}  # a prompt is on one side only
    short = [p for p in first.values() if len(encode_pair(tokenizer, p.prompt, p.chosen, p.rejected)) < SHORT]
    draw.shuffle(short)
    train, held_out = TRAIN // share, HELD_OUT // share
    write(short[:train], home / "pairs.jsonl")
    write(short[train : train + held_out], home / "held-out.jsonl")
    talks = list(read_conversations(str(data / "alpaca_en_demo.json.gz"), on_bad_row="skip"))
    talks = [each for each in talks if len(encode_conversation(tokenizer, each)[0]) <= SHORT]
    draw.shuffle(talks)
    write(talks[: SFT_ROWS // share], home / "conversations.jsonl")
    demo = [
        pair
        for pair in read_preferences(str(data / "dpo_en_demo.json.gz"), on_bad_row="skip")
        if max(sum(map(len, encode(tokenizer, pair.prompt, said))) for said in (pair.chosen, pair.rejected)) <= LONGER
    ]
    draw.shuffle(demo)
    write(demo[: DPO_ROWS // share], home / "dpo.jsonl")


def command(home: Path, *arguments: str) -> str:
    """Run rlhf-bench; its standard output."""
    print("rlhf-bench", *arguments, flush=True)
    program = Path(sys.executable).with_name("rlhf-bench")
    environment = {**os.environ, "RLHF_BENCH_HOME": str(home / "store")}
    ran = subprocess.run([program, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if ran.returncode:
        sys.exit(f"rlhf-bench ended with {ran.returncode}; this goes on from there with --home {home}")
    return ran.stdout


def trained(kind: str, rows: str, home: Path) -> Figures:
    """One training: its steps, and the CPU time and memory that it took."""
    out, began = home / kind, time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    settings = [part for setting in SETTINGS[kind] for part in ("--set", setting)]
    asked = ["train", kind, "--data", str(home / rows), "--preset", PRESETS[kind], *settings]
    command(home, *asked, "--backend", "torch", "--out", str(out), "--alias", f"show-{kind}", "--json")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    spent = {"minutes": (time.monotonic() - began) / 60, "cpu_minutes": (after.ru_utime - before.ru_utime) / 60}
    recipe = json.loads((out / "recipe.json").read_text())
    return {"recipe": recipe, "steps": steps, **spent, "load": os.getloadavg()[0]}


def judged(name: str, home: Path, limit: int = HELD_OUT) -> Figures:
    """What a judge is worth on the first pairs that were held out."""
    asked = ["judge", "reward", name, "--data", str(home / "held-out.jsonl"), "--limit", str(limit)]
    found: Figures = json.loads(command(home, *asked, "--json"))
    return found


def once(home: Path, name: str, make: Callable[[], Figures]) -> Figures:
    """What was made under this name, or is made now."""
    kept = home / f"{name}.json"
    if not kept.exists():
        kept.write_text(json.dumps(make()))
    found: Figures = json.loads(kept.read_text())
    return found


def tenths(steps: Sequence[Figures], name: str) -> str:
    """The means over a tenth of the steps at each end."""
    part = max(1, len(steps) // 10)
    first, last = ([step[name] for step in some] for some in (steps[:part], steps[-part:]))
    return f"{sum(first) / part:.3f} to {sum(last) / part:.3f}"


def markdown(found: Figures) -> str:
    """The tables of what is there so far."""
    lines = [
        "| judge of pairs it has not seen | right | 95% interval | pairs | calibration error | takes the longer |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    names = {
        "longer": "the longer answer",
        "rm": "reward model (Bradley-Terry)",
        "pm": "preference model, both orders",
    }
    for key, name in names.items():
        if (one := found.get(f"judged-{key}")) is not None:
            right, longer = one["accuracy"], one["prefers_longer"]
            error = "" if key == "longer" else f"{one['calibration_error']:.3f}"
            interval = f"{right['low']:.3f} to {right['high']:.3f}"
            lines.append(
                f"| {name} | {right['mean']:.3f} | {interval} | {one['pairs']} | {error} | {longer['mean']:.2f} |"
            )
    lines += [
        "",
        "| training | rows | steps | loss | accuracy | margin | CPU minutes |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for kind in SETTINGS:
        if (one := found.get(kind)) is not None:
            steps, recipe = one["steps"], one["recipe"]
            rows = recipe.get("pairs", recipe.get("conversations"))
            cells = [tenths(steps, name) if name in steps[0] else "" for name in ("loss", "accuracy", "margin")]
            lines.append(f"| {kind} | {rows} | {len(steps)} | {' | '.join(cells)} | {one['cpu_minutes']:.1f} |")
    return "\n".join(lines) + "\n"


def plot(found: Figures, path: Path) -> None:
    """SFT's loss; DPO's loss and margin."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "rlhf-bench"
    from matplotlib import pyplot as plt

    drawn = (
        ("sft", "loss", "SFT on Alpaca: loss a token"),
        ("dpo", "loss", "DPO: loss"),
        ("dpo", "margin", "DPO: margin"),
    )
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    for axis, (kind, name, title) in zip(axes, drawn, strict=True):
        values = [step[name] for step in found[kind]["steps"]]
        smooth = [sum(values[max(0, i - 4) : i + 1]) / len(values[max(0, i - 4) : i + 1]) for i in range(len(values))]
        axis.plot(range(1, len(values) + 1), values, "o", markersize=3, alpha=0.5, label="a step")
        axis.plot(range(1, len(values) + 1), smooth, label="mean of the last 5")
        axis.set(title=title, xlabel="step")
    axes[1].axhline(0.6931, color="grey", linewidth=0.8, linestyle="--")
    axes[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, judge, and write what was found after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows; nothing is written but to --home")
    parser.add_argument("--home", type=Path, help="a folder for data, checkpoints and what is done; else a new one")
    given = parser.parse_args(arguments)
    if "RLHF_BENCH_DATA" not in os.environ:
        parser.error("set RLHF_BENCH_DATA to the folder that holds training/")
    home = (given.home or Path(tempfile.mkdtemp(prefix="trainers-show-"))).absolute()
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dpo.jsonl").exists():
        prepare(Path(os.environ["RLHF_BENCH_DATA"]) / "training", home, given.quick)
    stages: dict[str, Callable[[], Figures]] = {
        "judged-longer": lambda: judged("scripted:longer", home),
        "rm": lambda: trained("rm", "pairs.jsonl", home),
        "judged-rm": lambda: judged("show-rm", home),
        "sft": lambda: trained("sft", "conversations.jsonl", home),
        "dpo": lambda: trained("dpo", "dpo.jsonl", home),
        "pm": lambda: trained("pm", "pairs.jsonl", home),
        "judged-pm": lambda: judged("pm:show-pm", home, BY_PM),
    }
    results = home if given.quick else HERE / "results"
    found: Figures = {}
    for name, make in stages.items():
        found[name] = once(home, name, make)
        (results / "trainers_show.json").write_text(json.dumps(found, indent=1) + "\n")
        (results / "trainers_show.md").write_text(markdown(found))
    plot(found, home / "curves.svg" if given.quick else HERE.parent / "docs" / "training-curves.svg")
    print(markdown(found))


if __name__ == "__main__":
    main()
