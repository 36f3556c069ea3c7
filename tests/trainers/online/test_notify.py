"""Notifications: to a real command and a real server, in time, and without a word of what is secret."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.harness.config import read_config
from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.types import Verdict
from rlhf_bench.trainers.online import notify as module
from rlhf_bench.trainers.online.notify import (
    EVENT,
    LONGEST_TEXT,
    Event,
    NotifyConfig,
    check,
    decided,
    finished,
    notify,
    stopped,
)

VERDICT = Verdict(
    "promote", (), ("chat: +0.05 [0.01, 0.09]", "maths: kept"), "c" * 64, "d" * 64, "p" * 64, 0.05, {"new": "r1"}
)
DONE = finished("chat", 3, 2, "chat-2")
SECRET = "T0000/B0000/XXXXsecretXXXX"


class Hook(BaseHTTPRequestHandler):
    """Keeps what it is sent; answers by path."""

    sent: ClassVar[list[tuple[str, Any]]] = []
    over: ClassVar[threading.Event] = threading.Event()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.sent.append((self.headers["Content-Type"], json.loads(body)))
        if "slow" in self.path:
            self.over.wait(5)
        status = 500 if "broken" in self.path else 302 if "moved" in self.path else 204
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[str]:
    """The base URL of a server that keeps what it is sent in Hook.sent."""
    Hook.sent.clear()
    Hook.over.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        Hook.over.set()
        server.shutdown()
        thread.join()


def writer(path: Path) -> tuple[str, ...]:
    """A command that writes its standard input and its variable into a file."""
    code = f"import os, sys; open({str(path)!r}, 'w').write(sys.stdin.read() + '\\n' + os.environ[{EVENT!r}])"
    return sys.executable, "-c", code


def test_a_webhook_gets_the_event_as_json_with_a_text(hook: str) -> None:
    event = decided("chat", 2, 3, VERDICT, "chat-2", "chat-1")
    assert notify(NotifyConfig(webhook=f"{hook}/services/{SECRET}"), event) == []
    ((kind, told),) = Hook.sent
    assert kind == "application/json"
    assert told["event"] == "decided" and told["loop"] == "chat" and told["time"]
    assert told["text"].startswith("chat, iteration 2 of 3: PROMOTE, chat-2 is the champion. chat: +0.05")
    assert told["facts"]["candidate"] == {"name": "chat-2", "digest": "c" * 64}
    again = decided("chat", 2, 3, VERDICT, "chat-2", "chat-1", attempt=1)
    assert again.text.startswith("chat, iteration 2 of 3, retry 1: PROMOTE") and again.facts["attempt"] == 1
    assert told["facts"]["outcome"] == "promote" and told["facts"]["runs"] == {"new": "r1"}


def test_a_command_gets_the_event_on_its_input_and_in_a_variable(tmp_path: Path) -> None:
    path = tmp_path / "told"
    assert notify(NotifyConfig(command=writer(path)), DONE) == []
    on_input, in_variable = path.read_text().splitlines()
    assert on_input == in_variable
    assert json.loads(on_input)["text"] == "chat finished: 2 of 3 iterations promoted; the champion is chat-2"


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    config = NotifyConfig.model_validate({"command": f"touch '{tmp_path}/a b' ; touch {tmp_path}/c"})
    assert config.command == ("touch", f"{tmp_path}/a b", ";", "touch", f"{tmp_path}/c")
    assert NotifyConfig(command=("echo", "$HOME; rm x")).command[1] == "$HOME; rm x"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ((sys.executable, "-c", "raise SystemExit(3)"), "exit status 3"),
        (("/nowhere/at/all",), "No such file"),
        (("/",), "Permission denied"),
        (("\0",), "ValueError"),
    ],
)
def test_a_command_that_fails_is_one_line(command: tuple[str, ...], said: str) -> None:
    (line,) = notify(NotifyConfig(command=command), DONE)
    assert said in line and "\n" not in line


def test_a_command_that_reads_nothing_is_no_failure() -> None:
    assert notify(NotifyConfig(command=(sys.executable, "-c", "pass")), DONE) == []


def test_a_command_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMMAND_S", 0.5)
    late = tmp_path / "late"
    began = time.monotonic()
    (line,) = notify(NotifyConfig(command=("sh", "-c", f"(sleep 2; touch {late}) & sleep 30")), DONE)
    assert "was ended" in line and time.monotonic() - began < 10
    time.sleep(2.5)
    assert not late.exists()


@pytest.mark.parametrize(
    ("path", "said"), [("broken", "answered 500"), ("moved", "answered 302"), ("slow", "did not answer within")]
)
def test_a_webhook_that_fails_is_one_line_without_its_secrets(
    hook: str, monkeypatch: pytest.MonkeyPatch, path: str, said: str
) -> None:
    monkeypatch.setattr(module, "WEBHOOK_S", 0.5 if path == "slow" else 10.0)
    url = hook.replace("//", "//user:hunter2@") + f"/{path}/{SECRET}?token={SECRET}"
    (line,) = notify(NotifyConfig(webhook=url), DONE)
    assert said in line and hook in line
    assert SECRET not in line and "hunter2" not in line
    assert len(Hook.sent) == 1  # and a redirection is not followed


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "http://no-such-host.invalid/", "http://[::1/", "ftp://host/"])
def test_a_webhook_that_is_not_there_is_one_line_without_its_secrets(url: str) -> None:
    (line,) = notify(NotifyConfig(webhook=url + SECRET), DONE)
    assert line.startswith("notify: the webhook was not told of 'finished': ") and SECRET not in line


@given(st.text(max_size=60))
def test_no_webhook_raises_or_shows_itself(tail: str) -> None:
    (line,) = notify(NotifyConfig(webhook=f"ftp://{SECRET}{tail}"), DONE)
    assert SECRET not in line and "\n" not in line


def test_both_are_told_and_one_failure_does_not_hide_the_other(hook: str, tmp_path: Path) -> None:
    config = NotifyConfig(command=("/nowhere",), webhook=f"{hook}/broken")
    assert len(notify(config, DONE)) == 2
    assert notify(NotifyConfig(), DONE) == []


def test_the_url_may_be_kept_in_the_environment(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = NotifyConfig(webhook="env:MY_HOOK")
    monkeypatch.delenv("MY_HOOK", raising=False)
    with pytest.raises(UserError, match="MY_HOOK, which is not set"):
        check(config)
    assert "MY_HOOK" in notify(config, DONE)[0]
    monkeypatch.setenv("MY_HOOK", f"{hook}/{SECRET}")
    check(config)
    assert notify(config, DONE) == [] and len(Hook.sent) == 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (NotifyConfig(command=("no-such-program-here",)), "there is no program 'no-such-program-here'"),
        (NotifyConfig(webhook=f"htps://host/{SECRET}"), "no http:// or https:// URL"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(config: NotifyConfig, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        check(config)
    assert SECRET not in str(raised.value)


def test_a_config_file_has_both_and_its_representation_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "notify.yaml"
    path.write_text(f"command: mail -s 'the loop' me\nwebhook: https://host/{SECRET}\n")
    config = read_config(NotifyConfig, path)
    assert config.command == ("mail", "-s", "the loop", "me")
    assert SECRET not in repr(config) + config.model_dump_json()
    path.write_text("commnd: x\n")
    with pytest.raises(UserError, match="Did you mean 'command'"):
        read_config(NotifyConfig, path)


def test_a_fault_says_that_the_champion_is_untouched() -> None:
    event = stopped("chat", Fault("disk\n full"))
    assert event.text == "chat stopped: disk full. The champion is untouched; the same command goes on."
    assert event.facts == {"kind": "Fault", "why": "disk full"}
    assert "KeyboardInterrupt" in stopped("chat", KeyboardInterrupt()).text


def test_a_fault_that_names_a_url_does_not_tell_its_password() -> None:
    event = stopped("chat", Fault("cannot reach postgresql://me:hunter2@db/x?password=hunter2&a=1 now"))
    assert "hunter2" not in json.dumps(event.facts) + event.text
    assert "postgresql://***@db/x?password=***&a=1 now" in event.text


@given(st.lists(st.text(max_size=5000), max_size=30))
def test_an_event_stays_small_whatever_the_reasons(reasons: list[str]) -> None:
    verdict = Verdict("reject", (), tuple(reasons), "c", "d", "p", 0.05)
    event: Event = decided("chat", 1, 3, verdict, "a", "b")
    assert len(event.text) <= LONGEST_TEXT and "b stays the champion" in event.text
    assert len(json.dumps(event.facts)) < 50_000
