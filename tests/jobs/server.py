"""A PostgreSQL server of our own for the tests: in a temporary folder, on a Unix socket, gone with the session."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

OPTIONS = "-c listen_addresses='' -c fsync=off -c max_connections=60 -c shared_buffers=16MB"


def find_programs() -> Path | None:
    """The folder of initdb and pg_ctl: Debian's newest, or that of the search path."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if debian:
        return debian[-1].parent
    found = shutil.which("initdb")
    return Path(found).parent if found else None


class Server:
    """One cluster. `restart` kills it as a power cut would, and starts it again."""

    def __init__(self, programs: Path):
        self.programs = programs
        # Not pytest's folder: that of root is closed to the user that the server runs as. Sockets need a short path.
        self.folder = Path(tempfile.mkdtemp(prefix="ltx2-pg-", dir="/tmp"))
        self.user = self._user()
        self._run("initdb", "-D", str(self.data), "-U", "ltx2", "-A", "trust", "--no-sync", "-E", "UTF8")
        self.start()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        options = f"{OPTIONS} -k {self.folder}"
        self._run("pg_ctl", "-D", str(self.data), "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def kill(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", "immediate", "stop")

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def fresh(self) -> str:
        """URL of the one database, emptied: another one for each test would be thousands of files."""
        with psycopg.connect(f"host={self.folder} user=ltx2 dbname=postgres", autocommit=True) as connection:
            others = "from pg_stat_activity where datname = 'postgres' and pid <> pg_backend_pid()"
            connection.execute(f"select pg_terminate_backend(pid) {others}".encode())
            connection.execute("drop schema public cascade")
            connection.execute("create schema public")
        return f"postgresql://ltx2@/postgres?host={self.folder}"

    def _user(self) -> list[str]:
        """What to put before a command: initdb refuses to run as root."""
        if os.getuid() != 0:
            return []
        names = {entry.pw_name for entry in pwd.getpwall()}
        entry = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        os.chown(self.folder, entry.pw_uid, entry.pw_gid)
        return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self.user, str(self.programs / program), *arguments]
        # A server that keeps a pipe of ours open would hold the test run up at its end.
        done = subprocess.run(command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if done.returncode:
            log = self.folder / "log"
            raise RuntimeError(f"{program} failed: {log.read_text()[-2000:] if log.exists() else command}")


def started() -> Iterator[Server]:
    """A server for a fixture; without its programs the tests are skipped, and fail in CI."""
    programs = find_programs()
    if programs is None:
        reason = "no PostgreSQL server programs here: install Debian's package postgresql"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    server = Server(programs)
    yield server
    server.remove()
