"""More than one answer to a question: what a protocol's temperature, sampling seed and repeats make of samples.

The unit of analysis stays the item: K answers to n questions are n clusters, never nK samples, and their error is
that of the questions' means: Var(E s)/n + E Var(s)/(nK).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import EvalProtocol, Request, Sample

STRIDE = 1_000_003
"""Between the seeds of two repeats, so that no repeat under one sampling seed has the seed of another's."""


def sampled(samples: Sequence[Sample], protocol: EvalProtocol, benchmark: str) -> Sequence[Sample]:
    """The samples of a benchmark as the protocol has them sampled: they themselves where it says nothing about that.

    Requests that generate get its temperature and its seed. With K repeats sample x becomes x#1 to x#K, each with a
    seed of its own and all of one cluster; where no sample of the benchmark generates, as with choices that are scored,
    every answer would be the same and none is repeated. A benchmark of both kinds is repeated whole, so that each
    item counts as often as the others. Raises UserError where all that would be repeated is decoded greedily.
    """
    given = [_settled(sample, protocol) for sample in samples]
    temperatures = [r.sampling.temperature for sample in given for r in sample.requests if r.continuation is None]
    if protocol.repeats < 2 or not temperatures:
        return given
    if max(temperatures) <= 0:
        raise UserError(
            f"'{benchmark}' is decoded greedily, so {protocol.repeats} answers to a question would be the same one: "
            "give a temperature too (--temperature 0.7)"
        )
    return [each for sample in given for each in _repeats(sample, protocol.repeats)]


def _settled(sample: Sample, protocol: EvalProtocol) -> Sample:
    """The sample at the protocol's temperature, where it has one, and with its seed."""
    if not protocol.temperature and not protocol.sampling_seed:
        return sample
    return replace(sample, requests=tuple(_settled_request(request, protocol) for request in sample.requests))


def _settled_request(request: Request, protocol: EvalProtocol) -> Request:
    if request.continuation is not None:
        return request
    before = request.sampling
    temperature = protocol.temperature or before.temperature
    return replace(
        request, sampling=replace(before, temperature=temperature, seed=before.seed + protocol.sampling_seed)
    )


def _repeats(sample: Sample, count: int) -> Iterator[Sample]:
    tags = {**sample.tags, "cluster": sample.tags.get("cluster", sample.id)}
    for number in range(1, count + 1):
        name = f"{sample.id}#{number}"
        requests = tuple(_repeated(request, name, number) for request in sample.requests)
        yield replace(sample, id=name, requests=requests, tags=tags)


def _repeated(request: Request, name: str, number: int) -> Request:
    if request.continuation is not None:
        return replace(request, sample_id=name)
    seed = request.sampling.seed + STRIDE * (number - 1)
    return replace(request, sample_id=name, sampling=replace(request.sampling, seed=seed))
