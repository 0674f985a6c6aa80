"""What the doctor sees of memory and GPUs, and which presets of a model they hold; nothing is loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import replace

from ltx2.doors.show import size
from ltx2.models.checkup import Finding
from ltx2.models.describe import Source, read_card
from ltx2.spec.errors import DoesNotFit, Ltx2Error, RefusedRequest
from ltx2.spec.plan import resolve
from ltx2.spec.precision import Held
from ltx2.spec.presets import PRESETS
from ltx2.spec.request import request

DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def look(device: str) -> Iterator[Finding]:
    """Memory and GPUs as torch sees them, and what the driver says; `device` is the one that the settings name."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    yield Finding("memory", True, f"{size(memory.available)} of {size(memory.total)} free, {os.cpu_count()} CPUs")
    driver, trouble = _driver()
    if torch.cuda.is_available():
        yield from (_gpu(index, driver or "unknown") for index in range(torch.cuda.device_count()))
    elif driver or trouble:
        from ltx2.engine.factory import trouble as reason

        text = trouble or f"a driver ({driver}) is there, but torch {torch.__version__} sees no GPU: {reason()}"
        # Who asks for the CPU misses nothing.
        yield Finding("gpu", device == "cpu", text, note=True)
    else:
        yield Finding("gpu", True, "none found: the CPU works", note=True)


def _gpu(index: int, driver: str) -> Finding:
    import torch

    name = f"cuda:{index}"
    try:
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        model = torch.cuda.get_device_name(index)
    except RuntimeError as error:
        # In exclusive use by another process, for example, or fallen off the bus.
        return Finding(name, False, f"it does not answer: {str(error).splitlines()[0]}; driver {driver}")
    text = f"{model}, compute {major}.{minor}, {size(free)} of {size(total)} free, driver {driver}"
    known = torch.cuda.get_arch_list()
    if known and not _has_kernels((major, minor), known):
        return Finding(name, False, f"{text}; torch {torch.__version__} has kernels for {', '.join(known)} only")
    return Finding(name, True, f"{text}, CUDA {torch.version.cuda} in torch")


def _has_kernels(capability: tuple[int, int], known: Iterable[str]) -> bool:
    """Whether code for some of these architectures runs: sm_ of the same generation, compute_ of any before."""
    for architecture in known:
        kind, _, number = architecture.partition("_")
        digits = "".join(filter(str.isdigit, number))
        built = (int(digits[:-1]), int(digits[-1]))
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def _driver() -> tuple[str, str]:
    """The driver's version, and what is wrong with it; both empty where there is no driver."""
    if shutil.which(DRIVER[0]) is None:
        return "", ""
    try:
        done = subprocess.run(DRIVER, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"nvidia-smi does not answer: {error}"
    said = (done.stdout.strip() or done.stderr.strip() or "nothing").splitlines()[0]
    return ("", f"nvidia-smi fails: {said}") if done.returncode else (said, "")


def fits(subject: str, source: Source, device: str, held: Held, needed: bool) -> Finding:
    """Which presets of a model a device holds at their own sizes, by counting against what is free now.

    A model of which it holds none is wrong when it is `needed`, else worth a note.
    """
    try:
        held_by, not_held, hint = _presets(source, device, held)
    except Ltx2Error as error:
        return Finding(subject, False, str(error))
    if not held_by:
        text = f"does not fit on {device}: {_span(not_held)} in {held.precision}; {hint}"
        return Finding(subject, not needed, text, note=True)
    others = f"; {', '.join(not_held)} would take {_span(not_held)}" if not_held else ""
    return Finding(
        subject, True, f"{', '.join(held_by)} fit on {device}, with {_span(held_by)} in {held.precision}{others}"
    )


def _presets(source: Source, device: str, held: Held) -> tuple[dict[str, int], dict[str, int], str]:
    """Bytes of the presets that fit and of those that do not, and what of the smallest of these would."""
    import torch

    from ltx2.engine import memory

    card, place = read_card(source), torch.device(device)
    # As `check` counts it.
    held = replace(held, fast=held.fast and place.type == "cuda")
    fitting: dict[str, int] = {}
    others: dict[str, int] = {}
    hints: dict[int, str] = {}
    for preset in PRESETS[card.family]:
        try:
            plan = resolve(request(prompt="x", preset=preset), card)
        except RefusedRequest:
            continue  # A recipe that this kind of checkpoint does not have.
        try:
            fit = memory.check(plan, card, place, held, loaded=False)
            fitting[preset] = memory.wanted(plan, card, held, loaded=False, tiled=fit.tiled)
        except DoesNotFit as error:
            others[preset] = memory.wanted(plan, card, held, loaded=False, tiled=True)
            hints[others[preset]] = error.hint or "no size fits"
    return fitting, others, hints[min(hints)] if hints else ""


def _span(bytes_of: dict[str, int]) -> str:
    return " to ".join(dict.fromkeys(size(end(bytes_of.values())) for end in (min, max)))
