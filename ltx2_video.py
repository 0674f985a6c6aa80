"""The service on Modal: `modal deploy ltx2_video.py`, `modal run ltx2_video.py --prompt "..."`,
`modal run ltx2_video.py::download`. What the functions do stands in `ltx2.doors.modal`; docs/06-modal.md explains it.

    web        CPU    the HTTP API, for many at once; starts no GPU for what it can answer itself
    Generator  GPU    one video at a time; started by jobs, leaves when idle
    download   CPU    fills the volume of weights, once
    sweep      CPU    now and then: ends lost jobs, deletes old files
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
if (HERE / "src" / "ltx2").is_dir():
    sys.path.insert(0, str(HERE / "src"))

import modal  # noqa: E402

from ltx2.doors.modal import deploy  # noqa: E402

PLACE = deploy.place(os.environ, HERE)
SETTINGS = PLACE.deployment
app = modal.App(SETTINGS.app)


@app.function(
    image=PLACE.web_image,
    secrets=PLACE.web_secrets,
    volumes=PLACE.web_volumes,
    cpu=0.5,
    memory=1024,
    max_containers=SETTINGS.web_containers,
    scaledown_window=60,
    timeout=3600,  # of one request: event streams are long
    enable_memory_snapshot=SETTINGS.snapshot != "none",
    region=SETTINGS.region,
)
@modal.concurrent(max_inputs=100)
@modal.asgi_app(label=SETTINGS.app)
def web():
    return PLACE.make_app(lambda token, job: Generator().generate.spawn(token, job).object_id)


@app.cls(
    image=PLACE.engine_image,
    gpu=list(SETTINGS.gpus),
    cpu=4,  # weights are read by several threads
    memory=16384,
    secrets=PLACE.gpu_secrets,
    volumes=PLACE.gpu_volumes,
    min_containers=SETTINGS.min_containers,
    max_containers=SETTINGS.max_containers,
    buffer_containers=SETTINGS.buffer_containers or None,
    scaledown_window=SETTINGS.scaledown_window,
    timeout=SETTINGS.timeout,
    startup_timeout=SETTINGS.startup_timeout,
    region=SETTINGS.region,
    enable_memory_snapshot=SETTINGS.snapshot != "none",
    experimental_options=PLACE.experimental,
)
class Generator:
    """Not async and one input at a time: only so can a running video be cancelled with its container kept warm."""

    @modal.enter(snap=SETTINGS.snapshot != "none")
    def load_code(self):
        self.worker = PLACE.begin()

    @modal.enter(snap=SETTINGS.snapshot == "gpu")
    def load_model(self):
        self.worker.load()

    @modal.enter(snap=False)
    def report(self):
        self.worker.ready()

    @modal.method()
    def generate(self, token: str, job: str) -> dict:
        return self.worker.make(token, job)

    @modal.method()
    def once(self, fields: dict) -> tuple[bytes, dict]:
        return self.worker.make_once(fields)

    @modal.exit()
    def leave(self):
        self.worker.leave()


@app.function(
    image=PLACE.engine_image,
    secrets=[PLACE.hub_secret],
    volumes=PLACE.download_volumes,
    timeout=6 * 3600,
    cpu=4,
    memory=8192,
)
def download():
    PLACE.download()


@app.function(
    image=PLACE.web_image,
    secrets=PLACE.web_secrets,
    volumes=PLACE.sweep_volumes,
    schedule=modal.Period(hours=PLACE.sweep_hours),
    timeout=900,
)
def sweep():
    PLACE.sweep(lambda token, job: Generator().generate.spawn(token, job).object_id)


@app.local_entrypoint()
def main(
    prompt: str,
    width: int = 0,
    height: int = 0,
    num_frames: int = 0,
    fps: float = 0.0,
    num_inference_steps: int = 0,
    seed: int = -1,
    output: str = "ltx2_output.mp4",
):
    """Make one video on a GPU of the account, without a deployed service, and write it to OUTPUT (ltx2_output.mp4).

    Size, length, frame rate and steps that are not given are those of the recipe (`classic`: 768x512, 97 frames, 24 a
    second, 10 steps), the seed is drawn. Needs the weights on their volume: `modal run ltx2_video.py::download`.
    """
    fields = deploy.fields_of(SETTINGS, prompt, width, height, num_frames, fps, num_inference_steps, seed)
    deploy.check_weights(SETTINGS)
    data, report = Generator().once.remote(fields)
    deploy.save(Path(output), data, report)
