"""The named protocols."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from rlhf_bench import suites
from rlhf_bench.harness.codec import digest, dumps, loads
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import EvalProtocol
from rlhf_bench.suites.protocols import PROTOCOLS, derive

TASKS = Path(lm_eval.tasks.__file__).parent


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_has_the_name_it_is_listed_by_and_survives_storage(name: str) -> None:
    protocol = suites.protocol(name)
    assert protocol.name == name
    assert loads(EvalProtocol, dumps(protocol)) == protocol


def test_no_two_protocols_have_one_digest() -> None:
    assert len({digest(protocol) for protocol in PROTOCOLS.values()}) == len(PROTOCOLS)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("gsm8k", "gsm8k/gsm8k.yaml"),
        ("arc_challenge", "arc/arc_challenge.yaml"),
        ("mmlu", "mmlu/default/mmlu_anatomy.yaml"),
        ("truthfulqa_mc1", "truthfulqa/truthfulqa_mc1.yaml"),
        ("truthfulqa_mc2", "truthfulqa/truthfulqa_mc2.yaml"),
        ("humaneval", "humaneval/humaneval.yaml"),
        ("mbpp", "mbpp/mbpp.yaml"),
    ],
)
def test_the_lm_eval_protocol_has_the_shots_of_its_yaml_files(name: str, file: str) -> None:
    assert PROTOCOLS["lm-eval"].shots[name] == load_yaml(TASKS / file, resolve_func=False).get("num_fewshot", 0)


def test_the_paper_protocol_has_the_shots_of_its_table_6() -> None:
    shots = {"gsm8k": 8, "mmlu": 5, "arc_challenge": 25, "humaneval": 0, "mbpp": 0, "truthfulqa_mc1": 0}
    assert {name: PROTOCOLS["paper"].shots[name] for name in shots} == shots
    assert len(load_yaml(TASKS / "gsm8k/gsm8k-cot.yaml")["fewshot_config"]["samples"]) == 8


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_speaks_only_of_benchmarks_that_exist(name: str) -> None:
    protocol = PROTOCOLS[name]
    assert {*protocol.shots, *protocol.variants} <= set(suites.BENCHMARKS)


def test_a_protocol_names_the_shots_of_every_academic_benchmark() -> None:
    for protocol in PROTOCOLS.values():
        assert set(suites.SUITES["academic"].benchmarks) <= set(protocol.shots)


PAPER = PROTOCOLS["paper"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"chat_template": True}, "paper+chat"),
        ({"shots": 0, "benchmarks": ("gsm8k", "own")}, "paper+shots=0"),
        ({"chat_template": True, "fewshot_as_multiturn": False}, "paper+chat+one-turn"),
        ({"system_prompt": "Think.", "shots": 3, "benchmarks": ("mmlu",)}, "paper+shots=3+system="),
        ({"shots": 0, "benchmarks": ("own",)}, "paper+shots=0"),
        ({"repeats": 4, "temperature": 0.7, "sampling_seed": 3}, "paper+repeats=4+temperature=0.7+sample-seed=3"),
        ({"chat_template": True, "temperature": 1.0}, "paper+chat+temperature=1"),
    ],
)
def test_a_derived_protocol_says_in_its_name_what_differs(changes: dict[str, Any], name: str) -> None:
    found = derive(PAPER, **changes)
    assert found.name.startswith(name)
    assert digest(found) != digest(PAPER)
    for benchmark in changes.get("benchmarks", ()):
        assert found.shots[benchmark] == changes["shots"]
    assert found.shots["arc_challenge"] == 25
    assert loads(EvalProtocol, dumps(found)) == found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"chat_template": False, "fewshot_as_multiturn": True, "system_prompt": ""},
        {"shots": 8, "benchmarks": ("gsm8k",)},
        {"shots": 3},
        {"repeats": 1, "sampling_seed": 0},
    ],
)
def test_what_changes_nothing_leaves_the_protocol_as_it_is(changes: dict[str, Any]) -> None:
    assert derive(PAPER, **changes) is PAPER


def test_two_system_prompts_are_two_names() -> None:
    assert derive(PAPER, system_prompt="a").name != derive(PAPER, system_prompt="b").name


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shots": -1, "benchmarks": ("gsm8k",)}, "-1 shots: give 0 or more"),
        ({"repeats": 0}, "0 repeats: give 1"),
        ({"temperature": 0.0}, "a temperature of 0: give one above 0, or none for each benchmark's own"),
        ({"temperature": float("nan")}, "a temperature of nan"),
        ({"sampling_seed": -1}, "a sampling seed of -1: give 0 or more"),
    ],
)
def test_what_cannot_be_asked_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        derive(PAPER, **changes)
