"""CSV files in archives: one content whatever the archive, and nothing of a hostile one."""

from __future__ import annotations

import io
import lzma
import tarfile
import zipfile
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.suites.archives import csv_content, csv_rows, is_archive

FILES = {"data/test/b.csv": b'"two\nlines",1\n', "data/dev/a.csv": b"x,\xc3\xa9\r\ny,2\r\n"}
LIMIT = 1 << 16


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes], link: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("data/test/link.csv")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
    return lzma.compress(buffer.getvalue())


def test_a_zip_and_a_tar_of_the_same_files_have_the_same_content_and_rows() -> None:
    content = csv_content(zipped(FILES), LIMIT)
    assert content == csv_content(tarred(dict(reversed(FILES.items()))), LIMIT)
    assert csv_rows(content) == [
        {"file": "dev/a.csv", "cells": ["x", "é"]},
        {"file": "dev/a.csv", "cells": ["y", "2"]},
        {"file": "test/b.csv", "cells": ["two\nlines", "1"]},
    ]


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.binary(max_size=200), min_size=1, max_size=5))
def test_no_two_sets_of_files_have_one_content(files: dict[str, bytes]) -> None:
    named = {f"test/{name}.csv": content for name, content in files.items()}
    content = csv_content(zipped(named), LIMIT)
    found, start = {}, 0
    while start < len(content):
        end = content.index(b"\n", start)
        name, size = content[start:end].decode().split(" ")
        start = end + 1 + int(size)
        found[name] = content[end + 1 : start]
    assert found == named


def test_links_and_other_files_are_passed_over() -> None:
    others = {**FILES, "data/README": b"read me", "data/run.py": b"print()"}
    assert csv_content(tarred(others, link="/etc/passwd"), LIMIT) == csv_content(zipped(FILES), LIMIT)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_that_holds_more_than_is_pinned_is_refused(pack: object) -> None:
    assert callable(pack)
    for files in ({"test/a.csv": b"0" * 10**7}, {f"test/{number}.csv": b"0" * 1000 for number in range(100)}):
        with pytest.raises(ValueError, match=r"more than is pinned|broken"):
            csv_content(pack(files), LIMIT)


def test_a_name_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"it holds test/b\.csv twice"):
        csv_content(zipped({**FILES, "other/test/b.csv": b"1"}), LIMIT)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_broken_archive_is_refused(pack: object) -> None:
    assert callable(pack)
    whole = pack(FILES)
    assert is_archive(whole)
    with pytest.raises(ValueError, match="broken"):
        csv_content(whole[: len(whole) // 2], LIMIT)


def test_text_and_gzip_are_no_archives() -> None:
    assert not is_archive(b'{"question": 1}')
    assert not is_archive(b"\x1f\x8b\x08\x00")
    assert not is_archive(b"")
