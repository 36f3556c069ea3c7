"""Models behind an OpenAI-compatible endpoint (OpenAI, vLLM, llama.cpp server, Anthropic's compatible endpoint).

One owner of retries: each attempt is classified once (reply.Kind), what may pass is tried again with full jitter (an
independent uniform wait below a doubling bound), within the item's deadline and the run's retry allowance. Retry-After
pauses every call. Failures in a row, a rejected key, an unknown model or a spent budget stop the run: calls in flight
are finished, what was answered is kept, and the same command goes on.

The key goes into one header and nowhere else. Redirects are not followed, bodies are bounded.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.engines.arrivals import Arrivals, Emit
from rlhf_bench.harness.engines.pace import DEFAULT, Limits, Pace, Stopped
from rlhf_bench.harness.engines.reply import AGAIN, SHOWN, Failed, read_refusal, read_reply
from rlhf_bench.harness.errors import Fault, Outage, RlhfBenchError, UserError
from rlhf_bench.harness.prices import Budget, Price, Usage, price_of
from rlhf_bench.harness.types import Completion, Request

PREFIX = "openai:"
OPENAI = "https://api.openai.com/v1"
KEY = "OPENAI_API_KEY"
_REASONING = re.compile(r"(o\d|gpt-5)([-.].*)?")
"""OpenAI's own models that take max_completion_tokens and no temperature."""
_POLL_S = 0.05


class OpenAIEngine:
    """Answers through POST {base}/chat/completions, or {base}/completions for a prompt that is text.

    `model` is asked for by this id and must be what answers, unless `any_model`. `key_env` names the variable that
    holds the key, which an engine that is only planned with (`keyless`) does without. `identity` covers base URL, model
    and `revision`, which pins what the id alone does not (a build, a fingerprint). `usage` counts what this process was
    answered; `cost` is its price.
    Raises UserError for a base URL that is none or that holds credentials, for OpenAI without a key, and for a budget
    on a model whose price is unknown.
    """

    def __init__(
        self,
        model: str,
        base: str | None = None,
        *,
        key_env: str = KEY,
        revision: str = "",
        any_model: bool = False,
        limits: Limits = DEFAULT,
        budget: Budget | None = None,
        price: Price | None = None,
        keyless: bool = False,
    ) -> None:
        self.model = model
        self.base = _checked_base(base or os.environ.get("OPENAI_BASE_URL") or OPENAI)
        self.price = price or price_of(model)
        self.limits = limits
        self.usage = Usage()
        self.unsure = 0.0
        self._any_model = any_model
        self._revision = revision
        self._budget = budget
        self._key = os.environ.get(key_env, "").strip()
        self._served: set[str] = set()
        if not model or not model.isprintable():
            raise UserError("the model's id is empty: write openai:MODEL or openai:MODEL@https://host/v1")
        if not self._key and self.base == OPENAI and not keyless:
            raise UserError(f"{OPENAI} needs a key: set {key_env}, or name another endpoint, openai:MODEL@URL")
        if not self._key.isascii() or not self._key.isprintable():
            raise UserError(f"{key_env} does not hold a key: it has characters that no key has")
        if budget is not None and self.price is None:
            raise UserError(f"unknown price of {model}, so no budget can hold: add it to a table, RLHF_BENCH_PRICES")

    @classmethod
    def of(cls, spec: str, **options: Any) -> OpenAIEngine:
        """The engine of `openai:MODEL[@BASE_URL]`. A model's id may hold "@" itself."""
        model, *base = re.split(r"@(?=https?://)", spec.removeprefix(PREFIX), maxsplit=1)
        return cls(model, *base, **options)

    @property
    def name(self) -> str:
        """`openai:MODEL`, and the endpoint if it is not OpenAI's."""
        return f"{PREFIX}{self.model}" + (f"@{self.base}" if self.base != OPENAI else "")

    @property
    def checkpoint(self) -> str:
        """Stands where other engines name their weights."""
        return self.name

    @property
    def identity(self) -> str:
        """A digest of the endpoint, the model's id and the revision."""
        return digest(["openai", self.base, self.model, self._revision])

    @property
    def manifest(self) -> dict[str, str]:
        """What a report says about this engine; after answers, also who gave them, their tokens and cost."""
        about = {"engine": "openai", "base_url": self.base, "model": self.model, "revision": self._revision}
        if self._served:
            about["served_by"] = ", ".join(sorted(self._served))
        if self.usage.calls:
            used = self.usage
            about["usage"] = f"{used.calls} calls, {used.input} tokens in ({used.cached} cached), {used.output} out"
            about["cost"] = self.cost
        return about

    @property
    def cost(self) -> str:
        """What this process's calls cost, for people."""
        if self.price is None:
            return "unknown price"
        unsure = f" and up to ${self.unsure:.4f} for calls that failed" if self.unsure else ""
        return f"${self.price.of(self.usage):.4f}{unsure}"

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """One completion for each request as they finish; the iterator is an engines.Ready.

        An item that fails for good is a completion with finish_reason "error" and its kind in `why`. Raises Fault or
        UserError, after all that was answered, where the run stops.
        """
        return Arrivals(lambda emit: _Calls(self, requests, emit).run())

    def _note(self, completion: Completion, usage: Usage) -> None:
        self.usage += usage
        if completion.served_by and len(self._served) < 20:
            self._served.add(completion.served_by)


class _Calls:
    """The calls of one `generate`, in one event loop."""

    def __init__(self, engine: OpenAIEngine, requests: Sequence[Request], emit: Emit) -> None:
        self._engine = engine
        self._limits = engine.limits
        self._requests = requests
        self._emit = emit
        self._pace = Pace(engine.limits, len(requests))
        self._reasons = engine.base == OPENAI and _REASONING.fullmatch(engine.model) is not None

    async def run(self) -> None:
        """Ask all, with as many workers as calls may be in flight. Raises what stopped the run."""
        requests = iter(self._requests)
        async with self._open() as self._session:
            count = min(self._limits.concurrency, len(self._requests))
            workers = [asyncio.create_task(self._worker(requests)) for _ in range(count)]
            stopping = asyncio.create_task(self._drained(workers))
            try:
                await asyncio.gather(*workers)
            except asyncio.CancelledError:
                if self._pace.stop_error is None:
                    raise
            finally:
                for task in (stopping, *workers):
                    task.cancel()
                await asyncio.gather(stopping, *workers, return_exceptions=True)
        if self._pace.stop_error is not None:
            raise self._pace.stop_error

    async def _drained(self, workers: Sequence[asyncio.Task[None]]) -> None:
        """Once the run stops, what is in flight has `drain_s` to come home."""
        await self._pace.rest(math.inf)
        await asyncio.sleep(self._limits.drain_s)
        for worker in workers:
            worker.cancel()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[aiohttp.ClientSession]:
        host = urlsplit(self._engine.base)
        key = self._engine._key
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        connector = aiohttp.TCPConnector(limit=self._limits.concurrency, ttl_dns_cache=300)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._limits.connect_s)
        self._proxy = None if proxy_bypass(host.hostname or "") else getproxies().get(host.scheme)
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            headers=headers | ({"Authorization": f"Bearer {key}"} if key else {}),
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            yield session

    async def _worker(self, requests: Iterator[Request]) -> None:
        try:
            for request in requests:
                await self._emit(await self._answer(request))
        except Stopped:
            pass

    async def _answer(self, request: Request) -> Completion:
        """The answer to one request, after as many attempts as it is worth. Raises Stopped."""
        place = request.sample_id, request.index
        if request.continuation is not None:
            why = f"{self._engine.name} cannot score a given continuation: use a local model"
            return Completion(*place, "", "error", 0, why=why)
        if request.sampling.function and isinstance(request.prompt, str):
            why = f"{self._engine.name} cannot call a function after a text: ask in a conversation"
            return Completion(*place, "", "error", 0, why=why)
        payload = json.dumps(payload_of(self._engine.model, request, self._reasons)).encode()
        deadline = math.inf
        failure: Failed | None = None
        attempt = 0
        while True:
            await self._pace.enter()
            started = time.monotonic()
            deadline = min(deadline, started + self._limits.deadline_s)
            if failure is not None and started >= deadline:  # its turn came too late: a call could only be wasted
                self._pace.leave()
                return Completion(*place, "", "error", 0, why=self._redacted(str(failure)))
            try:
                completion = await self._paid(request, payload, min(self._limits.attempt_s, deadline - started))
                self._pace.answered()
                return completion
            except Failed as error:
                failure = error
            finally:
                self._pace.leave()
            wait_s = random.uniform(0, min(self._limits.backoff_cap_s, self._limits.backoff_s * 2**attempt))
            self._learn(failure, started)
            late = time.monotonic() + max(wait_s, failure.wait_s) >= deadline
            if failure.kind == "throttled" and late and not self._pace.stop_error:
                self._stop(f"{self._engine.base} let nothing through for {self._limits.deadline_s:.0f} s", failure)
            if not self._again(failure, late):
                return Completion(*place, "", "error", 0, why=self._redacted(str(failure)))
            await self._pace.rest(wait_s)
            attempt += 1

    def _again(self, failure: Failed, late: bool) -> bool:
        """Whether this item is tried again. What the server only put off costs nothing of the allowance."""
        if failure.kind not in AGAIN or late:
            return False
        return failure.kind == "throttled" or self._pace.retry()

    def _learn(self, failure: Failed, started: float) -> None:
        """What a failure says about all calls."""
        if failure.kind == "throttled":
            self._pace.objected(started, failure.wait_s)
            if "insufficient_quota" in failure.text:
                self._stop("the account has no credit left", failure, Fault)
            if failure.wait_s > self._limits.pause_s:
                self._stop(f"{self._engine.base} wants no call for {failure.wait_s:.0f} s", failure)
        elif failure.kind == "rejected" and re.match("HTTP (401|402|403|404)", failure.text):
            self._stop(f"{self._engine.base} takes neither this key nor this model", failure, UserError)
        elif failure.kind != "content filter" and self._pace.failed():
            self._stop(f"{self._engine.base} failed {self._pace.in_a_row} times in a row", failure)

    def _stop(self, what: str, failure: Failed, kind: type[RlhfBenchError] = Outage) -> None:
        text = self._redacted(f"{what} ({failure}); what was answered is kept: run the same to go on")
        self._pace.stop(kind(text))

    async def _paid(self, request: Request, payload: bytes, limit_s: float) -> Completion:
        """One attempt within the budget. Raises Failed, or Stopped where the budget has no room for it."""
        budget, price = self._engine._budget, self._engine.price
        most = price.most(request) if price else 0.0
        while budget is not None and not budget.reserve(most):
            if budget.calls == 0:
                self._pace.stop(
                    UserError(
                        f"the budget of ${budget.usd:.2f} has no room for another call (${budget.spent:.4f} spent, "
                        f"the next may cost ${most:.4f}); what was answered is kept: raise it and run the same to go on"
                    )
                )
            if self._pace.stop_error is not None:
                raise Stopped
            await asyncio.sleep(_POLL_S)
        cost = most  # a call that was cut off may be billed in full
        try:
            completion, usage = await self._attempt(request, payload, limit_s)
            cost = price.of(usage) if price and (usage.input or usage.output) else most
            self._engine._note(completion, usage)
            return completion
        except Failed as failure:
            if not failure.billed:
                cost = 0.0
            elif failure.usage is not None and price and failure.usage.input:
                cost = price.of(failure.usage)
                self._engine.usage += failure.usage
            else:
                self._engine.unsure += most
            raise
        finally:
            if budget is not None:
                budget.settle(most, cost)

    async def _attempt(self, request: Request, payload: bytes, limit_s: float) -> tuple[Completion, Usage]:
        """One call. Raises Failed."""
        kind = "completions" if isinstance(request.prompt, str) else "chat/completions"
        try:
            async with (
                asyncio.timeout(max(limit_s, 0.001)),
                self._session.post(
                    f"{self._engine.base}/{kind}", data=payload, allow_redirects=False, proxy=self._proxy
                ) as response,
            ):
                body = await self._body(response)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            raise Failed("transport", f"no connection: {_said(error)}") from None
        except TimeoutError:
            raise Failed("transport", f"no whole reply within {limit_s:.1f} s", billed=True) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Failed("transport", f"the connection broke off: {_said(error)}", billed=True) from None
        if response.status == 200:
            return read_reply(body, request, self._engine.model, self._engine._any_model)
        raise read_refusal(response.status, body, retry_after(response.headers.get("Retry-After")))

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > self._limits.body_bytes:
                response.close()
                raise Failed("unparseable", f"the body is longer than {self._limits.body_bytes} bytes", billed=True)
        return bytes(body)

    def _redacted(self, text: str) -> str:
        return redacted(text, self._engine._key)


def payload_of(model: str, request: Request, reasons: bool) -> dict[str, Any]:
    """The body that asks `request`; what is at its default and optional is left out. `reasons`: for such a model."""
    sampling = request.sampling
    body: dict[str, Any] = {"model": model, "max_completion_tokens" if reasons else "max_tokens": sampling.max_tokens}
    if not reasons:
        body["temperature"] = sampling.temperature
    if sampling.top_p != 1.0:
        body["top_p"] = sampling.top_p
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.seed:
        body["seed"] = sampling.seed
    if isinstance(request.prompt, str):
        return body | {"prompt": request.prompt} | ({"logprobs": sampling.logprobs} if sampling.logprobs else {})
    if sampling.logprobs:
        body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    if sampling.function:
        body |= json.loads(sampling.function)
    return body | {"messages": [{"role": each.role, "content": each.content} for each in request.prompt]}


def redacted(text: str, key: str) -> str:
    """The text without the key, and without anything else that looks like one."""
    text = text.replace(key, "***") if len(key) > 5 else text  # what local servers take for a key may be a word
    return re.sub(r"(?i)\b(sk-|bearer\s+)[\w.*~+/-]{6,}", r"\1***", text)


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, given as seconds or as a date; None if it says nothing readable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except (ValueError, TypeError):
            return None
        seconds = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if seconds == seconds else None


def _checked_base(base: str) -> str:
    parts = urlsplit(base)
    try:
        port_is_one = parts.port is None or parts.port > 0
    except ValueError:
        port_is_one = False
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(f"the URL of {parts.hostname} holds more than a place: a key belongs in {KEY}")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_one:
        raise UserError(f"'{base}' is no endpoint: write openai:MODEL@https://host/v1")
    return base.rstrip("/")


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:SHOWN]
