"""What `serve`, `worker` and `tokens` share: the settings as three sources make them, the folder, the database, the secret."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ltx2.doors import lock
from ltx2.jobs.courier import sign
from ltx2.jobs.job import Rules
from ltx2.jobs.shelf import Shelf
from ltx2.jobs.store import Store
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.service import FILE, MACHINE, ServiceSettings, build, read_environment, read_file
from ltx2.spec.settings import Settings

LOG = logging.getLogger(__name__)
DAY = 86_400.0
MIN_SECRET = 16
PRIVATE = 0o077
# Read by other doors, or before any settings.
OTHERS = frozenset[str]()


@dataclass(frozen=True)
class Premises:
    """The place of a service: its settings, its database and its files."""

    settings: ServiceSettings
    machine: Settings
    store: Store
    shelf: Shelf


def read_settings(
    values: argparse.Namespace, environment: Mapping[str, str]
) -> tuple[ServiceSettings, Settings, Path | None]:
    """The settings of flags, environment and file, and the file if there was one.

    Raises RefusedRequest for unknown names and values that cannot be used.
    """
    given = {name: value for name, value in vars(values).items() if value not in (None, False)}
    named = given.pop("config", None)
    path = Path(named) if named else Path(FILE)
    in_file = read_file(path) if named or path.is_file() else {}
    around = read_environment(environment, OTHERS)
    settings = build(given, around, in_file)
    if settings.webhook_secret is not None:
        # With one that cannot sign, every webhook would fail in silence.
        sign(settings.webhook_secret, "", 0, b"")
    every = in_file | around | given
    machine = {f"LTX2_{name.upper()}": str(value) for name, value in every.items() if name in MACHINE}
    return settings, Settings.read(machine), path if in_file else None


def shown(settings: ServiceSettings, machine: Settings) -> dict[str, Any]:
    """Every setting as JSON can hold it, without secrets."""
    found = {field.name: getattr(machine, field.name) for field in fields(machine)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in found.items()} | settings.shown()


def enter(settings: ServiceSettings, machine: Settings, patience: float = 30.0) -> Premises:
    """Open the database and the folder, and make them where they are not.

    Raises RefusedRequest for a folder that cannot be used, WrongStore and StoreUnavailable.
    """
    folder = settings.folder
    videos = folder / "videos"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        videos.mkdir(exist_ok=True)
    except OSError as error:
        raise RefusedRequest(
            f"data: {folder}: {error.strerror}", knob="data", hint="--data FOLDER, which this user may write"
        ) from None
    if not os.access(folder, os.W_OK):
        raise RefusedRequest(f"data: {folder} cannot be written", knob="data", hint="--data FOLDER of your own")
    rules = Rules(depth=settings.depth, files=settings.keep_files * DAY, rows=settings.keep_records * DAY)
    return Premises(settings, machine, Store(settings.database, rules, patience), Shelf(videos))


def hold(folder: Path) -> int:
    """Hold the folder for this process, as long as it lives; the descriptor keeps it.

    Raises RefusedRequest naming the process that has it.
    """
    try:
        return lock.take(folder / "serve.lock")
    except lock.Taken as taken:
        raise RefusedRequest(
            f"data: another `ltx2 serve` (process {taken.holder}) works in {folder}",
            knob="data", hint="stop it, or use another --data; several machines share PostgreSQL: --db postgresql://…",
        ) from None  # fmt: skip


def secret_of(settings: ServiceSettings) -> bytes:
    """What signs links: of the settings, or drawn once and kept in the folder. Raises RefusedRequest if too short."""
    if settings.secret is not None:
        if len(settings.secret) < MIN_SECRET:
            raise RefusedRequest(
                f"secret: {len(settings.secret)} characters can be guessed",
                knob="secret",
                hint=f"at least {MIN_SECRET}; `openssl rand -hex 32` makes one",
            )
        return settings.secret.encode()
    path = settings.folder / "secret"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        check_private(path)
        return path.read_bytes()
    with os.fdopen(descriptor, "wb") as file:
        drawn = secrets.token_hex(32).encode()
        file.write(drawn)
        file.flush()
        os.fsync(file.fileno())
    return drawn


def check_private(path: Path) -> None:
    """Warn when others than the owner may read a file with secrets."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & PRIVATE:
        LOG.warning("%s can be read by others (mode %o): chmod 600 %s", path, mode, path)


def replaced(settings: ServiceSettings, **values: Any) -> ServiceSettings:
    """The same settings with other values."""
    return replace(settings, **values)
