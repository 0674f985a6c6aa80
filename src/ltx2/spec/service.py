"""The settings of the service, from flags, the environment (LTX2_…) and ltx2.toml, in that order of precedence."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from ltx2.spec.errors import RefusedRequest
from ltx2.spec.settings import Settings
from ltx2.spec.shapes import NOTHING

FILE = "ltx2.toml"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Tables of ltx2.toml that belong to other doors, as do variables that begin with their names.
TABLES = ("modal",)
PREFIXES = tuple(f"{table}_" for table in TABLES)
SECRETS = ("secret", "webhook_secret")
LEVELS = ("debug", "info", "warning", "error")
HIDDEN = "(hidden)"
_HOST = r"([a-z0-9_.-]+|\[[0-9a-f:.]+\])"
_ORIGIN = re.compile(rf"https?://{_HOST}(:\d{{1,5}})?", re.ASCII)
# What is compared with what clients send must be written as they write it.
FORMS = {
    "origins": (_ORIGIN, "as in https://example.org: no path, no slash behind it, no capitals"),
    "receivers": (_ORIGIN, "as in http://127.0.0.1:9000: no path, no slash behind it, no capitals"),
    "hosts": (re.compile(r"[A-Za-z0-9_.-]+|[0-9a-fA-F:]*:[0-9a-fA-F:.]*", re.ASCII), "as in example.org: no port"),
    "trusted_proxies": (re.compile(r"\*|[0-9a-fA-F:.]+(/\d{1,3})?", re.ASCII), "as in 10.0.0.1 or 10.0.0.0/8"),
}
# With 0 of these nothing could be made, or nothing of it be fetched.
POSITIVE = frozenset(
    {"rpm", "open_jobs", "depth", "connections", "body_mib", "stall", "memory_gib", "keep_files", "keep_records"}
)


@dataclass(frozen=True)
class ServiceSettings:
    """What does not belong to a video but to the service that takes orders for it.

    `host`, `port`, `root_path` (behind a proxy that strips it), `trusted_proxies` (whose X-Forwarded-… counts): where it
    listens. `hosts`: names by which it may be called besides its own (Host header); `origins`: web pages of other sites
    that may call it (CORS).
    `data`: folder of files and of the SQLite database, which `db` replaces (sqlite:///path or postgresql://…).
    `secret` signs links to media (None: drawn once, kept in `data`); `webhook_secret` signs webhooks of callers without
    a token of their own.
    `workers`: processes to start (None: one for each GPU, or one on the CPU); `drain_timeout`: seconds that a job has when
    the service is told to stop; `stall`: seconds without a step after which a worker counts as hung; `memory_gib`: what
    the device of a worker holds, by which plans are refused that can never be made (None: seen on this machine).
    `rpm`: new jobs a minute of one token; `open_jobs`: jobs of one token that wait or run at once; `depth`: waiting jobs
    of all; `min_free_gib`: free disk space below which nothing new is taken; `connections`: open at once; `body_mib`: the
    largest body. Tokens can have tighter limits of their own.
    `keep_files`, `keep_records`: days after the end of a job.
    `url_inputs`: whether pictures may be named by URL; `receivers`: origins (as in http://127.0.0.1:9000) that webhooks
    and such URLs may reach although they are internal; `adapter`: the routes /enqueue, /status and /result.
    `log_level`, `log_prompts`: what is logged.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    root_path: str = ""
    trusted_proxies: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    data: Path = Path("~/.local/share/ltx2")
    db: str | None = None
    secret: str | None = None
    webhook_secret: str | None = None
    workers: int | None = None
    memory_gib: float | None = None
    drain_timeout: float = 25.0
    stall: float = 300.0
    rpm: int = 600
    open_jobs: int = 1000
    depth: int = 10_000
    min_free_gib: float = 2.0
    connections: int = 2000
    body_mib: int = 32
    keep_files: float = 7.0
    keep_records: float = 30.0
    url_inputs: bool = False
    receivers: tuple[str, ...] = ()
    adapter: bool = False
    log_level: str = "info"
    log_prompts: bool = False
    price_per_hour: float = Settings.price_per_hour

    @property
    def folder(self) -> Path:
        """`data` as an absolute path."""
        return self.data.expanduser().absolute()

    @property
    def database(self) -> str:
        """URL of the database."""
        return self.db or f"sqlite:///{self.folder / 'jobs.db'}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in LOOPBACK

    def shown(self) -> dict[str, Any]:
        """Every setting as JSON can hold it, secrets and passwords hidden."""
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in SECRETS and value is not None:
                value = HIDDEN
            values[field.name] = str(value) if isinstance(value, Path) else value
        if self.db:
            values["db"] = re.sub(r"(//[^:/@]*):[^@/]*@", rf"\1:{HIDDEN}@", self.db)
            values["db"] = re.sub(r"(password=)[^&]*", rf"\1{HIDDEN}", values["db"])
        return values


KNOBS = {field.name: field for field in fields(ServiceSettings)}
MACHINE = {field.name for field in fields(Settings)}
# Read by Docker and Kubernetes users from a file, so that no secret stands in the environment.
FROM_FILE = {f"{name}_file": name for name in (*SECRETS, "db")}


def read_file(path: Path) -> dict[str, Any]:
    """The settings of a toml file by name. Raises RefusedRequest with the line and what would work."""
    try:
        text = path.read_text()
        table = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RefusedRequest(f"{path}: {error}", knob="config", hint="TOML, as in port = 8000") from None
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name in TABLES and isinstance(value, dict):
            continue
        line = next((n for n, row in enumerate(text.splitlines(), 1) if re.match(rf"\s*\[?\"?{name}\b", row)), 1)
        _check_known(name, f"{path}, line {line}: there is no setting {name!r}", str)
        values[name] = _value(name, value, f"{path}, line {line}") if name in KNOBS else _word(value)
    return values


def read_environment(environment: Mapping[str, str], others: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The settings that LTX2_… variables make, by name; empty means unset. `others` are names that other doors read.

    Raises RefusedRequest for an unknown variable, and for a value that cannot be used.
    """
    values: dict[str, Any] = {}
    for variable in sorted(environment):
        name, text = variable.removeprefix("LTX2_").lower(), environment[variable]
        if not variable.startswith("LTX2_") or not text or name in others or name.startswith(PREFIXES):
            continue
        if name in FROM_FILE:
            name, text = FROM_FILE[name], _read_secret(variable, Path(text))
        _check_known(name, f"there is no setting {variable}", _variable)
        values[name] = _value(name, text, variable) if name in KNOBS else text
    return values


def build(*sources: Mapping[str, Any]) -> ServiceSettings:
    """The settings of sources by name, the first of which counts most. Raises RefusedRequest."""
    chosen: dict[str, Any] = {}
    for source in reversed(sources):
        chosen |= {name: value for name, value in source.items() if name in KNOBS and value is not None}
    settings = ServiceSettings(**{name: _value(name, value, name) for name, value in chosen.items()})
    if settings.log_level not in LEVELS:
        raise RefusedRequest(
            f"log_level: there is no {settings.log_level!r}", knob="log_level", hint="one of " + ", ".join(LEVELS)
        )
    for name, (form, example) in FORMS.items():
        for value in getattr(settings, name):
            if not form.fullmatch(value):
                raise RefusedRequest(f"{name}: {value!r} would never match", knob=name, hint=example)
    return settings


def _word(value: Any) -> str:
    """A setting of the machine as the environment would say it."""
    if isinstance(value, list):
        return ",".join(map(_word, cast(list[Any], value))) or NOTHING
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _variable(name: str) -> str:
    return "LTX2_" + name.upper()


def _check_known(name: str, message: str, shown: Any) -> None:
    known = [*KNOBS, *MACHINE, *FROM_FILE]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
        hint = "did you mean " + " or ".join(map(shown, near)) + "?" if near else "docs/05-deploy.md lists all"
        raise RefusedRequest(message, knob=name, hint=hint)


def _read_secret(variable: str, path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise RefusedRequest(f"{variable}: {path}: {error.strerror}", knob=variable) from None


def _value(name: str, value: Any, where: str) -> Any:
    """A value in the type of its setting: texts of the environment and of flags, or what TOML made of it."""
    kind = str(KNOBS[name].type)
    try:
        if kind.startswith("tuple"):
            parts = value.split(",") if isinstance(value, str) else value
            return tuple(part.strip() for part in parts if part.strip())
        if kind == "bool":
            return _bool(value)
        if kind.startswith("int"):
            return _number(value, int, name in POSITIVE)
        if kind.startswith("float"):
            return _number(value, float, name in POSITIVE)
        return Path(str(value)) if kind == "Path" else str(value)
    except (ValueError, TypeError, AttributeError, KeyError):
        least = "above 0" if name in POSITIVE else "of 0 or more"
        hints = {"t": "as in a,b", "b": "true or false", "f": f"a number {least}", "i": f"a whole number {least}"}
        raise RefusedRequest(f"{where}: {value!r} cannot be {name}", knob=name, hint=hints[kind[0]]) from None


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[str(value).lower()]


def _number(value: Any, kind: Any, positive: bool) -> Any:
    number = kind(value)
    if isinstance(value, bool) or (kind is int and isinstance(value, float)) or not 0 <= number < 1e15:
        raise ValueError
    if positive and not number:
        raise ValueError
    return number
