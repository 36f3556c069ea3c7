"""Demo four-way: 40 questions of general science with four choices.

Paper: none; form and metric are those of ARC (arXiv 1803.05457) as lm-eval asks it.
Data: data/four_way.jsonl, written by this project; Apache-2.0.
Metric: acc_norm, whether the right choice has the highest log-likelihood per character; acc, without the division,
beside it.
Differs: from ARC in its questions; plain text and no examples under every protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rlhf_bench.harness.types import Benchmark, EvalProtocol, Graded, Request, Sample, Score
from rlhf_bench.suites.demo import rows, ungraded


def load(protocol: EvalProtocol) -> Sequence[Sample]:
    """The questions in order, easy and hard ones mixed; request k scores choice k."""
    samples = []
    for number, row in enumerate(rows("four_way")):
        identity = f"demo-four-way/{number}"
        prompt = f"Question: {row['question']}\nAnswer:"
        texts, labels = row["choices"]["text"], row["choices"]["label"]
        requests = tuple(
            Request(identity, prompt, continuation=f" {text}", index=index) for index, text in enumerate(texts)
        )
        samples.append(Sample(identity, requests, texts[labels.index(row["answerKey"])], row=row))
    return samples


def grade(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
    """1 where the right choice is the likeliest, else 0; the first of equally likely ones counts."""
    for sample, completions in answered:
        if missing := ungraded(sample, completions):
            yield missing
            continue
        texts = sample.row["choices"]["text"]
        ordered = sorted(completions, key=lambda completion: completion.index)
        logprobs = [float("-inf") if one.logprob is None else one.logprob for one in ordered]
        per_char = [logprob / len(text) for logprob, text in zip(logprobs, texts, strict=True)]
        gold = texts.index(sample.reference)
        acc_norm, acc = (float(values.index(max(values)) == gold) for values in (per_char, logprobs))
        yield Score(sample.id, acc_norm, also={"acc": acc})


BENCHMARK = Benchmark(
    name="demo-four-way",
    version="1",
    metric="acc_norm",
    kind="binary",
    size=40,
    summary="packaged science questions with four choices, by likelihood per character",
    load=load,
    grade=grade,
)
