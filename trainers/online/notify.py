"""Notifications: what a loop that runs for days tells its owner, by a command or a webhook of the owner's.

An event goes as JSON to the command's standard input and to the webhook, where its `text` is a whole sentence that
Slack and its like show as it stands:

    {"event": "decided", "loop": "chat", "text": "chat, iteration 2 of 3: promote …", "time": "…", "facts": {…}}

A notification that fails is a line for whoever started the loop, and nothing else: the loop goes on. Webhook URLs are
secrets: what is said of one is its scheme and host.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from textwrap import shorten
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import SecretStr, field_validator

from rlhf_bench.harness.codec import plain
from rlhf_bench.harness.config import Config
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Verdict

EVENT = "RLHF_BENCH_EVENT"
"""The environment variable that a command finds the event in, beside its standard input."""
FROM_ENVIRONMENT = "env:"
COMMAND_S = 60.0
WEBHOOK_S = 10.0
LONGEST_TEXT = 2000
"""Characters: what a system's largest environment variable and a chat's longest message have room for."""
LONGEST_REASON = 300
MOST_REASONS = 10
_SECRET = re.compile(r"(?<=://)[^\s/]*(?=@)|(?i:(?<=password=)|(?<=token=)|(?<=secret=)|(?<=api_key=))[^&\s'\"]+")


class NotifyConfig(Config):
    """Who is told: `command`, run without a shell, and `webhook`, an http(s) URL that is sent a POST.

    A command written as one text is split as a shell would split it. The webhook may be `env:NAME`: the variable NAME
    holds the URL, so that no file does.
    """

    command: tuple[str, ...] = ()
    webhook: SecretStr | None = None

    @field_validator("command", mode="before")
    @classmethod
    def _split(cls, command: object) -> object:
        return shlex.split(command) if isinstance(command, str) else command


@dataclass(frozen=True, slots=True)
class Event:
    """Something that its owner would want to know of a loop. `text` says it whole; `facts` are for programs."""

    event: Literal["decided", "stopped", "finished"]
    loop: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    time: str = ""


def decided(
    loop: str, number: int, of: int, verdict: Verdict, candidate: str, champion: str, *, attempt: int = 0
) -> Event:
    """Iteration `number` was decided; `candidate` and `champion` are what people call them, `attempt` is its retry."""
    reasons = [shorten(reason, LONGEST_REASON, placeholder="…") for reason in verdict.reasons[:MOST_REASONS]]
    kept = f"{candidate} is the champion" if verdict.outcome == "promote" else f"{champion} stays the champion"
    place = f"iteration {number} of {of}{f', retry {attempt}' if attempt else ''}"
    text = f"{loop}, {place}: {verdict.outcome.upper()}, {kept}. {'; '.join(reasons)}"
    facts = {
        "iteration": number,
        "of": of,
        "attempt": attempt,
        "outcome": verdict.outcome,
        "reasons": reasons,
        "candidate": {"name": candidate, "digest": verdict.candidate},
        "champion": {"name": champion, "digest": verdict.champion},
        "runs": dict(verdict.runs),
    }
    return _event("decided", loop, text, facts)


def stopped(loop: str, error: BaseException) -> Event:
    """The loop ended by a fault, a mistake or an interruption; the champion is as it was, and it can go on."""
    why = _SECRET.sub("***", " ".join(str(error).split())) or type(error).__name__
    text = f"{loop} stopped: {why}. The champion is untouched; the same command goes on."
    return _event("stopped", loop, text, {"kind": type(error).__name__, "why": shorten(why, LONGEST_TEXT)})


def finished(loop: str, iterations: int, promoted: int, champion: str) -> Event:
    """All iterations are decided."""
    text = f"{loop} finished: {promoted} of {iterations} iterations promoted; the champion is {champion}"
    return _event("finished", loop, text, {"iterations": iterations, "promoted": promoted, "champion": champion})


def _event(event: Literal["decided", "stopped", "finished"], loop: str, text: str, facts: Mapping[str, Any]) -> Event:
    return Event(event, loop, shorten(text, LONGEST_TEXT, placeholder="…"), facts, datetime.now(UTC).isoformat())


def check(config: NotifyConfig) -> None:
    """Raise UserError where the command is not there or the webhook is no http(s) URL. It sends nothing."""
    if config.command and shutil.which(config.command[0]) is None:
        raise UserError(f"notify.command: there is no program '{config.command[0]}' here; give its full path")
    if config.webhook is not None and _parts(_url(config.webhook)) is None:
        raise UserError("notify.webhook is no http:// or https:// URL: give one, or env:NAME of a variable with it")


def notify(config: NotifyConfig, event: Event) -> list[str]:
    """Tell the event to the command and the webhook; what failed comes back, a line each. It raises nothing.

    Takes at most COMMAND_S and WEBHOOK_S seconds.
    """
    text = json.dumps(plain(event))
    failed = []
    if config.command and (why := _run(config.command, text)):
        failed.append(f"notify: the command '{config.command[0]}' was not told of '{event.event}': {why}")
    if config.webhook is not None and (why := _send(config.webhook, text)):
        failed.append(f"notify: the webhook was not told of '{event.event}': {why}")
    return failed


def _run(command: tuple[str, ...], text: str) -> str:
    """Why the command failed; "" where it did not. It is a process group of its own, and all of it ends in time."""
    environment = os.environ | {EVENT: text}
    quiet = subprocess.DEVNULL
    try:
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, env=environment, start_new_session=True
        ) as process:
            try:
                process.communicate(text.encode(), timeout=COMMAND_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return f"it took more than {COMMAND_S:.0f} s and was ended"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or type(error).__name__
    return f"exit status {process.returncode}" if process.returncode else ""


def _send(webhook: SecretStr, text: str) -> str:
    """Why the webhook failed; "" where it did not. No word of what the URL holds beside its host."""
    from aiohttp import ClientError  # here: the settings of a loop are read without it

    try:
        url = _url(webhook)
    except UserError as error:
        return str(error)
    where = _parts(url)
    if where is None:
        return "it is no http:// or https:// URL"
    try:
        status = asyncio.run(_post(url, text))
    except TimeoutError:
        return f"{where} did not answer within {WEBHOOK_S:.0f} s"
    except (ClientError, OSError, ValueError) as error:
        return f"{where} is not reached ({type(error).__name__})"
    return "" if 200 <= status < 300 else f"{where} answered {status}"


async def _post(url: str, text: str) -> int:
    """The status of the answer; its body is not read, and a redirection is not followed."""
    from aiohttp import ClientSession, ClientTimeout

    headers = {"Content-Type": "application/json"}
    async with (
        ClientSession(timeout=ClientTimeout(total=WEBHOOK_S), trust_env=True) as session,
        session.post(url, data=text.encode(), headers=headers, allow_redirects=False) as answer,
    ):
        return answer.status


def _url(webhook: SecretStr) -> str:
    """The URL, out of the environment where it is kept there. Raises UserError where it is not."""
    given = webhook.get_secret_value()
    name = given.removeprefix(FROM_ENVIRONMENT)
    if name == given or not name.isidentifier():
        return given
    if not os.environ.get(name):
        raise UserError(f"notify.webhook is in the variable {name}, which is not set: export {name}=https://…")
    return os.environ[name]


def _parts(url: str) -> str | None:
    """Scheme and host, which may be shown; None where it is no http(s) URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not host:
        return None
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}"
