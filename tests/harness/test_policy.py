"""Policies fail closed: what is missing, contradictory or in the wrong unit is refused when it is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlhf_bench.harness.config import schema
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.policy import Guard, Policy, Target, load_policy

GOOD = """
name: demo
targets:
  - {benchmark: chat, metric: win_rate}
guards:
  - {benchmark: sums, metric: accuracy, margin: 0.10}
"""


def load(tmp_path: Path, text: str, *overrides: str) -> Policy:
    path = tmp_path / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return load_policy(path, overrides)


def test_a_policy_reads_as_it_is_written(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD) == Policy(
        name="demo",
        targets=(Target(benchmark="chat", metric="win_rate"),),
        guards=(Guard(benchmark="sums", metric="accuracy", margin=0.1),),
    )


def test_defaults_are_the_strict_ones(tmp_path: Path) -> None:
    policy = load(tmp_path, GOOD)
    assert (policy.alpha, policy.require, policy.max_ungraded, policy.against_anchor) == (0.05, "all", 0.02, True)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "guards.0.margin=2",
            "key 'guards.0.margin' is 2: it is a fraction of the score, so 2 means 200 points; did you mean 0.02?",
        ),
        ("guards.0.margin=1", "so 1 means 100 points; did you mean 0.01?"),
        ("guards.0.margin=250", "so 250 means 25000 points"),
        ("ledger.planned=true", "key 'ledger.planned' is true: it must be a valid integer"),
        ("ledger=[]", "key 'ledger' is []: it must be a mapping"),
        ("guards={}", "key 'guards' is {}: it must be a list"),
        ("guards.0.strata=['']", "it must have at least 1 character"),
        ("guards.0.margin=0", "key 'guards.0.margin' is 0: it must be greater than 0"),
        ("guards.0.margin=-0.1", "it must be greater than 0"),
        ("targets.0.min_effect=3", "so 3 means 300 points; did you mean 0.03?"),
        ("max_ungraded=2", "did you mean 0.02?"),
        ("max_ungraded=yes", "is true"),
        ("alpha=0.3", "key 'alpha' is 0.3: it must be less than or equal to 0.25"),
        ("alpha=0", "it must be greater than 0"),
        ("guards=[]", "key 'guards' is []: it must have at least 1 item"),
        ("targets=[]", "key 'targets' is []: it must have at least 1 item"),
        ("targets=", "key 'targets' is null"),
        ("require=most", "key 'require' is \"most\": it must be 'all' or 'any'"),
        ("guards.0.margn=0.2", "no key named 'margn' in 'guards.0'. Did you mean 'margin'?"),
        ("guards.0.benchmark=chat", ""),
    ],
)
def test_what_would_not_protect_is_refused_in_one_line(tmp_path: Path, override: str, says: str) -> None:
    overrides = [override, "guards.0.metric=win_rate"] if override == "guards.0.benchmark=chat" else [override]
    with pytest.raises(UserError) as caught:
        load(tmp_path, GOOD, *overrides)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["targets", "guards", "name"])
def test_a_policy_without_a_part_is_refused(tmp_path: Path, key: str) -> None:
    lines = GOOD.strip().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(key))
    del lines[at : at + (1 if key == "name" else 2)]
    with pytest.raises(UserError, match=f"key '{key}' is missing"):
        load(tmp_path, "\n".join(lines))


def test_the_same_score_twice_is_refused(tmp_path: Path) -> None:
    twice = GOOD + "  - {benchmark: sums, metric: accuracy, margin: 0.05}\n"
    with pytest.raises(UserError, match="accuracy of 'sums' is a guard 2 times: keep one"):
        load(tmp_path, twice)


def test_what_must_improve_is_not_also_a_guard(tmp_path: Path) -> None:
    both = GOOD + "  - {benchmark: chat, metric: win_rate, margin: 0.05}\n"
    with pytest.raises(UserError, match="win_rate of 'chat' is a target and a guard"):
        load(tmp_path, both)
    assert load(tmp_path, both.replace("name: demo", "name: demo\nrequire: any")).require == "any"


def test_of_several_targets_each_needs_a_guard(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add a guard with the margin that it must not lose"):
        load(tmp_path, GOOD, "require=any")


def test_the_digest_follows_the_rules_and_nothing_else(tmp_path: Path) -> None:
    policy = load(tmp_path, GOOD)
    assert load(tmp_path, GOOD.replace("0.10", "1e-1")).digest == policy.digest
    assert load(tmp_path, GOOD, "guards.0.margin=0.11").digest != policy.digest
    assert load(tmp_path, GOOD, "alpha=0.01").digest != policy.digest


def test_the_schema_is_published_with_its_units() -> None:
    assert "a fraction: 0.02 is two points" in schema(Policy)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"ledger": None}, "write open, none, or {planned: N}"),
        ({"ledger": "opne"}, "write open, none, or {planned: N}"),
        ({"sentinels": [{"signal": "truncated", "benchmark": "a", "limit": 10}]}, "did you mean 0.1"),
        ({"sentinels": [{"signal": "length", "benchmark": "a", "limit": 25}]}, "did you mean 0.25"),
        (
            {
                "guards": [
                    {
                        "name": "g",
                        "margin": 0.1,
                        "pool": [
                            {"benchmark": "b", "metric": "m"},
                            {"benchmark": "b", "metric": "m", "strata": ["law"]},
                        ],
                    }
                ]
            },
            "in the pool more than once",
        ),
    ],
)
def test_a_rule_in_the_wrong_unit_or_twice_over_is_refused(more: dict[str, Any], says: str) -> None:
    rules = {
        "name": "p",
        "targets": [{"benchmark": "a", "metric": "m"}],
        "guards": [{"benchmark": "b", "metric": "m", "margin": 0.1}],
    }
    with pytest.raises(ValidationError, match=re.escape(says)):
        Policy.model_validate(rules | more)
