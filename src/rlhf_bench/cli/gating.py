"""What a gate goes by: the packaged policies and a user's own, and runs as it reads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_bench.cli import lookup
from rlhf_bench.harness.errors import UnknownName, UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.claims import RunData
    from rlhf_bench.harness.policy import Policy
    from rlhf_bench.harness.store import Run, Store

POLICIES = Path(__file__).parent / "policies"


def policy_names() -> list[str]:
    """The packaged policies."""
    return sorted(path.stem for path in POLICIES.glob("*.yaml"))


def policy(spec: str, beside: Path | None = None) -> Policy:
    """The packaged policy of this name, or the one in this YAML file, sought beside `beside` first."""
    from rlhf_bench.harness.policy import load_policy

    if spec in policy_names():
        return load_policy(POLICIES / f"{spec}.yaml")
    path = lookup.sought(spec, beside)
    if path.suffix not in (".yaml", ".yml") and not os.path.exists(path):
        raise UnknownName("policy", spec, policy_names(), "A path to a YAML file works too.")
    return load_policy(path)


def default_policy(run: Run) -> Policy:
    """The packaged policy that asks most of what this run has. Raises UserError where none fits."""
    found = [policy(name) for name in policy_names()]
    wanted = {each.name: set(each.benchmarks) for each in found}
    fitting = [each for each in found if wanted[each.name] <= run.manifest["benchmarks"].keys()]
    if not fitting:
        names = ", ".join(run.manifest["benchmarks"])
        raise UserError(f"no packaged policy is about {names}: name one with --policy FILE ({', '.join(wanted)} exist)")
    return max(fitting, key=lambda each: len(wanted[each.name]))


def run_data(store: Store, run_id: str) -> RunData:
    """A finished run as the gate reads it, with the figures of its benchmarks that are no means."""
    from rlhf_bench import suites
    from rlhf_bench.harness.claims import RunData
    from rlhf_bench.harness.compare import macro_average

    facts = store.run(run_id).manifest.get("benchmarks", {})
    own = suites.figures(facts)
    figures = {name: {f"{facts[name]['metric']},macro": macro_average, **own.get(name, {})} for name in facts}
    return RunData.load(store, run_id, figures)
