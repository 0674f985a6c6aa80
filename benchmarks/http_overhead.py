"""What the service adds to a video: from POST to `completed`, less the engine's own time for the same plan.

`python -m benchmarks.http_overhead` runs the embedded model behind a real server and a real worker, each job after
the one before, and prints JSON on its last line.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx

BODY = {"prompt": "a red circle moves to the right", "preset": "distilled", "frames": 9, "seed": 1}
JOBS = 12


def measure(jobs: int = JOBS) -> dict[str, Any]:
    """Seconds that the service adds, over some jobs after a warm-up."""
    from ltx2 import Engine, load
    from ltx2.jobs.shelf import Shelf
    from ltx2.jobs.store import Store
    from ltx2.jobs.worker import Worker
    from ltx2.models.describe import Source
    from tests.doors.http.fixtures import app_of, make_service, serving
    from tests.doors.http.studio import StandIn, Studio

    models = load(Source("tiny"))
    engine = Engine(models)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "shelf").mkdir()
        store, shelf, stop = Store(f"sqlite:///{folder / 'jobs.db'}"), Shelf(folder / "shelf"), threading.Event()
        worker = threading.Thread(target=Worker(store, engine.generate, shelf).run, args=(stop,), daemon=True)
        worker.start()
        place = Studio(store, shelf, StandIn(folder), folder, [], stop)
        service = make_service(place, models={"tiny": models.card})
        with (
            serving(app_of(service)) as address,
            httpx.Client(base_url=address, headers={"Authorization": "Bearer ann"}, timeout=300) as client,
        ):
            found = [_one(client) for _ in range(jobs + 2)][2:]
        stop.set()
        worker.join(30)
        store.close()
    added = [wall - own for wall, own in found]
    return {
        "jobs": jobs,
        "engine_seconds": round(statistics.median(own for _, own in found), 3),
        "submit_to_completed_seconds": round(statistics.median(wall for wall, _ in found), 3),
        "added_seconds": {"median": round(statistics.median(added), 3), "most": round(max(added), 3)},
    }


def _one(client: httpx.Client) -> tuple[float, float]:
    """Seconds from POST to `completed`, and the engine's own."""
    begun = time.perf_counter()
    response = client.post("/v1/videos", json=BODY, headers={"Prefer": "wait=120"})
    wall = time.perf_counter() - begun
    video = response.json()
    assert video["status"] == "completed", video
    return wall, video["usage"]["gpu_seconds"]


if __name__ == "__main__":
    print(json.dumps(measure() | {"python": platform.python_version(), "cores": os.cpu_count()}))
