import pytest

from rlhf_bench.harness.engines.scripted import scripted_engine
from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.types import Completion, Message, Request

ASKED = Request("s", (Message("user", "first"), Message("assistant", "hm"), Message("user", "say 7")))
REFERENCES = {"s": "7"}


def one(name: str, request: Request) -> Completion:
    (completion,) = scripted_engine(name, lambda: REFERENCES).generate([request])
    return completion


def test_echo_says_what_the_user_said_last() -> None:
    assert one("echo", ASKED).text == "say 7"
    assert one("echo", Request("s", "Q: a\nA: b\nQ: c")).text == "Q: c"


def test_the_oracle_says_the_reference() -> None:
    assert one("oracle", ASKED).text == "7"


def test_the_oracle_finds_only_the_reference_likely() -> None:
    right = one("oracle", Request("s", "2 + 5 =", continuation=" 7", index=1))
    wrong = one("oracle", Request("s", "2 + 5 =", continuation=" 8", index=0))
    assert (right.logprob, right.greedy, right.index) == (0.0, True, 1)
    assert (wrong.logprob, wrong.greedy, wrong.index) == (-10.0, False, 0)


def test_the_oracle_fails_on_a_sample_without_a_reference() -> None:
    assert one("oracle", Request("t", "?")).finish_reason == "error"


def test_empty_says_nothing_and_fail_fails() -> None:
    assert (one("empty", ASKED).text, one("empty", ASKED).finish_reason) == ("", "stop")
    assert one("fail", ASKED).finish_reason == "error"
    assert one("fail", ASKED).why


def test_only_the_oracle_reads_the_references() -> None:
    def read() -> dict[str, str]:
        raise AssertionError("read")

    assert scripted_engine("echo", read).name == "scripted:echo"


def test_other_references_are_another_identity() -> None:
    identities = {scripted_engine("oracle", lambda a=answer: {"s": a}).identity for answer in ("7", "8")}
    assert len(identities | {scripted_engine("echo").identity}) == 3


def test_an_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'oracle'"):
        scripted_engine("orakle")


def test_an_oracle_without_references_is_a_user_error() -> None:
    with pytest.raises(UserError, match="references"):
        scripted_engine("oracle")
