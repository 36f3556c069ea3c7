"""A judge behind an API, in this process, that goes away and comes back: what an outage is to a loop."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Outage = Literal["refuse", "503", "hang"]


class Endpoint:
    """An OpenAI-compatible judge at `url`; `answered` counts by prompt what it answered.

    What it says hangs on the prompt alone: the same question has the same answer, before an outage and after it.
    """

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._outage: Outage | None = None
        self._left, self._times = 0, math.inf
        self._mended = threading.Event()
        self._port = 0
        self._closing: threading.Thread | None = None
        self._open()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def fail(self, how: Outage, after: int, times: float = math.inf) -> None:
        """Answer `after` more calls, and then `times` of them not: no connection, status 503, or no word."""
        self._mended.clear()
        self._outage, self._left, self._times = how, after, times

    def mend(self) -> None:
        """Answer again."""
        self._outage = None
        self._mended.set()
        if self._closing is not None:
            self._closing.join()
            self._closing = None
            self._open()

    def close(self) -> None:
        """End for good."""
        self.mend()
        self._shut(self._server)

    def _shut(self, server: ThreadingHTTPServer | None) -> None:
        if server is not None:
            server.shutdown()
            server.server_close()
            self._server = None

    def answer(self, asked: Any) -> tuple[int, dict[str, Any]] | None:
        """The status and the body; None where the connection is to break off."""
        with self._lock:
            out, self._left = self._outage is not None and -self._times < self._left <= 0, self._left - 1
            if out and self._outage == "refuse" and self._closing is None:
                self._closing = threading.Thread(target=self._shut, args=(self._server,))
                self._closing.start()
        if not out:
            return 200, self._said(asked)
        if self._outage == "503":
            return 503, {"error": {"message": "overloaded"}}
        if self._outage == "hang":
            self._mended.wait(30)
        return None

    def _said(self, asked: Any) -> dict[str, Any]:
        prompt = asked["messages"][-1]["content"]
        with self._lock:
            self.answered[prompt] += 1
        first = 0.05 + 0.9 * int(hashlib.sha256(prompt.encode()).hexdigest()[:4], 16) / 0xFFFF
        top = [{"token": "m", "logprob": math.log(first)}, {"token": "M", "logprob": math.log(1 - first)}]
        spoken = {"token": "m", "logprob": math.log(first), "top_logprobs": top}
        message = {"role": "assistant", "content": "m"}
        choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": {"content": [spoken]}}
        return {"model": asked["model"], "choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}

    def _open(self) -> None:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                found = endpoint.answer(asked)
                if found is not None:
                    body = json.dumps(found[1]).encode()
                    self.send_response(found[0])
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *said: object) -> None:
                return None

        self._server: ThreadingHTTPServer | None = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    """An endpoint that is there until the end of the block."""
    found = Endpoint()
    try:
        yield found
    finally:
        found.close()
