"""What the API engine promises: a server's fault loses nothing, invents nothing and is named; nothing is paid twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from rlhf_bench.harness.engines.arrivals import BEHIND
from rlhf_bench.harness.engines.openai import OpenAIEngine, redacted, retry_after
from rlhf_bench.harness.engines.pace import Limits
from rlhf_bench.harness.engines.stored import stored_or_asked, unanswered
from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.models import open_engine
from rlhf_bench.harness.prices import Budget, Price
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Completion, Message, Request, Sampling

DRIVER = Path(__file__).with_name("openai_process.py")
QUICK = Limits(concurrency=4, attempt_s=0.4, deadline_s=2.5, backoff_s=0.01, extra_floor=2, body_bytes=1 << 20)
_unique = count()


def request(text: str, **sampling: Any) -> Request:
    """A request that no other test sends."""
    number = next(_unique)
    return Request(f"s/{number}", (Message("user", f"{number} {text}"),), Sampling(**sampling))


def asked(engine: OpenAIEngine, *requests: Request) -> dict[str, Completion]:
    """The completion of each request by its id; one each."""
    found = list(engine.generate(requests))
    assert sorted(c.sample_id for c in found) == sorted(r.sample_id for r in requests)
    return {completion.sample_id: completion for completion in found}


def prompt(request: Request) -> str:
    assert not isinstance(request.prompt, str)
    return request.prompt[-1].content


@pytest.mark.parametrize(
    ("fault", "why", "calls"),
    [
        ("garbage", "transport: the connection broke off", 3),
        ("close", "transport: the connection broke off", 3),
        ("close_mid_body", "transport: the connection broke off", 3),
        ("hang", "transport: no whole reply within 0.4 s", 3),
        ("slow_loris", "transport: no whole reply within 0.4 s", 3),
        ("not_json", "unparseable: the body is not JSON: '<html>it works</html>'", 3),
        ("nan", "unparseable: the body is not JSON", 3),
        ("deep", "unparseable: the body is not JSON", 3),
        ("huge", "unparseable: the body is longer than 1048576 bytes", 3),
        ("no_choices", "unparseable: 'choices' is empty", 3),
        ("null_content", "unparseable: the message has no text", 3),
        ("number_content", "unparseable: the message has no text", 3),
        ("e500", "server: HTTP 500: boom", 3),
        ("e503", "server: HTTP 503: overloaded", 3),
        ("e400", "rejected: HTTP 400: bad parameter", 1),
        ("redirect", "rejected: HTTP 307: it redirects", 1),
        ("filter_400", "content filter: HTTP 400", 1),
        ("filtered", "content filter: the server withheld the answer", 1),
        ("other_model", "other model: asked for stub, answered by some-other-model", 1),
        ("no_logprobs", "logprobs missing: the server gave none for the first token", 1),
    ],
)
def test_a_fault_is_named_and_costs_its_own_item_alone(stub: Any, fault: str, why: str, calls: int) -> None:
    before, bad, after = (
        request("alpha", logprobs=5),
        request(f"fault:{fault}", logprobs=5),
        request("omega", logprobs=5),
    )
    found = asked(OpenAIEngine("stub", stub.url, limits=QUICK), before, bad, after)
    assert found[bad.sample_id].finish_reason == "error"
    assert found[bad.sample_id].why.startswith(why)
    assert found[bad.sample_id].text == ""
    assert [found[r.sample_id].text for r in (before, after)] == ["alpha", "omega"]
    assert [stub.calls()[prompt(r)] for r in (before, bad, after)] == [1, calls, 1]


@pytest.mark.parametrize("fault", ["garbage", "close_mid_body", "not_json", "no_choices", "e500", "hang"])
def test_a_fault_that_passes_is_answered(stub: Any, fault: str) -> None:
    flaky = request(f"fault:{fault}:2 fine")
    found = asked(OpenAIEngine("stub", stub.url, limits=QUICK), flaky)
    assert (found[flaky.sample_id].text, stub.calls()[prompt(flaky)]) == ("fine", 3)


def test_what_is_an_answer_though_odd_is_kept_and_told_apart(stub: Any) -> None:
    cut, refused, half, dated, usage = (
        request(f"fault:{name}") for name in ("truncated", "refused", "surrogate", "dated_model", "bad_usage")
    )
    found = asked(OpenAIEngine("stub", stub.url, limits=QUICK), cut, refused, half, dated, usage)
    assert found[cut.sample_id].finish_reason == "length"
    assert (found[refused.sample_id].text, found[refused.sample_id].why) == ("I will not", "refused")
    assert found[half.sample_id].text == "half \ufffd"
    assert found[dated.sample_id].served_by == "stub-2024-08-06 fp_stub"
    assert found[usage.sample_id].tokens == 0
    assert all(completion.finish_reason != "error" for completion in found.values())


def test_another_model_is_taken_where_that_is_allowed(stub: Any) -> None:
    other = request("fault:other_model")
    found = asked(OpenAIEngine("stub", stub.url, any_model=True), other)[other.sample_id]
    assert (found.finish_reason, found.served_by) == ("stop", "some-other-model fp_stub")


def test_logprobs_and_text_prompts_reach_the_server_and_come_back(stub: Any) -> None:
    chat, text = request("m", logprobs=5), Request("text", "continue this", Sampling(logprobs=2))
    found = asked(OpenAIEngine("stub", stub.url), chat, text)
    for each in (chat, text):
        assert found[each.sample_id].top_logprobs == pytest.approx({"m": -0.28768, "M": -1.38629}, abs=1e-5)
    assert found["text"].text == "this"


@pytest.mark.parametrize("fault", ["throttle", "throttle_date"])
def test_retry_after_pauses_every_call_and_costs_no_retry(slow_stub: Any, fault: str) -> None:
    limits = Limits(concurrency=1, deadline_s=10, extra_floor=0, extra=0, backoff_s=0.01)
    first, second = request(f"fault:{fault}:1 one"), request("two")
    found = asked(OpenAIEngine("stub", slow_stub.url, limits=limits), first, second)
    assert [found[r.sample_id].text for r in (first, second)] == ["one", "two"]
    starts = slow_stub.load()["starts"]
    assert starts[1] - starts[0] > 0.9, "the call after the 429 waits as long as Retry-After says"


def test_throttling_halves_what_is_in_flight(slow_stub: Any) -> None:
    limits = Limits(concurrency=64, backoff_s=0.01, deadline_s=20)
    several = [request("fault:throttle_bare:1 x") for _ in range(24)]
    found = asked(OpenAIEngine("stub", slow_stub.url, limits=limits), *several)
    assert {completion.text for completion in found.values()} == {"x"}
    assert slow_stub.load()["most"] <= 8
    assert all(slow_stub.calls()[prompt(each)] == 2 for each in several)


def test_the_number_in_flight_grows_to_the_limit_and_never_past_it(slow_stub: Any) -> None:
    asked(OpenAIEngine("stub", slow_stub.url, limits=Limits(concurrency=40)), *(request("x") for _ in range(300)))
    assert 32 <= slow_stub.load()["most"] <= 40


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        ("e500", Fault, "failed 5 times in a row"),
        ("other_model", Fault, "failed 5 times in a row"),
        ("no_logprobs", Fault, "failed 5 times in a row"),
        ("e401", UserError, "takes neither this key nor this model"),
        ("e404", UserError, "takes neither this key nor this model"),
        ("quota", Fault, "the account has no credit left"),
        ("throttle_day", Fault, "wants no call for 86400 s"),
        ("throttle_bare", Fault, "let nothing through for 0 s"),
    ],
)
def test_a_server_that_only_fails_stops_the_run_in_one_line(
    stub: Any, store: Store, fault: str, error: type[Exception], text: str
) -> None:
    limits = Limits(concurrency=2, backoff_s=0.01, failures_in_a_row=5, deadline_s=0.3, attempt_s=0.3)
    engine = OpenAIEngine("stub", stub.url, limits=limits)
    good = request("good")
    bad = [request(f"fault:{fault} {number}", logprobs=5) for number in range(40)]
    with pytest.raises(error, match=text) as raised:
        list(stored_or_asked([good, *bad], engine, store))
    assert "\n" not in str(raised.value) and "what was answered is kept" in str(raised.value)
    assert good not in unanswered([good], engine, store), "what was answered before the stop is stored"
    assert sum(stub.calls().get(prompt(each), 0) for each in bad) < 25


def test_a_server_that_is_not_there_stops_the_run() -> None:
    engine = OpenAIEngine("stub", "http://127.0.0.1:9/v1", limits=Limits(backoff_s=0.01))
    with pytest.raises(Fault, match="no connection"):
        list(engine.generate([request("x") for _ in range(50)]))


def test_retries_are_a_tenth_and_a_small_floor_at_most(stub: Any) -> None:
    limits = Limits(concurrency=2, backoff_s=0.001, extra_floor=3, extra=0.1, failures_in_a_row=10**6)
    bad = [request(f"fault:e500 {number}") for number in range(50)]
    asked(OpenAIEngine("stub", stub.url, limits=limits), *bad)
    calls = stub.calls()
    assert sum(calls[prompt(each)] for each in bad) == 50 + 3 + 5


def test_the_key_is_sent_and_written_nowhere(
    stub: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    engine = OpenAIEngine("stub", stub.url, limits=QUICK)
    with pytest.raises(UserError) as raised:
        list(engine.generate([request("fault:e401")]))
    assert "Incorrect API key provided: Bearer ***" in str(raised.value)
    assert key not in str(raised.value) + str(engine.manifest) + engine.name + engine.identity + caplog.text
    assert redacted(f"x {key} Bearer abcdefghij sk-proj-12345678", key) == "x *** Bearer *** sk-***"


@pytest.mark.parametrize(
    "base", ["http://user:pass@host/v1", "https://host/v1?key=abc", "ftp://host", "http://", "host"]
)
def test_a_base_url_that_is_none_or_holds_a_secret_is_refused_without_showing_it(base: str) -> None:
    with pytest.raises(UserError) as raised:
        OpenAIEngine("m", base)
    assert "pass" not in str(raised.value) and "abc" not in str(raised.value)


def test_a_spec_names_model_and_endpoint(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    engine = open_engine("openai:@cf/meta/llama@http://localhost:8000/v1/", store)
    assert isinstance(engine, OpenAIEngine)
    assert (engine.model, engine.base) == ("@cf/meta/llama", "http://localhost:8000/v1")
    assert engine.name == "openai:@cf/meta/llama@http://localhost:8000/v1"
    assert engine.identity != OpenAIEngine("other", engine.base).identity
    assert engine.identity != OpenAIEngine(engine.model, engine.base, revision="fp_1").identity
    with pytest.raises(UserError, match="set OPENAI_API_KEY"):
        open_engine("openai:gpt-4o", store)


def test_a_continuation_is_refused_without_a_call(stub: Any) -> None:
    scored = Request("c", f"unasked {next(_unique)}", continuation="yes")
    found = asked(OpenAIEngine("stub", stub.url), scored)["c"]
    assert found.finish_reason == "error" and "cannot score" in found.why
    assert scored.prompt not in stub.calls()


def test_a_budget_stops_before_it_is_exceeded_and_the_run_goes_on_with_more(stub: Any, store: Store) -> None:
    price = Price(input=1000.0, cached=1000.0, output=1000.0)
    several = [request("budget", max_tokens=10) for _ in range(60)]
    budget = Budget(0.1)
    engine = OpenAIEngine("stub", stub.url, price=price, budget=budget)
    with pytest.raises(UserError, match=r"the budget of \$0.10 has no room for another call"):
        list(stored_or_asked(several, engine, store))
    left = unanswered(several, engine, store)
    assert 0 < len(left) < 60
    assert budget.usd - price.most(several[0]) < budget.spent <= budget.usd
    assert budget.spent == pytest.approx(price.of(engine.usage))
    richer = OpenAIEngine("stub", stub.url, price=price, budget=Budget(10.0))
    answered = dict(stored_or_asked(several, richer, store))
    assert len(answered) == 60 and richer.usage.calls == len(left)
    assert all(stub.calls()[prompt(each)] == 1 for each in several)


def test_a_budget_for_an_unknown_price_is_refused(stub: Any) -> None:
    with pytest.raises(UserError, match="unknown price of stub"):
        OpenAIEngine("stub", stub.url, budget=Budget(1.0))


def test_a_call_that_was_cut_off_counts_against_the_budget_in_full(stub: Any) -> None:
    price, budget = Price(1.0, 1.0, 1.0), Budget(1.0)
    engine = OpenAIEngine("stub", stub.url, price=price, budget=budget, limits=QUICK)
    cut = request("fault:close_mid_body")
    asked(engine, cut)
    assert budget.spent == pytest.approx(3 * price.most(cut)) == pytest.approx(engine.unsure)


def test_a_killed_run_pays_only_for_what_was_in_flight_again(slow_stub: Any, tmp_path: Path) -> None:
    n, url = 300, f"sqlite:///{tmp_path}/store.db"
    command = [sys.executable, str(DRIVER), slow_stub.url, url, str(n)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        shown = [process.stdout.readline() for _ in range(120)]
        process.send_signal(signal.SIGKILL)
    assert all(shown)
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert len(finished.stdout.split()) == n
    calls = slow_stub.calls()
    assert len(calls) == n
    assert n <= sum(calls.values()) <= n + 4 * 16, "what was in flight, and on its way to the disk"
    assert max(calls.values()) <= 2
    third = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert third.stdout.split() and slow_stub.calls() == calls


def test_two_processes_may_share_a_store(slow_stub: Any, tmp_path: Path) -> None:
    command = [sys.executable, str(DRIVER), slow_stub.url, f"sqlite:///{tmp_path}/store.db", "60"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [len(output.split()) for output in outputs] == [60, 60]


def hears_ctrl_c() -> None:
    """A shell starts what runs in the background deaf to it, and all that starts from there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_ends_the_calls_and_keeps_the_answers(slow_stub: Any, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    command = [sys.executable, str(DRIVER), slow_stub.url, url, "2000"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=hears_ctrl_c) as process:
        assert process.stdout is not None and process.stderr is not None
        shown = [process.stdout.readline().strip() for _ in range(40)]
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        process.communicate(timeout=10)
    assert time.monotonic() - started < 5 and process.returncode != 0
    engine = OpenAIEngine("stub", slow_stub.url)
    with Store(url) as store:
        left = {each.sample_id for each in unanswered(_driver_requests(2000), engine, store)}
    assert not left & set(shown)


def test_a_caller_that_falls_behind_is_waited_for(slow_stub: Any) -> None:
    engine = OpenAIEngine("stub", slow_stub.url, limits=Limits(concurrency=64))
    answers = engine.generate([request("x") for _ in range(1200)])
    next(answers)
    time.sleep(1.5)
    assert BEHIND < sum(slow_stub.calls().values()) <= 1 + BEHIND + 2 * 64
    assert sum(1 for _ in answers) == 1199


def test_what_came_before_an_interruption_is_stored_though_nobody_took_it(stub: Any, store: Store) -> None:
    engine, several = OpenAIEngine("stub", stub.url), [request("x") for _ in range(200)]
    answers = stored_or_asked(several, engine, store)
    next(answers)
    time.sleep(0.5)
    answers.close()  # type: ignore[attr-defined]
    paid = sum(stub.calls().get(prompt(each), 0) for each in several)
    assert paid > 100 and len(unanswered(several, engine, store)) == 200 - engine.usage.calls


def test_an_iterator_that_is_dropped_leaves_no_thread(slow_stub: Any) -> None:
    before = threading.active_count()
    answers = OpenAIEngine("stub", slow_stub.url).generate([request("x") for _ in range(200)])
    next(answers)
    assert threading.active_count() == before + 1
    del answers
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("2.5", 2.5), ("-1", 0.0), ("soon", None), ("nan", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds


def test_what_is_asked_is_the_request_and_nothing_else() -> None:
    engine = OpenAIEngine("m", "http://localhost:1/v1")
    from rlhf_bench.harness.engines.openai import payload_of

    plain = payload_of(engine.model, Request("s", (Message("user", "hi"),)), reasons=False)
    assert plain == {
        "model": "m",
        "max_tokens": 256,
        "temperature": 0.0,
        "messages": [{"role": "user", "content": "hi"}],
    }
    sampling = Sampling(1, 1.0, 0.9, ("\n",), 3, 5)
    full = payload_of("o3", Request("s", (Message("user", "hi"),), sampling), reasons=True)
    assert json.dumps(full, sort_keys=True) == json.dumps(
        {
            "logprobs": True,
            "max_completion_tokens": 1,
            "messages": [{"content": "hi", "role": "user"}],
            "model": "o3",
            "seed": 3,
            "stop": ["\n"],
            "top_logprobs": 5,
            "top_p": 0.9,
        }
    )


def _driver_requests(n: int) -> list[Request]:
    return [Request(f"k/{number}", (Message("user", f"kill number {number}"),)) for number in range(n)]
