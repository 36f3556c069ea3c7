"""Runs that other tools made, kept in the store as finished ones: their records compare and gate as ours do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from rlhf_bench.harness.claims import HIGHER
from rlhf_bench.harness.codec import digest, plain
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.estimates import estimates_of
from rlhf_bench.harness.store import Run, Store
from rlhf_bench.harness.types import Benchmark, EvalProtocol, Record, Report


@dataclass(frozen=True, slots=True)
class Made:
    """What files say of a run: whose answers, how asked, by whom judged, and what else a report tells of it.

    `checkpoint` identifies the model's state as far as the files can, and `identity` whatever answered; `judge` is the
    judge as the files name it, None where none was asked. `higher`: which metrics they call better when higher.
    """

    model: str
    checkpoint: str
    identity: str
    protocol: EvalProtocol
    judge: str | None
    engine: Mapping[str, Any]
    source: Mapping[str, str]
    limit: Any = None
    higher: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)


def recorded(name: str, facts: Mapping[str, Any]) -> Benchmark:
    """A benchmark as a run's manifest knows it: what its records say can be computed, but it cannot be asked again."""
    return Benchmark(
        name=name,
        version=facts["version"],
        metric=facts["metric"],
        kind=facts["kind"],
        size=facts["samples"],
        summary="",
        load=_not_here,
        grade=_not_here,
    )


def keep(made: Made, benchmarks: Sequence[Benchmark], records: Sequence[Record], store: Store) -> Report:
    """Keep a run that was made elsewhere as a finished one. The same records of the same model are the same run."""
    of = {each.name: [record for record in records if record.benchmark == each.name] for each in benchmarks}
    manifest = _manifest(made, benchmarks, of)
    scores = [[record.digest, record.score.value, dict(record.score.also)] for record in records]
    key = digest([made.identity, manifest["protocol_digest"], manifest["benchmarks"], scores])
    run = Run(
        id=key[:10],
        model=made.model,
        checkpoint=made.checkpoint,
        suite=",".join(of),
        protocol=made.protocol.name,
        judge=made.judge,
        key=key,
        manifest=manifest,
        created=manifest["created"],
    )
    store.start_run(run)
    store.save_records(run.id, records)
    estimates = tuple(estimate for each in benchmarks for estimate in estimates_of(each, of[each.name]))
    report = Report(run.id, run.model, run.checkpoint, run.suite, run.protocol, run.judge, estimates, manifest)
    store.finish_run(run.id, report)
    return report


def sha256_of(file: Path) -> str:
    """The sha256 of a file, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _manifest(made: Made, benchmarks: Sequence[Benchmark], of: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    return {
        "engine": made.engine,
        "engine_identity": made.identity,
        "checkpoint": made.checkpoint,
        "protocol": plain(made.protocol),
        "protocol_digest": digest(made.protocol),
        "judge": made.judge,
        "judge_identity": made.judge,
        "benchmarks": {
            each.name: {
                "version": each.version,
                "metric": each.metric,
                "kind": each.kind,
                "samples": each.size,
                "digest": digest(sorted(record.digest for record in of[each.name])),
            }
            for each in benchmarks
        },
        "judged": [each.name for each in benchmarks if each.judged],
        "limit": made.limit,
        HIGHER: made.higher,
        "source": made.source,
        "created": datetime.now(UTC).isoformat(),
    }


def _not_here(*_: Any) -> NoReturn:
    raise UserError("a benchmark that is known from a run's records cannot be asked again")
