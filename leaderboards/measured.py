"""Finished runs as rows of a leaderboard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_bench.harness.types import Report
from rlhf_bench.leaderboards.ranking import Row


def rows(report: Report, model: str, lineage: tuple[str, ...] = ()) -> list[Row]:
    """One row for each benchmark of the report, in the benchmark's own metric."""
    facts = report.manifest.get("benchmarks", {})
    return [
        Row(
            model=model,
            benchmark=each.benchmark,
            metric=each.metric,
            mean=each.mean,
            low=each.low,
            high=each.high,
            source=f"run {report.run_id}",
            conditions=conditions(report, each.benchmark),
            graded=each.graded,
            ungraded=each.ungraded,
            checkpoint=report.checkpoint,
            lineage=lineage,
        )
        for each in report.estimates
        if facts.get(each.benchmark, {}).get("metric", each.metric) == each.metric
    ]


def conditions(report: Report, benchmark: str) -> dict[str, str]:
    """What another score on this benchmark must share with this report's before the two compare.

    Names are for people; where a name hides two things (a judge trained anew, other questions of the same number) the
    beginning of a digest tells them apart.
    """
    manifest = report.manifest
    facts: Mapping[str, Any] = manifest.get("benchmarks", {}).get(benchmark, {})
    protocol: Mapping[str, Any] = manifest.get("protocol") or {}
    found = {
        "protocol": _named(report.protocol, manifest.get("protocol_digest")),
        "shots": str(protocol.get("shots", {}).get(benchmark, 0)),
        "samples": str(facts.get("samples", "unknown")),
        "questions": str(facts.get("digest", "unknown"))[:6],
        "version": str(facts.get("version", "unknown")),
        "precision": str((manifest.get("engine") or {}).get("dtype", "none")),
    }
    if benchmark in manifest.get("judged", ()):
        found["judge"] = _named(str(report.judge), manifest.get("judge_identity"))
    return found


def _named(name: str, digest: str | None) -> str:
    return f"{name} ({digest[:6]})" if digest else name
