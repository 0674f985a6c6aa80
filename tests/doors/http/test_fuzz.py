"""Requests made from the OpenAPI document, good ones and bad ones (row B20): no 5xx, every status declared.

300 cases in a usual run, 2,000 where CI=true, or as many as FUZZ_CASES says; without a network, and always the same ones.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from starlette.testclient import TestClient

from tests.doors.http.fixtures import a_place, app_of, client_of, make_service, making

CASES = int(os.environ.get("FUZZ_CASES") or (2000 if os.environ.get("CI") == "true" else 300))
# Answers of the gate, which stand before every operation.
GATE = {401, 403, 405, 413, 414, 431}
WITH_BODY = 3  # times as many cases as an operation without one


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with (
        a_place(tmp_path_factory.mktemp("fuzz"), depth=1_000_000) as place,
        client_of(app_of(make_service(place))) as client,
    ):
        yield client


def test_B20_requests_from_the_document(fuzzed: TestClient) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", fuzzed.app)
    # The original routes wait for their video: they are asked by their own tests.
    operations = [found for result in schema.get_all_operations() if "generate_" not in (found := result.ok()).path]
    # What takes nothing can be asked in one way only.
    shares = [WITH_BODY * bool(operation.body) or int(any(operation.iter_parameters())) for operation in operations]
    each = math.ceil(CASES * 1.05 / 2 / sum(shares)) + 5
    seen: Counter[int] = Counter()
    for operation, share in zip(operations, shares, strict=True):
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            seen += fuzz(fuzzed, operation, mode, max(1, each * share))
    print(f"\n{sum(seen.values())} requests:", dict(sorted(seen.items())))
    assert sum(seen.values()) >= CASES, seen
    assert seen[200] > CASES / 20 and seen[400] > CASES / 10, seen


def fuzz(client: TestClient, operation: Any, mode: GenerationMode, cases: int) -> Counter[int]:
    """Ask one operation so many times; how often each status came."""
    seen: Counter[int] = Counter()
    declared = {int(status) for status in operation.definition.raw["responses"]}

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def run(case: Any) -> None:
        if "id" in (case.path_parameters or {}) and sum(seen.values()) % 2:
            # Half of them ask for a video that is there.
            case.path_parameters["id"] = making(client)()["id"] if not known else known[-1]
            known[:] = [] if operation.method == "delete" else [case.path_parameters["id"]]
        response = ask(client, case)
        seen[response.status_code] += 1
        shown = (operation.label, case.as_transport_kwargs(), response.status_code, response.text[:200])
        assert response.status_code < 500, shown
        assert response.status_code in declared | GATE, shown
        if response.status_code >= 400 and operation.method != "head":
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}, shown

    known: list[str] = []
    # Where everything is allowed, nothing can be wrong.
    with suppress(Unsatisfiable):
        run()
    return seen


def ask(client: TestClient, case: Any) -> Any:
    """Send a case through a client that is there already; making one for each would take most of the time."""
    given_ = case.as_transport_kwargs(base_url="http://localhost")
    headers = {name: value for name, value in given_["headers"].items() if value is not None and name != "Prefer"}
    fields: dict[str, Any] = {"params": given_.get("params"), "headers": headers}
    if given_.get("json") is not None:
        fields["json"] = given_["json"]
    if given_.get("files") is not None:
        fields["files"] = [(name, _part(part)) for name, part in given_["files"]]
    data = given_.get("data")
    if isinstance(data, bytes | str):
        fields["content"] = data
    elif data is not None:
        fields["data"] = data
    return client.request(given_["method"], given_["url"], **fields)


def _part(part: Any) -> Any:
    """A part of a form as the client takes it: text or bytes, with or without the name of a file."""
    if isinstance(part, tuple):
        return (part[0], *(piece if isinstance(piece, bytes) else str(piece) for piece in part[1:]))
    return part if isinstance(part, bytes) else str(part)
