"""The databases of the queue's tests, for whole services."""

from __future__ import annotations

from tests.jobs.conftest import server, sqlite_file, sqlite_url, url

__all__ = ["server", "sqlite_file", "sqlite_url", "url"]
