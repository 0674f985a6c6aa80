"""One stand-in for all tests of this folder, with the service deployed on it by the real `modal` command."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fake_modal import FakeModal, Function
from tests.jobs.server import Server, started

TOKEN = "geheim-token"
AUTH = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class Deployed:
    """The service on the stand-in, under the name `app`."""

    machine: FakeModal
    settings: dict[str, str]
    root: Path
    app: str = "ltx2-video"

    def deploy(self, **more: str) -> subprocess.CompletedProcess[str]:
        """`modal deploy ltx2_video.py` in the repository's root."""
        return self.machine.command("deploy", "ltx2_video.py", **self.settings | more)

    def function(self, tag: str) -> Function:
        return self.machine.cloud.function(tag, self.app)

    @property
    def web(self) -> Function:
        return self.function("web")

    @property
    def gpu(self) -> Function:
        return self.function("Generator")

    @property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.web.url, timeout=60, headers=AUTH)

    def until(self, holds: Callable[[], Any], seconds: float = 90.0) -> Any:
        """Wait until something holds, and return it; the containers' logs are shown when it does not."""
        deadline = time.monotonic() + seconds
        while not (found := holds()):
            if time.monotonic() > deadline:
                raise AssertionError("waited in vain\n" + self.logs())
            time.sleep(0.05)
        return found

    def logs(self) -> str:
        containers = [other for function in self.machine.cloud.functions.values() for other in function.containers]
        return "\n".join(f"--- {other.function.tag}\n{self.machine.output(other)[-3000:]}" for other in containers)

    def ended(self, id: str, client: httpx.Client | None = None) -> dict[str, Any]:  # noqa: A002
        """Poll a job to its end."""
        ask = client or self.client

        def look() -> dict[str, Any] | None:
            job = ask.get(f"/v1/videos/{id}").json()
            return job if job["status"] in ("completed", "failed") else None

        return self.until(look)

    def call_of(self, number: int = -1) -> Any:
        """A call of the GPU class, the last one by default."""
        return [call for call in self.machine.cloud.calls.values() if call.function is self.gpu][number]


def serve(folder: Path) -> Iterator[Deployed]:
    """Deploy the service on a stand-in of its own."""
    root = folder / "root"
    settings = {"LTX2_MODAL_MODEL": "tiny", "LTX2_MODAL_ROOT": str(root), "LTX2_MODAL_GPUS": "H200,B200,H100"}
    settings["LTX2_MODAL_WARM_UP"] = "64x64x9"
    with FakeModal(folder) as machine:
        machine.cloud.secret("enter-token", ENTER_TOKEN=TOKEN)
        machine.cloud.secret("huggingface-secret", HF_TOKEN="hf_test")
        service = Deployed(machine, settings, root)
        done = service.deploy()
        assert done.returncode == 0 and "eprecat" not in done.stdout + done.stderr, done.stdout + done.stderr
        yield service
        assert machine.cloud.unknown == []


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """The service that is used."""
    yield from serve(tmp_path_factory.mktemp("deployed"))


@pytest.fixture(scope="session")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """The service that is only looked at: no container is started."""
    yield from serve(tmp_path_factory.mktemp("declared"))


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server, as for the tests of the jobs."""
    yield from started()
