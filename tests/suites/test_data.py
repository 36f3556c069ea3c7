"""Pinned data: found in order, verified always, downloaded whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.harness.errors import MissingData, UnknownName, UserError
from rlhf_bench.suites import data
from rlhf_bench.suites.archives import csv_content
from rlhf_bench.suites.pins import PINS, Pin

CONTENT = b'{"question": "1 + 1"}\n{"question": "2 + 2"}\n'
NAME = "sums/test"
MIRRORED = [name for name in PINS if not name.startswith("alpaca_eval_lc")]
"""All but the gamed baselines' rows: the original is on the hub only, and the recovered ones are derived."""


def pinned(content: bytes, rows: int = 2, mirror: str = "sums/test.jsonl.gz", hub: str | None = None) -> Pin:
    sha256 = hashlib.sha256(content).hexdigest()
    return Pin(mirror, "a/b", "0" * 40, "sums.jsonl", sha256, len(content), rows, "MIT", hub)


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[bytes], Path]:
    """An empty mirror and an empty cache with one pin, and a way to put a file into that mirror."""
    monkeypatch.setattr(data, "PINS", {NAME: pinned(CONTENT)})
    monkeypatch.setenv("RLHF_BENCH_DATA", str(tmp_path / "mirror"))
    monkeypatch.setenv("RLHF_BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mirror" / "sums").mkdir(parents=True)

    def write(content: bytes) -> Path:
        path = tmp_path / "mirror" / "sums" / "test.jsonl.gz"
        path.write_bytes(content)
        return path

    return write


class Server:
    """Answers each path with a body, counts what was asked, and breaks off where a body is None."""

    def __init__(self, bodies: dict[str, bytes | None]) -> None:
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                body = bodies.get(self.path, b"")
                if self.path not in bodies:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(body) if body is not None else 100))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, format: str, *args: object) -> None:
                return None

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"


Serve = Callable[[dict[str, bytes | None]], AbstractContextManager[Server]]
HUB = "/datasets/o/d/resolve/r1/s.jsonl"


@pytest.fixture
def serve(put: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Stands for the hub and, below /raw, for the pinned URL."""

    @contextmanager
    def serving(bodies: dict[str, bytes | None]) -> Iterator[Server]:
        server = Server(bodies)
        thread = threading.Thread(target=server.server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            monkeypatch.setattr(data, "PINS", {NAME: pinned(CONTENT, hub="o/d@r1:s.jsonl")})
            monkeypatch.setattr(Pin, "url", property(lambda self: f"{server.address}/raw"))
            monkeypatch.setenv("HF_ENDPOINT", server.address)
            monkeypatch.setenv("HF_HUB_OFFLINE", "0")
            monkeypatch.setenv("no_proxy", "*")
            yield server
        finally:
            server.server.shutdown()
            server.server.server_close()
            thread.join()

    return serving


@pytest.mark.parametrize("name", MIRRORED)
def test_every_pinned_file_of_the_mirror_has_the_pinned_content_and_rows(
    name: str, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    assert data.resolve(name) == mirror / PINS[name].mirror
    assert len(data.rows(name)) == PINS[name].rows


@pytest.mark.parametrize("name", MIRRORED)
def test_every_pin_agrees_with_the_manifest_of_the_mirror(name: str, mirror: Path) -> None:
    entries = {entry["file"]: entry for entry in json.loads((mirror / "MANIFEST.json").read_text())["entries"]}
    pin, entry = PINS[name], entries[PINS[name].mirror]
    assert entry["derived"] is False
    settings = pin.mirror.endswith(".yaml")  # one row, where the manifest counts lines
    assert (f"github.com/{pin.repo}", pin.commit, pin.path, pin.rows) == (
        entry["source_repo"],
        entry["commit"],
        entry["path"],
        1 if settings else entry["rows"],
    )
    archived = pin.mirror.endswith(".tar.xz")  # of an archive the pin counts what is in it
    assert archived or pin.bytes == entry["bytes_uncompressed"]
    assert pin.licence in entry["licence"]


def test_a_corrupted_file_of_the_mirror_is_refused_with_what_was_expected_and_found(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / PINS["gsm8k/test"].mirror
    path.parent.mkdir()
    shutil.copy(mirror / PINS["gsm8k/test"].mirror, path)
    path.chmod(0o644)
    damaged = path.read_bytes().replace(b"ducks", b"geese", 1)
    path.write_bytes(damaged)
    monkeypatch.setenv("RLHF_BENCH_DATA", str(tmp_path))
    with pytest.raises(UserError) as refused:
        data.rows("gsm8k/test")
    said = str(refused.value)
    assert str(path) in said and PINS["gsm8k/test"].sha256 in said and hashlib.sha256(damaged).hexdigest() in said
    assert "\n" not in said


@given(position=st.integers(0, len(CONTENT) - 1), change=st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_no_changed_byte_is_ever_accepted(position: int, change: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("changed") / "test.jsonl"
    damaged = bytearray(CONTENT)
    damaged[position] ^= change
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="is not the pinned file"):
        data._load(path, path.stat().st_mtime_ns, pinned(CONTENT))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_mirror_may_hold_a_file_gzipped_or_plain(put: Callable[[bytes], Path], zipped: bool) -> None:
    put(gzip.compress(CONTENT, mtime=0) if zipped else CONTENT)
    assert [row["question"] for row in data.rows(NAME)] == ["1 + 1", "2 + 2"]


@pytest.mark.parametrize(
    "damaged",
    [gzip.compress(CONTENT, mtime=0)[:-9], gzip.compress(CONTENT, mtime=0)[:20] + b"\0" * 40, b"\x1f\x8bnot gzip"],
)
def test_a_damaged_gzip_file_is_refused_in_one_line(put: Callable[[bytes], Path], damaged: bytes) -> None:
    path = put(damaged)
    with pytest.raises(UserError, match=r"test\.jsonl\.gz cannot be read .*: replace or delete it") as refused:
        data.rows(NAME)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_gzip_bomb_is_not_unpacked_past_the_pinned_size(put: Callable[[bytes], Path]) -> None:
    path = put(gzip.compress(b"0" * 200_000_000, mtime=0))
    assert len(data._content(path, 1000)) == 1001
    with pytest.raises(UserError, match="is not the pinned file"):
        data.rows(NAME)


def test_a_file_with_another_number_of_rows_is_refused(
    put: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "PINS", {NAME: pinned(CONTENT, rows=3)})
    put(CONTENT)
    with pytest.raises(UserError, match="has 2 rows, expected 3"):
        data.resolve(NAME)


def test_a_verified_file_is_not_read_twice(put: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    put(CONTENT)
    first = data.rows(NAME)
    monkeypatch.setattr(data, "_content", lambda *_: pytest.fail("read again"))
    assert data.rows(NAME) is first


def test_a_file_that_changed_since_it_was_verified_is_verified_again(put: Callable[[bytes], Path]) -> None:
    put(CONTENT)
    data.rows(NAME)
    put(CONTENT + b"\n\n")
    with pytest.raises(UserError, match="is not the pinned file"):
        data.rows(NAME)


def test_missing_data_are_named_in_one_line_with_the_command_that_gets_them(put: Callable[[bytes], Path]) -> None:
    with pytest.raises(MissingData) as missing:
        data.rows(NAME)
    said = str(missing.value)
    assert "`rlhf-bench suites fetch sums`" in said and "RLHF_BENCH_DATA" in said and "HF_HUB_OFFLINE" in said
    assert "\n" not in said


def test_a_mirror_that_is_no_folder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"RLHF_BENCH_DATA=.*nowhere is not a folder"):
        data.find("gsm8k/test")


def test_an_unknown_file_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match=r"Did you mean 'gsm8k/test'\?"):
        data.resolve("gsm8k/tets")
    with pytest.raises(UnknownName, match=r"Did you mean 'gsm8k'\?"):
        data.fetch(["gsmk8"])


def test_the_hub_is_asked_first_and_only_once(serve: Serve, tmp_path: Path) -> None:
    with serve({HUB: CONTENT, "/raw": CONTENT}) as server:
        assert len(data.rows(NAME)) == 2
        assert data.resolve(NAME) == tmp_path / "cache/data/sums/test.jsonl"
        assert server.asked == [HUB]


def test_a_file_that_its_origin_keeps_gzipped_is_verified_by_its_content(serve: Serve) -> None:
    with serve({"/raw": gzip.compress(CONTENT, mtime=0)}):
        assert data.resolve(NAME).read_bytes() == CONTENT


def test_an_archive_is_the_same_data_as_the_mirrors_tar_or_the_origins_zip(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = b"question,answer\n" * 200
    zipped, plain = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("test/sums.csv", table)
    with tarfile.open(fileobj=plain, mode="w") as tar:
        info = tarfile.TarInfo("sums/test/sums.csv")
        info.size = len(table)
        tar.addfile(info, io.BytesIO(table))
    content = csv_content(zipped.getvalue(), 10**4)
    with serve({"/raw": zipped.getvalue()}):
        monkeypatch.setattr(data, "PINS", {NAME: pinned(content, rows=200, mirror="sums/sums.tar.xz")})
        fetched = data.rows(NAME)
    assert data.find(NAME) == tmp_path / "cache" / "data" / "sums" / "sums"
    (tmp_path / "mirror" / "sums" / "sums.tar.xz").write_bytes(lzma.compress(plain.getvalue()))
    assert data.find(NAME) == tmp_path / "mirror" / "sums" / "sums.tar.xz"
    assert data.rows(NAME) == fetched
    assert fetched[0] == {"file": "test/sums.csv", "cells": ["question", "answer"]}


@pytest.mark.parametrize(
    "body", [gzip.compress(CONTENT, mtime=0)[:-9], gzip.compress(CONTENT + b"x" * 10**6, mtime=0), b"\x1f\x8bx"]
)
def test_a_broken_or_swelling_gzip_is_no_data(serve: Serve, body: bytes) -> None:
    with serve({"/raw": body}), pytest.raises(MissingData, match="no data for sums/test"):
        data.resolve(NAME)


def test_what_was_downloaded_needs_no_network_later(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve({HUB: CONTENT}) as server:
        assert data.fetch(["sums"]) == [data.resolve(NAME)]
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert len(data.rows(NAME)) == 2
        assert server.asked == [HUB]


def test_the_mirror_goes_before_the_cache(serve: Serve, put: Callable[[bytes], Path]) -> None:
    with serve({HUB: CONTENT}):
        data.fetch([NAME])
    path = put(CONTENT)
    assert data.resolve(NAME) == path


@pytest.mark.parametrize("first", [b"<html>sign in</html>", CONTENT + b"{}" * 100_000, None])
def test_a_source_with_another_content_is_passed_over_and_nothing_of_it_is_kept(
    serve: Serve, tmp_path: Path, first: bytes | None
) -> None:
    with serve({HUB: first, "/raw": CONTENT}) as server:
        assert len(data.rows(NAME)) == 2
        assert server.asked == [HUB, "/raw"]
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["test.jsonl"]


def test_when_no_source_has_the_file_each_says_why_and_nothing_is_kept(serve: Serve, tmp_path: Path) -> None:
    with serve({"/raw": b"other"}), pytest.raises(MissingData) as missing:
        data.rows(NAME)
    assert "127.0.0.1: Not Found; 127.0.0.1: its file has another sha256" in str(missing.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_no_secret_of_an_endpoint_is_ever_printed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve({}) as server:
        for endpoint in (server.address.replace("//", "//user:hunter2@"), "ftp://user:hunter2@x", "http://x y:hunter2"):
            monkeypatch.setenv("HF_ENDPOINT", endpoint)
            with pytest.raises(MissingData) as missing:
                data.rows(NAME)
            assert "hunter2" not in str(missing.value)


def test_offline_no_source_is_asked(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve({HUB: CONTENT}) as server:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(MissingData, match="HF_HUB_OFFLINE is set"):
            data.fetch([NAME])
        assert server.asked == []


def test_fetching_a_benchmark_gets_all_its_files_and_advances_by_their_bytes(serve: Serve) -> None:
    advanced: list[tuple[str, int, int]] = []

    @contextmanager
    def track(label: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda count: advanced.append((label, total, count))

    with serve({HUB: CONTENT}):
        data.fetch(["sums", NAME], track)
    assert advanced == [("fetch sums/test", len(CONTENT), len(CONTENT))]


def test_digests_are_of_the_content_whatever_the_copy() -> None:
    assert data.digests(["gsm8k/test"]) == {"gsm8k/test": PINS["gsm8k/test"].sha256}
    assert data.parts("gsm8k") == ("gsm8k/test", "gsm8k/train")
