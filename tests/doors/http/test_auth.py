"""Who may do what: tokens, scopes, links, other people's jobs, and pages of other sites."""

from __future__ import annotations

import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from ltx2.doors.http import links
from ltx2.doors.http.app import create_app
from ltx2.doors.http.guard import PUBLIC
from ltx2.doors.http.keys import Keyring
from ltx2.jobs.tokens import Grant, Tokens, read, write
from ltx2.spec.service import ServiceSettings
from tests.doors.http.fixtures import SECRET, Make, Names, client_of, make_service
from tests.doors.http.studio import Studio, wait_for


@pytest.fixture
def tokens(place: Studio) -> Tokens:
    return Tokens(place.store.database)


def app_of(place: Studio, keys: Any, **knobs: Any) -> FastAPI:
    settings = ServiceSettings(**{"min_free_gib": 0, "rpm": 100_000, "adapter": True} | knobs)
    return create_app(make_service(place, keys=keys, settings=settings))


def strangers(app: FastAPI) -> TestClient:
    return TestClient(app, raise_server_exceptions=False, headers={"Host": "localhost"})


def test_A2_wrong_secret_and_unknown_id_look_the_same(place: Studio, tokens: Tokens) -> None:
    _, text = tokens.add("ann", Grant())
    keys = Keyring(tokens.live)
    keys.reload()
    found = read(text)
    assert found
    wrong, unknown = write(found[0], "0" * 43), write("0" * 10, found[1])
    assert keys.find(text) and keys.find(text).name == "ann"  # type: ignore[union-attr]
    with strangers(app_of(place, keys)) as client:
        answers = [
            client.get("/v1/videos", headers={"Authorization": f"Bearer {t}"}) for t in (wrong, unknown, "x", "")
        ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1

    def seconds(token: str) -> float:
        began = time.perf_counter()
        for _ in range(20):
            assert keys.find(token) is None
        return time.perf_counter() - began

    times = [(seconds(wrong), seconds(unknown)) for _ in range(100)]
    one, other = (statistics.median(column) for column in zip(*times, strict=True))
    assert max(one, other) / min(one, other) < 1.5


def test_A3_no_header_breaks_it(place: Studio, tokens: Tokens) -> None:
    _, text = tokens.add("ann", Grant())
    keys = Keyring(tokens.live, enter="pässword")
    keys.reload()
    with strangers(app_of(place, keys)) as client:
        for name, value in itertools.product(
            ("Authorization", "x-api-key", "x-enter-token", "x-backend-token"),
            (
                b"\xff\xfe",
                "Bearer ü".encode(),
                b"Bearer " + b"a" * 7000,
                b"ltx2__",
                b"ltx2_" + b"\xf6" * 59,
                b"\x7f" * 9,
            ),
        ):
            assert client.get("/v1/videos", headers={name: value}).status_code == 401  # type: ignore[dict-item]
        good = f"Bearer {text}".encode()
        doubled = [(b"authorization", good), (b"x-api-key", b"other")]
        assert client.get("/v1/videos", headers=doubled).status_code == 401  # type: ignore[arg-type]
        for name, value in (("authorization", f"bEaReR {text}"), ("x-api-key", text), ("x-backend-token", text)):
            assert client.get("/v1/videos", headers={name: value}).status_code == 200


def test_A4_the_token_of_the_environment(place: Studio) -> None:
    keys = Keyring(list, enter="open sesame")
    with strangers(app_of(place, keys)) as client:
        for name in ("x-enter-token", "x-backend-token", "x-api-key"):
            assert client.get("/v1/videos", headers={name: "open sesame"}).status_code == 200
        assert client.get("/v1/videos", headers={"x-enter-token": ""}).status_code == 401
    # Without any token only this machine is let in, and only when the operator said so.
    with strangers(app_of(place, Keyring(list))) as client:
        assert client.get("/v1/videos").status_code == 401
        assert client.get("/v1/videos", headers={"x-enter-token": ""}).status_code == 401
    with strangers(app_of(place, Keyring(list, open_house=True))) as client:
        assert client.get("/v1/videos").status_code == 200
        # Some clients cannot send none; nothing is decided by what they send.
        for headers in ({"x-enter-token": "guess"}, {"Authorization": "Bearer none"}, {"x-api-key": "\x7f"}):
            assert client.get("/v1/videos", headers=headers).status_code == 200


def test_A4_A6_the_first_token_closes_an_open_service_for_good(place: Studio, tokens: Tokens) -> None:
    keys = Keyring(tokens.live, open_house=True)
    keys.reload()
    assert keys.is_open and keys.find("") and keys.find("none")
    local = keys.find("none")
    _, text = tokens.add("ann", Grant())
    keys.reload()
    with strangers(app_of(place, keys)) as client:

        def status(token: str) -> int:
            return client.get("/v1/videos", headers={"Authorization": f"Bearer {token}"} if token else {}).status_code

        assert (status(text), status("none"), status("")) == (200, 401, 401)
        assert local and not keys.is_live(local)
        tokens.revoke("ann")
        keys.reload()
        assert (status(text), status("none"), status("")) == (401, 401, 401)


def test_A5_a_token_in_the_query_is_none(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with strangers(app) as client:
        for name in ("key", "token", "api_key", "access_token", "x-enter-token", "authorization"):
            assert client.get("/v1/videos", params={name: "annssecret"}).status_code == 401
    ours = [record for record in caplog.records if not record.name.startswith("httpx")]
    assert ours and not any("annssecret" in str(vars(record)) for record in ours)


def test_A6_revoked_expired_and_rotated_tokens(place: Studio, tokens: Tokens) -> None:
    _, ann = tokens.add("ann", Grant())
    _, bob = tokens.add("bob", Grant(seconds=0.5))
    keys = Keyring(tokens.live)
    keys.start()
    try:
        with strangers(app_of(place, keys)) as client:

            def status(token: str) -> int:
                return client.get("/v1/videos", headers={"Authorization": f"Bearer {token}"}).status_code

            assert status(ann) == 200
            wait_for(lambda: status(bob) == 401, 5)
            _, new = tokens.rotate("ann", 3.0)
            wait_for(lambda: status(new) == 200, 5)
            assert status(ann) == 200, "two live at once"
            wait_for(lambda: status(ann) == 401, 10)
            assert status(new) == 200
            tokens.revoke("ann")
            wait_for(lambda: status(new) == 401, 5)
    finally:
        keys.close()


def test_A6_a_stream_of_events_ends_with_its_token(place: Studio) -> None:
    keys = Names()
    place.engine.go.clear()
    with client_of(app_of(place, keys)) as api:
        job = api.post("/v1/videos", json={"prompt": "a cat"}).json()
        wait_for(lambda: place.engine.started)
        with api.stream("GET", f"/v1/videos/{job['id']}/events") as events:
            text = ""
            for chunk in events.iter_text():
                text += chunk
                if "progress" in text:
                    keys.gone.add("ann")
        assert "auth_expired" in text
        assert api.get(f"/v1/videos/{job['id']}").status_code == 401
        place.engine.go.set()
        keys.gone.clear()
        wait_for(lambda: api.get(f"/v1/videos/{job['id']}").json()["status"] == "completed")


def test_A7_other_tokens_jobs_do_not_exist(app: FastAPI, made: Make) -> None:
    mine = made()["id"]
    with client_of(app, "bob") as bob:
        for method, path in (
            ("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/content"), ("HEAD", "/content"), ("GET", "/events"),
            ("GET", "/content?variant=thumbnail"), ("POST", "/remix"),
        ):  # fmt: skip
            body = {"json": {"prompt": "x"}} if path == "/remix" else {}
            theirs = bob.request(method, f"/v1/videos/{mine}{path}", **body)
            absent = bob.request(method, f"/v1/videos/{'video_' + '0' * 32}{path}", **body)
            assert theirs.status_code == absent.status_code == 404, path
            assert theirs.text.replace(mine, "ID") == absent.text.replace("video_" + "0" * 32, "ID")
        assert bob.get("/v1/videos").json()["data"] == []
        assert bob.get("/v1/videos", params={"after": mine}).status_code in (400, 404)
        own = bob.put(f"/v1/videos/{mine}", json={"prompt": "x"})
        assert own.status_code == 200, "a name belongs to its token"


def test_A8_scopes(place: Studio, tokens: Tokens) -> None:
    texts = {scope: tokens.add(scope, Grant(scopes=(scope,)))[1] for scope in ("read", "generate", "metrics")}
    keys = Keyring(tokens.live)
    keys.reload()
    with strangers(app_of(place, keys)) as client:

        def status(scope: str, method: str, path: str) -> int:
            headers = {"Authorization": f"Bearer {texts[scope]}"}
            response = client.request(method, path, headers=headers, json={"prompt": "x"} if method == "POST" else None)
            if response.status_code == 403:
                assert response.json()["error"]["code"] == "insufficient_scope"
            return response.status_code

        assert status("read", "POST", "/v1/videos") == 403
        assert status("read", "GET", "/generate_web?prompt=x") == 403
        assert status("read", "GET", "/v1/videos") == 200
        assert status("read", "GET", "/metrics") == 403
        assert status("generate", "POST", "/v1/videos") == 200
        assert status("generate", "GET", "/v1/videos") == 403
        assert status("metrics", "GET", "/metrics") == 200


def test_A9_signed_links(api: TestClient, app: FastAPI, made: Make) -> None:
    first, second = made()["id"], made(prompt="a dog")["id"]
    path = f"/v1/videos/{first}/content"
    link = links.sign(SECRET, path, "ann", {"variant": "video"})
    with strangers(app) as nobody:
        assert nobody.get(link).status_code == 200
        assert nobody.get(link).status_code == 200, "until its time is over"
        late = links.sign(SECRET, path, "ann", {"variant": "video"}, seconds=-1)
        for altered in (
            link.replace("variant=video", "variant=audio"),
            link.replace(first, second),
            link.replace("exp=", "exp=9"),
            link.replace("by=ann", "by=bob"),
            link + "&variant=audio",
            late,
        ):
            refused = nobody.get(altered)
            assert refused.status_code == 403, altered
        assert nobody.delete(link.replace("/content", "")).status_code == 403
        assert nobody.get(path).status_code == 401


def test_A10_every_route_without_a_token(place: Studio) -> None:
    app = app_of(place, Names())
    found: set[tuple[str, str]] = set()
    document = app.openapi()["paths"]
    for path, methods in document.items():
        found |= {(path, method.upper()) for method in methods}
    routes = flat(app.routes)
    assert {("/generate_web", "OPTIONS"), ("/enqueue", "POST")} <= {(r.path, m) for r in routes for m in r.methods}
    for route in routes:
        found |= {(route.path, method) for method in route.methods}
    assert len(found) > 15
    with strangers(app) as client:
        for path, method in sorted(found):
            status = client.request(method, path.replace("{id}", "video_1")).status_code
            if method == "OPTIONS":
                assert status in (204, 405)
            elif path in PUBLIC:
                assert status in (200, 503), path
            else:
                assert status == 401, (method, path)
        for path in ("/", "/docs", "/v1/nothing", "/livez/", "//livez", "/LIVEZ", "/livez/../v1/videos"):
            assert client.get(path).status_code == 401, path


def flat(routes: Any) -> list[APIRoute]:
    """Every route, also those of routers that are included as a whole."""
    found: list[APIRoute] = []
    for route in routes:
        if isinstance(route, APIRoute):
            found.append(route)
        else:
            inner = getattr(route, "original_router", route)
            found += flat(getattr(inner, "routes", None) or [])
    return found


def test_A11_guessing_tokens(place: Studio) -> None:
    app = app_of(place, Names())
    with strangers(app) as client:
        found = [client.get("/v1/videos", headers={"x-api-key": f"guess {number}"}) for number in range(1000)]
    counts = {status: sum(response.status_code == status for response in found) for status in (401, 429)}
    assert counts[401] + counts[429] == 1000 and counts[429] > 900
    assert 1 <= int(found[-1].headers["Retry-After"]) <= 120
    with TestClient(app, client=("203.0.113.9", 1), headers={"x-api-key": "ann", "Host": "localhost"}) as other:
        assert other.get("/v1/videos").status_code == 200
    with client_of(app) as same:
        assert same.get("/v1/videos").status_code == 200, "who has a token is not shut out by a neighbour"


def test_A12_pages_of_other_sites(place: Studio) -> None:
    keys = Keyring(list, open_house=True)
    with strangers(app_of(place, keys)) as client:

        def status(method: str, path: str, **headers: str) -> int:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            return client.request(method, path, headers=given, json={"prompt": "a cat"}).status_code

        for origin in ("null", "https://evil.example", "http://localhost:1", "http://localhost.evil.example", "x"):
            assert status("POST", "/v1/videos", Origin=origin) == 403, origin
            assert status("DELETE", "/v1/videos/x", Origin=origin) == 403
        assert status("POST", "/v1/videos", Origin="http://localhost") == 200
        for host in ("attacker.example", "127.0.0.1.attacker.example", "", "localhost.attacker.example:80"):
            assert status("POST", "/v1/videos", Host=host) == 403, host
            assert status("GET", "/v1/videos", Host=host) == 403, host
        assert status("GET", "/v1/videos", Host="127.0.0.1:8000") == 200
        assert status("GET", "/v1/videos", Host="[::1]:8000") == 200
        # A picture on another page would make a job: it comes without Origin.
        assert status("GET", "/generate_web?prompt=x", Sec_Fetch_Site="cross-site") == 403
        assert client.get("/livez", headers={"Host": "10.1.2.3:8000"}).status_code == 200, "probes call by address"
    with strangers(app_of(place, Names(), host="0.0.0.0", hosts=("video.example",))) as client:
        for host, expected in (("video.example", 200), ("VIDEO.example:443", 200), ("localhost", 403)):
            headers = {"Host": host, "x-api-key": "ann"}
            assert client.get("/v1/videos", headers=headers).status_code == expected, host


def test_G9_preflights_of_other_sites(place: Studio) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    with strangers(app_of(place, Names())) as client:
        answer = client.options("/v1/videos", headers=asked | {"Origin": "https://app.example"})
        assert "access-control-allow-origin" not in answer.headers, "off unless asked for"
    with strangers(app_of(place, Names(), origins=("https://app.example",))) as client:
        answer = client.options("/v1/videos", headers=asked | {"Origin": "https://app.example"})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "access-control-allow-credentials" not in answer.headers
        other = client.options("/v1/videos", headers=asked | {"Origin": "https://evil.example"})
        assert other.status_code == 400 and "access-control-allow-origin" not in other.headers
        headers = {"Origin": "https://app.example", "Authorization": "Bearer ann"}
        made = client.post("/v1/videos", json={"prompt": "a cat"}, headers=headers)
        assert made.status_code == 200
        assert made.headers["access-control-allow-origin"] == "https://app.example"
        headers["Authorization"] = "Bearer"
        assert client.get("/v1/videos", headers=headers).headers["access-control-allow-origin"] == "https://app.example"


def test_the_database_holds_no_token(place: Studio, tokens: Tokens, tmp_path: Path) -> None:
    _, text = tokens.add("ann", Grant())
    found = read(text)
    assert found
    path = Path(place.store.database.url.database or "")
    held = b"".join(file.read_bytes() for file in path.parent.glob("jobs.db*"))
    assert found[0].encode() in held
    assert found[1].encode() not in held
