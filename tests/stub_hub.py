"""A hub of one repository in this process: what huggingface_hub's client asks of it to create, look at and commit."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """The repository's files, None while there is none; who may write is who has `token`. `fails` is a status."""

    token: str
    files: dict[str, bytes] | None = None
    private: bool = True
    fails: int = 0
    url: str = ""
    message: str = ""
    tokens: set[str] = field(default_factory=set)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if self.fails:
            return self.fails, {"error": "the hub has a bad day"}
        if path == "/api/repos/create":
            if self.files is not None:
                return 409, {"error": "You already created this model repo", "url": f"{self.url}/org/name"}
            self.files, self.private = {}, json.loads(body).get("visibility") == "private"
            return 200, {"url": f"{self.url}/org/name"}
        if self.files is None or not path.startswith("/api/models/org/name"):
            return 404, {"error": "Repository not found"}
        if path.startswith("/api/models/org/name/tree/"):
            return 200, [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in sorted(self.files)]
        if path.startswith("/api/models/org/name/preupload/"):
            names = [each["path"] for each in json.loads(body)["files"]]
            return 200, {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        if path.startswith("/api/models/org/name/commit/"):
            return self._commit([json.loads(line) for line in body.splitlines()])
        siblings = [{"rfilename": name} for name in sorted(self.files)]
        return 200, {"id": "org/name", "private": self.private, "siblings": siblings, "sha": "a" * 40}

    def _commit(self, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        assert self.files is not None
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.message = value["summary"]
            elif line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]
        return 200, {"success": True, "commitOid": "b" * 40, "commitUrl": f"{self.url}/org/name/commit/{'b' * 40}"}


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub at `hub.url`, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            hub.tokens.add(given)
            refused = 401, {"error": "Invalid username or password."}
            status, answer = hub.answer(self.command, self.path, body) if given == hub.token else refused
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_HEAD = _serve

        def log_message(self, format: str, *args: Any) -> None:
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
