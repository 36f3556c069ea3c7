"""Demo arithmetic: 60 word problems of one to three steps.

Paper: none; the form is that of GSM8K (arXiv 2110.14168).
Data: data/arithmetic.jsonl, written by this project; Apache-2.0.
Metric: exact_match of the last number in the answer; by number of steps as strata.
Differs: from GSM8K in its problems; asked in a conversation with three examples under every protocol; numbers are
compared by value (5.00 is 5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from rlhf_bench.harness.types import Benchmark, EvalProtocol, Graded, Message, Request, Sample, Sampling, Score
from rlhf_bench.suites.demo import rows, ungraded

INSTRUCTION = "Solve each problem. Write the steps as equations and end with the answer.\n\n"
EXAMPLES = (
    Message("user", INSTRUCTION + "A farmer has 3 goats and buys 2 more goats. How many goats does he have?"),
    Message("assistant", "He has 3 + 2 = 5 goats. The answer is 5."),
    Message("user", "There are 9 cups on a table. Pam takes 3 cups away. How many cups are on the table now?"),
    Message("assistant", "There are 9 - 3 = 6 cups. The answer is 6."),
    Message("user", "A bag holds 6 nuts. How many nuts are in 3 bags?"),
    Message("assistant", "There are 3 * 6 = 18 nuts. The answer is 18."),
)
SAMPLING = Sampling(max_tokens=96)
NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
"""lm-eval's flexible-extract."""


def load(protocol: EvalProtocol) -> Sequence[Sample]:
    """The problems in order, easy and hard ones mixed, behind the examples and the protocol's system prompt."""
    system = (Message("system", protocol.system_prompt),) if protocol.system_prompt else ()
    return [
        Sample(
            id=f"demo-arithmetic/{number}",
            requests=(
                Request(f"demo-arithmetic/{number}", (*system, *EXAMPLES, Message("user", row["question"])), SAMPLING),
            ),
            reference=row["answer"].rsplit("#### ", 1)[1],
            tags={"stratum": f"{row['answer'].count('<<')}-step"},
            row=row,
        )
        for number, row in enumerate(rows("arithmetic"))
    ]


def last_number(text: str) -> Decimal | None:
    """The last number of the text, without dollar signs and thousands separators; None if there is none."""
    found = NUMBER.findall(text)
    try:
        return Decimal(found[-1].replace("$", "").replace(",", "").rstrip(".")) if found else None
    except InvalidOperation:
        return None


def grade(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
    """1 where the last number is the reference, else 0; an answer without a number is 0 and says so."""
    for sample, completions in answered:
        if missing := ungraded(sample, completions):
            yield missing
            continue
        found = last_number(completions[0].text)
        why = "no number in the answer" if found is None else ""
        yield Score(sample.id, float(found == Decimal(sample.reference)), why)


BENCHMARK = Benchmark(
    name="demo-arithmetic",
    version="1",
    metric="exact_match",
    kind="binary",
    size=60,
    summary="packaged word problems of one to three steps, by the last number of the answer",
    load=load,
    grade=grade,
)
