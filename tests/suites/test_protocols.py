"""The named protocols."""

from __future__ import annotations

from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from rlhf_bench import suites
from rlhf_bench.harness.codec import digest, dumps, loads
from rlhf_bench.harness.types import EvalProtocol
from rlhf_bench.suites.protocols import PROTOCOLS

TASKS = Path(lm_eval.tasks.__file__).parent


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_has_the_name_it_is_listed_by_and_survives_storage(name: str) -> None:
    protocol = suites.protocol(name)
    assert protocol.name == name
    assert loads(EvalProtocol, dumps(protocol)) == protocol


def test_no_two_protocols_have_one_digest() -> None:
    assert len({digest(protocol) for protocol in PROTOCOLS.values()}) == len(PROTOCOLS)


@pytest.mark.parametrize(("name", "file"), [("gsm8k", "gsm8k/gsm8k.yaml"), ("arc_challenge", "arc/arc_challenge.yaml")])
def test_the_lm_eval_protocol_has_the_shots_of_its_yaml_files(name: str, file: str) -> None:
    assert PROTOCOLS["lm-eval"].shots[name] == load_yaml(TASKS / file).get("num_fewshot", 0)


def test_the_paper_protocol_has_the_shots_of_its_table_6() -> None:
    assert PROTOCOLS["paper"].shots == {"gsm8k": 8, "arc_challenge": 25}
    assert len(load_yaml(TASKS / "gsm8k/gsm8k-cot.yaml")["fewshot_config"]["samples"]) == 8


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_speaks_only_of_benchmarks_that_exist(name: str) -> None:
    protocol = PROTOCOLS[name]
    assert {*protocol.shots, *protocol.variants} <= set(suites.BENCHMARKS)
