"""The nouns in their canonical form."""

from __future__ import annotations

from dataclasses import replace

from rlhf_bench.harness.codec import digest, dumps, loads
from rlhf_bench.harness.types import Completion, Message, Request, Sampling

REQUEST = Request("s", (Message("user", "hi"),), Sampling(5, 0.5, 0.9, ("x",), 3))
COMPLETION = Completion("s", 0, "t", "stop", 3, -1.0, True)


def test_fields_that_were_added_later_change_no_digest_of_before() -> None:
    assert digest(REQUEST) == "00506b8c2583ab90946db5e554e0a354badb510d8cb64ccb21f15421236e1b60"
    assert digest(COMPLETION) == "8c644c5aa6c5fbe3cdb2b44abe45b7a4639112f8092afc920acf129204b00867"


def test_fields_that_were_added_later_are_kept_and_told_apart_where_they_are_set() -> None:
    asked = replace(REQUEST, sampling=replace(REQUEST.sampling, logprobs=5))
    answered = replace(COMPLETION, top_logprobs={"m": -0.5}, served_by="gpt-4o fp_1")
    assert digest(asked) != digest(REQUEST) and digest(answered) != digest(COMPLETION)
    assert loads(Request, dumps(asked)) == asked and loads(Completion, dumps(answered)) == answered
    assert loads(Completion, dumps(COMPLETION)) == COMPLETION
