"""`ltx2 doctor [NAME]`: what this machine is and can hold, and whether a model, here or on the hub, would load.

Exit codes: 0 all is well, 1 something is wrong, 2 refused (there is no such model).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from ltx2.doors.machine import device_of, precision_of, use_cache
from ltx2.doors.show import size
from ltx2.models.catalogue import find
from ltx2.models.checkup import Finding, check_local, check_remote
from ltx2.models.describe import PUBLISHED, Source, read_card
from ltx2.spec.errors import DoesNotFit, Ltx2Error, RefusedRequest
from ltx2.spec.plan import resolve
from ltx2.spec.presets import PRESETS
from ltx2.spec.request import request
from ltx2.spec.settings import Settings

_PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "huggingface_hub", "av")


def doctor_command(values: argparse.Namespace, settings: Settings) -> int:
    """Look at the machine, or at one model, and print what was found. Raises UnknownModel for a name that is nothing."""
    use_cache(settings)
    findings = check_model(values.name, values.revision) if values.name else check_machine(values, settings)
    wrong = [finding for finding in findings if not finding.ok]
    if values.json:
        print(json.dumps({"ok": not wrong, "findings": [asdict(finding) for finding in findings]}))
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            print(f"{'ok   ' if finding.ok else 'WRONG'}  {finding.subject.ljust(width)}  {finding.text}")
    return 1 if wrong else 0


def check_model(name: str, revision: str | None) -> list[Finding]:
    """Findings about a folder, a file, the embedded model, or a published model by its remote headers."""
    if name == "tiny" or Path(name).expanduser().exists():
        return check_local(name)
    entry = find(name)
    from ltx2.models import hub

    return check_remote(entry, hub.listing(entry.hub, revision or entry.revision))


def check_machine(values: argparse.Namespace, settings: Settings) -> list[Finding]:
    """Findings about packages, GPU, memory, disk and network settings, and what fits at the presets' own sizes."""
    versions = [(name, _version(name)) for name in _PACKAGES]
    missing = [name for name, version in versions if not version]
    packages = ", ".join(f"{name} {version or 'missing'}" for name, version in versions)
    findings = [
        Finding("python", True, f"{platform.python_version()} on {platform.platform()}"),
        Finding("packages", not missing, packages + ("; pip install 'ltx2[engine]'" if missing else "")),
    ]
    if "huggingface_hub" not in missing:
        findings += _disk_and_hub()
    if missing:
        return findings
    try:
        device = device_of(values, settings)
    except RefusedRequest as error:
        return [*findings, *_gpu(), Finding("device", False, str(error))]
    return [*findings, *_gpu(), *_fits(device, precision_of(values, settings, device))]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _disk_and_hub() -> list[Finding]:
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE).absolute()
    disk = next(parent for parent in (cache, *cache.parents) if parent.exists())
    access = "offline" if constants.HF_HUB_OFFLINE else constants.ENDPOINT
    return [
        Finding(
            "disk", os.access(disk, os.W_OK), f"{size(shutil.disk_usage(disk).free)} free for downloads in {cache}"
        ),
        Finding("hub", True, f"{access}, {'with' if get_token() else 'without'} a token"),
    ]


def _gpu() -> list[Finding]:
    """The GPUs that torch sees, and the driver's word where torch sees none."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    findings = [
        Finding("memory", True, f"{size(memory.available)} of {size(memory.total)} free, {os.cpu_count()} CPUs")
    ]
    driver = _driver()
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        name = f"{torch.cuda.get_device_name(index)}, compute {major}.{minor}, {size(free)} of {size(total)} free"
        findings.append(Finding(f"cuda:{index}", True, f"{name}, driver {driver}, CUDA {torch.version.cuda} in torch"))
    if not torch.cuda.is_available():
        text = (
            f"a driver ({driver}) is there, but torch {torch.__version__} sees no GPU"
            if driver
            else "none: the CPU works"
        )
        findings.append(Finding("gpu", not driver, text))
    return findings


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split("\n")[0].strip() if done.returncode == 0 else None


def _fits(device: str, precision: str) -> list[Finding]:
    """For every model the presets that this device can hold at their own sizes, by counting; nothing is loaded."""
    findings: list[Finding] = []
    for model in ("tiny", *PUBLISHED):
        try:
            findings.append(Finding(model, True, _fitting(model, device, precision)))
        except Ltx2Error as error:
            findings.append(Finding(model, False, str(error)))
    return findings


def _fitting(model: str, device: str, precision: str) -> str:
    import torch

    from ltx2.engine import memory
    from ltx2.spec.cost import need

    card = read_card(Source(model, "real" if model == "tiny" else "random"))
    fitting: list[str] = []
    needs: dict[str, int] = {}
    for preset in PRESETS[card.family]:
        try:
            plan = resolve(request(prompt="x", preset=preset), card)
        except RefusedRequest:
            continue  # A recipe that this kind of checkpoint does not have.
        needs[preset] = need(plan, card, precision).resident_bytes
        try:
            memory.check(plan, card, torch.device(device), precision, loaded=False)
            fitting.append(preset)
        except DoesNotFit:
            continue
    least = " to ".join(dict.fromkeys(size(end(needs.values())) for end in (min, max))) + f" in {precision}"
    return (
        f"{', '.join(fitting)} fit on {device} (they need {least})" if fitting else f"does not fit on {device}: {least}"
    )
