"""The table of benchmarks and suites."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rlhf_bench import suites
from rlhf_bench.harness.errors import UnknownName


@pytest.mark.parametrize("name", suites.BENCHMARKS)
def test_the_table_says_of_a_benchmark_what_it_says_of_itself(name: str) -> None:
    listed, loaded = suites.BENCHMARKS[name], suites.benchmark(name)
    assert (loaded.name, loaded.summary, loaded.size, loaded.metric) == (
        name,
        listed.summary,
        listed.size,
        listed.metric,
    )


def test_every_suite_names_benchmarks_that_exist() -> None:
    for group in suites.SUITES.values():
        assert group.benchmarks
        assert set(group.benchmarks) <= set(suites.BENCHMARKS)


def test_the_suites_are_importable_without_a_heavy_library() -> None:
    heavy = {"numpy", "torch", "lm_eval", "datasets", "transformers", "yaml"}
    code = f"import sys, rlhf_bench.suites; print(sorted({heavy!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_academic_benchmarks_are_importable_without_lm_eval() -> None:
    code = (
        "import sys, rlhf_bench.suites as s; s.suite('academic,chat'); print({'numpy', 'lm_eval'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_a_suite_has_its_benchmarks_in_the_order_of_the_table() -> None:
    found = suites.suite("academic")
    assert found.name == "academic"
    assert [one.name for one in found.benchmarks] == list(suites.SUITES["academic"].benchmarks)


def test_a_benchmark_is_a_suite_of_one() -> None:
    found = suites.suite("gsm8k")
    assert [one.name for one in found.benchmarks] == ["gsm8k"]


def test_names_join_by_commas_and_none_is_run_twice() -> None:
    academic = suites.SUITES["academic"].benchmarks
    found = suites.suite("gsm8k, academic,alpaca_eval")
    assert found.name == "gsm8k,academic,alpaca_eval"
    assert [one.name for one in found.benchmarks] == [*dict.fromkeys(("gsm8k", *academic)), "alpaca_eval"]


def test_an_unknown_suite_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match=r"no suite named 'acadmic'. Did you mean 'academic'\?"):
        suites.suite("acadmic")


def test_an_unknown_name_in_a_list_is_the_one_that_is_named() -> None:
    with pytest.raises(UnknownName, match=r"no suite named 'gsm8'. Did you mean 'gsm8k'\?"):
        suites.suite("chat,gsm8")


def test_an_unknown_benchmark_and_protocol_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match="no benchmark named 'arc'"):
        suites.benchmark("arc")
    with pytest.raises(UnknownName, match=r"no protocol named 'papr'. Did you mean 'paper'\?"):
        suites.protocol("papr")
