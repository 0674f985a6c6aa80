"""The two container images: a small one without torch for requests, and the engine's for GPUs and downloads."""

from __future__ import annotations

from pathlib import Path

import modal

import ltx2
from ltx2.doors.modal.weights import EMBEDDED
from ltx2.spec.deployment import CARRIED, Deployment

PYTHON = "3.11"
PLACE = "/root/ltx2"
# What the package runs with; the tests of the deployment compare them with the project's constraints.
WEB = (
    "fastapi==0.165.0", "starlette==1.10.0", "pydantic==2.14.3", "python-multipart==0.0.34", "structlog==26.1.0",
    "prometheus-client==0.26.0", "sqlalchemy==2.1.9", "tenacity==9.2.1", "psycopg[binary]==3.3.9", "httpcore==1.0.9",
    "av==18.1.0", "pillow==13.0.0", "numpy==2.4.6", "tqdm==4.70.1",
)  # fmt: skip
ENGINE = (
    "torch==2.13.0", "diffusers==0.42.1", "transformers==5.17.0", "safetensors==0.8.0", "huggingface_hub==1.33.0",
    "accelerate==1.15.0", "tokenizers==0.23.3", "psutil==7.2.2", "httpx==0.28.1",
)  # fmt: skip


def web_image(deployment: Deployment, service: str) -> modal.Image:
    """For the web function and the sweep."""
    return _with_package(modal.Image.debian_slim(PYTHON).uv_pip_install(*WEB), deployment, {"LTX2_SERVICE": service})


def engine_image(deployment: Deployment) -> modal.Image:
    """For the GPU class and the download. Compiled kernels go to their volume; the hub is asked by the download only."""
    compiled = deployment.folder("compiled")
    variables = {
        "TORCHINDUCTOR_CACHE_DIR": str(compiled / "inductor"),
        "TRITON_CACHE_DIR": str(compiled / "triton"),
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "HF_XET_HIGH_PERFORMANCE": "1",
    }
    if deployment.snapshot == "gpu":
        # Compile workers would be part of the snapshot, and do not survive it.
        variables["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    return _with_package(modal.Image.debian_slim(PYTHON).uv_pip_install(*WEB, *ENGINE), deployment, variables)


def _with_package(image: modal.Image, deployment: Deployment, variables: dict[str, str]) -> modal.Image:
    carried = {CARRIED: deployment.carried(), **variables}
    # The weights of the embedded model only where it is served.
    left = ["**/__pycache__", "**/*.pyc", *([] if deployment.model == EMBEDDED else ["models/tiny/**/*.safetensors"])]
    package = Path(ltx2.__file__).parent
    return image.env(carried).add_local_dir(str(package), PLACE, ignore=left)
