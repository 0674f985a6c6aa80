"""Fixtures of the service's tests: an application on a stand-in engine, with and without a network."""

from __future__ import annotations

from tests.doors.http.fixtures import address, api, app, made, place, shared_api, shared_place
from tests.jobs.conftest import server

__all__ = ["address", "api", "app", "made", "place", "server", "shared_api", "shared_place"]
