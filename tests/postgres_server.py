"""A throw-away PostgreSQL in a folder of its own, reached by a socket in it: nothing outside of it is touched."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

START_S = 30.0
SETTINGS = (
    "listen_addresses=",
    "max_connections=60",
    "fsync=off",  # no test cuts the power
    "full_page_writes=off",
    "shared_buffers=16MB",
)


def find_binaries() -> Path | None:
    """The folder with initdb and postgres: on the PATH, or the newest where Debian keeps them."""
    on_path = shutil.which("initdb")
    debian = [each for each in Path("/usr/lib/postgresql").glob("*/bin") if each.parent.name.isdecimal()]
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(debian, key=lambda each: int(each.parent.name), reverse=True)
    return next((each for each in folders if (each / "initdb").exists() and (each / "postgres").exists()), None)


class PostgresServer:
    """Started when it is made; `url` is its database."""

    def __init__(self, binaries: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # short: a socket's path holds 107 characters
        self._user = _unprivileged(self._folder)
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"postgresql+psycopg://test@/postgres?host={self._folder}"
        try:
            self._start(binaries)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """The server ends and its folder goes."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # PostgreSQL's "fast shutdown"
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, binaries: Path) -> None:
        data = str(self._folder / "data")
        initdb = [str(binaries / "initdb"), "-D", data, "-A", "trust", "-U", "test", "-E", "UTF8", "--locale=C"]
        made = subprocess.run([*initdb, "--no-sync"], capture_output=True, text=True, **self._user)
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stderr}")
        settings = [part for setting in SETTINGS for part in ("-c", setting)]
        command = [str(binaries / "postgres"), "-D", data, "-k", str(self._folder), *settings]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **self._user)
        self._wait(self._process)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        import psycopg

        deadline = time.monotonic() + START_S
        while True:
            try:
                psycopg.connect(host=str(self._folder), user="test", dbname="postgres").close()
                return
            except psycopg.OperationalError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.05)


def _unprivileged(folder: Path) -> dict[str, Any]:
    """Popen's arguments for a user that PostgreSQL accepts, to whom the folder is given: it refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    known = {each.pw_name: each for each in pwd.getpwall()}
    user = known.get("postgres") or known["nobody"]
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": folder}
