"""A step of DPO by the torch back end against TRL's DPOTrainer as a user gets it, on the same pairs.

    python benchmarks/training.py            # SmolLM2-135M-Instruct, prompts that are half of the sequence
    python benchmarks/training.py --quick    # the same architecture made small, random weights

TRL's side is `DPOTrainer(model, args, train_dataset)` with TRL's own tokenization and its default reference: a second
model in memory that is asked again at every step. Ours is `fit_dpo`: reference asked once, prompt computed once for
both answers, vocabulary only for answer tokens. Both train in float32 with the same pairs in the same order, and every
loss and log-probability is compared.

Each side runs in a process of its own; the two take turns, a step each, so that both meet the same machine. The first
step warms up. Reported are medians over the steps after it, in wall time and in CPU time; and memory: the most that
was resident from the second step on, less what was before a model was loaded (libraries).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from rich.console import Console
from rich.table import Table

from rlhf_bench.harness.types import Checkpoint, Message, Preference
from rlhf_bench.trainers.recipes import DPORecipe

RESULTS = Path(__file__).parent / "results"
SEED = 42
WITHIN = 1e-3
TARGETS = {"speed": 1.6, "memory": 0.7}
WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand",
    "part place case week company system program question work government number night point home water room mother",
    "area money story fact month lot right study book eye job word business issue side kind head house service friend",
)


def pairs(tokenizer: Any, count: int, prompt: int, answer: int) -> list[Preference]:
    """Pairs with so many tokens each in the rendered prompt and in each rendered answer."""
    from rlhf_bench.harness.judges.reward import encode

    rng, words = random.Random(SEED), " ".join(WORDS).split()

    def text(tokens: int, place: int) -> str:
        """Words that are so many tokens as a prompt (place 0) or as an answer (place 1)."""

        def length(said: Sequence[str]) -> int:
            joined = " ".join(said)
            return len(encode(tokenizer, (Message("user", "a" if place else joined),), joined if place else "a")[place])

        said = rng.choices(words, k=tokens)
        while (beyond := length(said) - tokens) > 0:
            del said[-beyond:]  # a word is about a token
        return " ".join(said)

    return [Preference((Message("user", text(prompt, 0)),), text(answer, 1), text(answer, 1)) for _ in range(count)]


class Turns:
    """One side's end of the line to the process that says whose turn it is."""

    def __init__(self) -> None:
        self._began = self._cpu = 0.0
        self._libraries = resident("VmRSS")

    def begin(self) -> None:
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def step_done(self, **facts: Any) -> None:
        """Says how the step went, and waits for the next turn."""
        wall, cpu = time.perf_counter() - self._began, time.process_time() - self._cpu
        memory = resident("VmHWM") - self._libraries
        print(json.dumps({"wall_s": wall, "cpu_s": cpu, "memory": memory, **facts}), file=sys.__stdout__, flush=True)
        sys.stdin.readline()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        self.begin()


def resident(what: str) -> int:
    """Bytes of this process that are, or at most were, in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def ours(job: Mapping[str, Any], turns: Turns) -> list[dict[str, float]]:
    """The torch back end. Its step ends where it has back-propagated; the update begins the next turn."""
    from rlhf_bench.trainers import plain

    recipe = DPORecipe.model_validate(job["recipe"])
    model = Checkpoint(job["model"], "policy")

    @contextmanager
    def track(label: str, total: int) -> Iterator[Callable[[int], None]]:
        began = time.perf_counter(), time.process_time()

        def advance(count: int) -> None:
            if label == "train dpo" and count:
                turns.step_done(**reference)

        yield advance
        if label != "train dpo":
            reference.update(
                reference_wall_s=time.perf_counter() - began[0], reference_cpu_s=time.process_time() - began[1]
            )

    reference: dict[str, float] = {}
    work = Path(job["work"])
    plain.fit_dpo(recipe, _preferences(job), model, model, work, track)
    return [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]


def theirs(job: Mapping[str, Any], turns: Turns) -> list[dict[str, float]]:
    """TRL, with its defaults but for what makes the two comparable: precision, batch, schedule, seed."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Step(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns.step_done()

    recipe = DPORecipe.model_validate(job["recipe"])
    rows = [
        {
            "prompt": [{"role": turn.role, "content": turn.content} for turn in pair.prompt],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for pair in _preferences(job)
    ]
    trainer = DPOTrainer(
        model=job["model"],
        args=DPOConfig(
            output_dir=job["work"],
            per_device_train_batch_size=recipe.micro_batch,
            num_train_epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type=recipe.schedule,
            warmup_steps=recipe.warmup,
            gradient_checkpointing=recipe.gradient_checkpointing,
            beta=recipe.beta,
            bf16=False,
            seed=recipe.seed,
            data_seed=recipe.seed,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        callbacks=[Step()],
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def _preferences(job: Mapping[str, Any]) -> list[Preference]:
    return [Preference((Message("user", each["prompt"]),), each["chosen"], each["rejected"]) for each in job["pairs"]]


def worker(side: str, path: Path) -> None:
    """What each process does: import, wait for its turn, train; the last line has the metrics of every step."""
    job = json.loads(path.read_text())
    sys.stdout = sys.stderr  # the line is for Turns alone
    import torch

    if side == "ours":
        pass
    else:
        import trl

        trl.DPOTrainer  # noqa: B018  # it is imported lazily
    torch.set_num_threads(job["threads"])
    turns = Turns()
    sys.stdin.readline()
    turns.begin()
    lines = (ours if side == "ours" else theirs)(job, turns)
    print(json.dumps({"metrics": lines}), file=sys.__stdout__, flush=True)


def measure(job: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Both sides, a step in turn."""
    with tempfile.TemporaryDirectory() as folder:
        sides = {}
        for side in ("theirs", "ours"):
            path = Path(folder) / f"{side}.json"
            work = Path(folder) / f"{side}.work"
            work.mkdir()
            path.write_text(json.dumps({**job, "work": str(work)}))
            sides[side] = subprocess.Popen(
                [sys.executable, __file__, "--worker", side, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=(Path(folder) / f"{side}.log").open("w"),
                text=True,
            )
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for _ in range(steps + 1):
            for side, process in sides.items():
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write("go\n")
                process.stdin.flush()
                line = process.stdout.readline()
                if not line:
                    raise SystemExit((Path(folder) / f"{side}.log").read_text()[-3000:])
                found[side].append(json.loads(line))
                print(f"  {side:6} {len(found[side])}: {line.strip()[:150]}", flush=True)
        for process in sides.values():
            process.wait()
    return compare(found, job, steps)


def compare(found: Mapping[str, Sequence[Mapping[str, Any]]], job: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Medians of the steps after the first, and how far apart the two sides' figures are."""
    tokens = job["tokens_a_step"]
    kept = ("case", "prompt", "answer", "pairs_a_step")
    result: dict[str, Any] = {name: job[name] for name in kept} | {"steps": steps - 1}
    for side, lines in found.items():
        timed = lines[1:steps]
        for clock in ("wall_s", "cpu_s"):
            result[f"{side}_{clock}"] = statistics.median(line[clock] for line in timed)
        result[f"{side}_tokens_per_s"] = tokens / result[f"{side}_wall_s"]
        result[f"{side}_memory_gb"] = max(line["memory"] for line in timed) / 1e9
    for clock in ("wall_s", "cpu_s"):
        result[f"speed_{clock}"] = statistics.median(
            a[clock] / b[clock] for a, b in zip(found["theirs"][1:steps], found["ours"][1:steps], strict=True)
        )
        reference = found["ours"][0][f"reference_{clock}"] / steps
        result[f"run_{clock}"] = 2 * result[f"theirs_{clock}"] / (2 * result[f"ours_{clock}"] + reference)
    result["memory"] = result["ours_memory_gb"] / result["theirs_memory_gb"]
    names = ("loss", "logps/chosen", "logps/rejected")
    pairs = list(zip(found["theirs"][-1]["metrics"], found["ours"][-1]["metrics"], strict=True))
    result["largest_difference"] = max(abs(a[name] - b[name]) for a, b in pairs for name in names)
    assert len(pairs) == steps and result["largest_difference"] < WITHIN, result
    return result


def small(source: Path, folder: Path) -> Path:
    """SmolLM2's architecture, tokenizer and vocabulary with a quarter of its width and depth, random weights."""
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 8}
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1}
    config = AutoConfig.from_pretrained(source, **sizes, **heads, head_dim=64, layer_types=None)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def jobs(quick: bool, folder: Path, steps: int, pairs_a_step: int, threads: int) -> Iterator[dict[str, Any]]:
    """The cases: with and without gradient checkpointing, which TRL has on by default; and longer sequences."""
    from transformers import AutoTokenizer

    from rlhf_bench.harness.weights import fetch_smollm2

    source = fetch_smollm2()
    model = small(source, folder / "small") if quick else source
    tokenizer = AutoTokenizer.from_pretrained(source)
    for case, half, checkpointing in (
        ("TRL's default: gradient checkpointing", 128, True),
        ("no gradient checkpointing", 128, False),
    ):
        recipe = DPORecipe(
            epochs=1,
            batch_size=pairs_a_step,
            micro_batch=pairs_a_step,
            learning_rate=1e-5,
            warmup=0.0,
            schedule="constant_with_warmup",
            dtype="float32",
            gradient_checkpointing=checkpointing,
            seed=SEED,
            save_every=10**6,
        )
        data = pairs(tokenizer, pairs_a_step * steps, half, half)
        yield {
            "case": case,
            "prompt": half,
            "answer": half,
            "pairs_a_step": pairs_a_step,
            "tokens_a_step": pairs_a_step * 4 * half,
            "model": str(model),
            "threads": threads,
            "recipe": recipe.model_dump(mode="json"),
            "pairs": [
                {"prompt": each.prompt[0].content, "chosen": each.chosen, "rejected": each.rejected} for each in data
            ],
        }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch
    import trl

    return {
        "processors": os.cpu_count(),
        "architecture": platform.machine(),
        "torch": torch.__version__,
        "trl": trl.__version__,
        "load": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
    }


COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "case": lambda row: row["case"],
    "prompt + answer": lambda row: f"{row['prompt']} + {row['answer']}",
    "TRL tokens/s": lambda row: f"{row['theirs_tokens_per_s']:.0f}",
    "ours": lambda row: f"{row['ours_tokens_per_s']:.0f}",
    "ratio": lambda row: f"{row['speed_wall_s']:.2f}x",
    "ratio of CPU time": lambda row: f"{row['speed_cpu_s']:.2f}x",
    "two epochs, reference pass in": lambda row: f"{row['run_cpu_s']:.2f}x",
    "TRL GB": lambda row: f"{row['theirs_memory_gb']:.2f}",
    "ours GB": lambda row: f"{row['ours_memory_gb']:.2f}",
    "memory": lambda row: f"{row['memory']:.0%}",
    "largest difference": lambda row: f"{row['largest_difference']:.0e}",
}


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What is printed."""
    shown = Table(title=f"A step of DPO, float32; targets {TARGETS['speed']}x and {TARGETS['memory']:.0%}")
    for name in COLUMNS:
        shown.add_column(name, justify="left" if name == "case" else "right")
    for row in rows:
        shown.add_row(*(cell(row) for cell in COLUMNS.values()))
    return shown


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same for docs/training.md."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|---|{'---:|' * (len(COLUMNS) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(cell(row) for cell in COLUMNS.values())} |" for row in rows)]) + "\n"


def main() -> None:
    """Measures, prints a table and keeps it (unless --quick) in results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model of random weights; nothing is kept")
    parser.add_argument("--steps", type=int, default=4, help="steps of each side, the first of which warms up")
    parser.add_argument("--pairs", type=int, default=4, help="pairs in a step, all in memory at once")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side, which run in turn")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker[0], Path(given.worker[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(job, given.steps)
            for job in jobs(given.quick, Path(folder), given.steps, given.pairs, given.threads)
        ]
    Console(width=180).print(table(rows))
    if not given.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "training.json").write_text(json.dumps({"rows": rows, "machine": machine()}, indent=1) + "\n")
        (RESULTS / "training.md").write_text(markdown(rows))


if __name__ == "__main__":
    main()
