"""Pictures that clients send: found in the request, decoded in a process of its own, stored under their checksum."""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ltx2.doors.addresses import UrlNotAllowed
from ltx2.doors.http import decoder
from ltx2.doors.http.body import Body, clip
from ltx2.doors.http.refusals import (
    Busy,
    Conflicting,
    FieldNotOffered,
    ForeignMedia,
    InvalidMedia,
    TooLarge,
    Unwritable,
)
from ltx2.doors.http.schemas import Asked, Link, Reference
from ltx2.spec.errors import RefusedRequest

LOG = logging.getLogger(__name__)
MAX_IMAGE = 20 * 1024 * 1024
DECODE_SECONDS = 30.0
FOLDER = "inputs"
# Each may take a gigabyte for a moment.
DECODERS = threading.BoundedSemaphore(2)
DATA_URL = re.compile(r"data:([\w.+/-]*)((?:;[\w.+=-]+)*?)(;base64)?,", re.ASCII)
PART_NAMES = ("input_reference", "image")
SHAPE = (
    f"sides from {decoder.MIN_SIDE} to {decoder.MAX_SIDE} pixels, at most {decoder.MAX_PIXELS // 1_000_000} megapixels,"
    f" one side at most {decoder.MAX_RATIO} times the other"
)

Fetch = Callable[[str, int], bytes]
"""Gets the bytes behind a URL, at most so many; refuses whatever is not a public https server."""


def image_of(asked: Asked, body: Body, fetch: Fetch | None) -> tuple[str, bytes] | None:
    """The field that brings a first frame and its bytes; None when none does.

    `fetch` is None where URLs are not taken. Raises RefusedRequest naming the field.
    """
    found: list[tuple[str, bytes | str]] = []
    if body.file is not None:
        if body.file[0] not in PART_NAMES:
            name = clip(body.file[0])
            raise RefusedRequest(f"{name}: no field takes a file of this name", knob=name, hint="input_reference does")
        found.append(body.file)
    found += _named(asked)
    if len(found) > 1:
        knob = found[1][0]
        raise Conflicting(f"{found[0][0]} and {knob} both bring a picture", knob=knob, hint="send one of them")
    if not found:
        return None
    knob, source = found[0]
    data = source if isinstance(source, bytes) else _open(knob, source, fetch)
    if len(data) > MAX_IMAGE:
        raise TooLarge(f"{knob}: the picture has more than {MAX_IMAGE} bytes", knob=knob)
    return knob, data


def _named(asked: Asked) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if isinstance(asked.input_reference, Reference):
        if asked.input_reference.file_id is not None or asked.input_reference.image_url is None:
            raise FieldNotOffered(
                "input_reference: files are not kept here", knob="input_reference", hint="send the picture itself"
            )
        found.append(("input_reference", _url(asked.input_reference.image_url)))
    elif asked.input_reference is not None:
        found.append(("input_reference", asked.input_reference))
    if asked.image is not None:
        found.append(("image", asked.image))
    for frame in asked.frame_images or ():
        if frame.frame_type != "first_frame":
            raise FieldNotOffered(
                "frame_images: this engine does not offer a last frame", knob="frame_images", hint="first_frame works"
            )
        found.append(("frame_images", _url(frame.image_url)))
    return found


def _url(link: str | Link) -> str:
    return link.url if isinstance(link, Link) else link


def _open(knob: str, source: str, fetch: Fetch | None) -> bytes:
    if source.startswith("data:"):
        return from_data_url(knob, source)
    if not re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", source):
        raise RefusedRequest(f"{knob}: it is no picture", knob=knob, hint="send a file part or a data URL")
    if fetch is None:
        raise UrlNotAllowed(
            f"{knob}: this server takes no URLs",
            knob=knob,
            hint="send the picture itself, as a file part or a data URL",
        )
    try:
        return fetch(source, MAX_IMAGE)
    except RefusedRequest as error:
        error.knob, error.message = knob, error.message.replace("url:", f"{knob}:", 1)
        raise


def from_data_url(knob: str, text: str) -> bytes:
    """The bytes of a data URL with base64. Raises RefusedRequest, or TooLarge."""
    head = DATA_URL.match(text[:256])
    if head is None or head[3] is None:
        raise RefusedRequest(f"{knob}: the data URL is not in base64", knob=knob, hint="as in data:image/png;base64,…")
    if not head[1].startswith("image/"):
        raise ForeignMedia(f"{knob}: the data URL is no picture", knob=knob, hint="as in data:image/png;base64,…")
    if len(text) - head.end() > MAX_IMAGE * 4 // 3 + 4:
        raise TooLarge(f"{knob}: the picture has more than {MAX_IMAGE} bytes", knob=knob)
    try:
        return base64.b64decode(text[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise RefusedRequest(f"{knob}: the data URL is not in base64", knob=knob) from None


def store(knob: str, data: bytes, folder: Path) -> Path:
    """Decode a field's picture and keep it under `folder`, named by the checksum of what is kept; returns the file.

    Raises ForeignMedia for anything but PNG, JPEG and WebP by its first bytes, InvalidMedia for one that cannot be
    read, and Unwritable.
    """
    plain = plain_png(data, knob)
    try:
        return _keep(plain, folder)
    except OSError as error:
        LOG.error("a picture could not be stored: %s", error)
        raise Unwritable("there is no room for the picture", hint="try again later") from None


def _keep(plain: bytes, folder: Path) -> Path:
    place = folder / FOLDER / f"{hashlib.sha256(plain).hexdigest()}.png"
    if place.is_file() and not place.is_symlink():
        # Young again: it is needed from now on.
        os.utime(place)
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".", suffix=".part", delete=False) as part:
        try:
            part.write(plain)
            part.flush()
            os.fsync(part.fileno())
            Path(part.name).replace(place)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise
    return place


def plain_png(data: bytes, knob: str, command: tuple[str, ...] = (sys.executable, "-I", decoder.__file__)) -> bytes:
    """A picture as an upright RGB PNG, made by the decoder in its own process. Raises ForeignMedia, InvalidMedia."""
    if decoder.sniff(data) is None:
        raise ForeignMedia(f"{knob}: neither PNG, JPEG nor WebP", knob=knob, hint="PNG, JPEG and WebP work")
    if not DECODERS.acquire(timeout=DECODE_SECONDS):
        raise Busy("too many pictures are being read", hint="try again in a moment")
    try:
        run = subprocess.run(command, input=data, capture_output=True, timeout=DECODE_SECONDS, env={}, check=False)
    except subprocess.TimeoutExpired:
        raise InvalidMedia(f"{knob}: the picture takes too long to read", knob=knob) from None
    finally:
        DECODERS.release()
    if run.returncode == decoder.REFUSED:
        raise InvalidMedia(f"{knob}: a picture of this size is not taken", knob=knob, hint=SHAPE)
    if run.returncode or decoder.sniff(run.stdout) != "PNG":
        raise InvalidMedia(f"{knob}: the picture cannot be read", knob=knob)
    return run.stdout


def forget(folder: Path, seconds: float) -> int:
    """Delete pictures that no request has brought for so long; returns how many."""
    gone = 0
    for path in (folder / FOLDER).glob("*"):
        try:
            if path.lstat().st_mtime < time.time() - seconds:
                path.unlink()
                gone += 1
        except FileNotFoundError:
            continue
    return gone
