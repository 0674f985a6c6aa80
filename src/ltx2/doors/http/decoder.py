"""A program of its own that turns one foreign picture into a plain PNG: bytes in on stdin, bytes out on stdout.

It runs without the package, with little memory and time, so that a picture that breaks a decoder breaks nothing else.
Exit codes: 0 done, 3 refused by its header, 4 broken, 5 not one of the three formats.
"""

from __future__ import annotations

import io
import resource
import struct
import sys
import warnings

MEMORY = 1024**3
CPU_SECONDS = 20
MAX_SIDE = 8192
MAX_PIXELS = 40_000_000
# What is kept: no model makes more than 2048 x 2048.
KEPT_PIXELS = 2 * 2048 * 2048
MIN_SIDE = 16
MAX_RATIO = 16
REFUSED, BROKEN, FOREIGN = 3, 4, 5


def sniff(data: bytes) -> str | None:
    """PNG, JPEG or WEBP by the first bytes, whatever the sender calls it."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def bounded(width: int, height: int) -> bool:
    """Whether a picture of this size is worth decoding."""
    least, most = sorted((width, height))
    return least >= MIN_SIDE and most <= MAX_SIDE and width * height <= MAX_PIXELS and most <= least * MAX_RATIO


def decode(data: bytes, kind: str) -> bytes:
    """The first picture, upright, RGB, as a PNG without anything else in it. Transparency becomes white."""
    from PIL import Image, ImageOps

    Image.MAX_IMAGE_PIXELS = None  # the header was checked above, with tighter limits
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        if not bounded(*image.size):
            raise OverflowError
        image.load()
        picture = ImageOps.exif_transpose(image)
    if picture.mode.startswith("I;16") or picture.mode == "I":
        # Pillow clips 16-bit grey instead of scaling it.
        picture = picture.point(lambda value: value / 256).convert("L")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture.convert("RGBA"))
    picture = picture.convert("RGB")
    if picture.width * picture.height > KEPT_PIXELS:
        share = (KEPT_PIXELS / (picture.width * picture.height)) ** 0.5
        picture = picture.resize(
            (round(picture.width * share), round(picture.height * share)), Image.Resampling.LANCZOS
        )
    plain = Image.new("RGB", picture.size)
    plain.paste(picture)
    out = io.BytesIO()
    plain.save(out, "PNG", compress_level=1)
    return out.getvalue()


def header(data: bytes, kind: str) -> tuple[int, int] | None:
    """Width and height of a PNG before any decoder sees it; the others are small until they are loaded."""
    if kind == "PNG" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    return None


def main() -> int:
    """Decode stdin to stdout; says nothing, for the words of a decoder may hold addresses."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    data = sys.stdin.buffer.read()
    kind = sniff(data)
    if kind is None:
        return FOREIGN
    size = header(data, kind)
    if size is not None and not bounded(*size):
        return REFUSED
    try:
        plain = decode(data, kind)
    except OverflowError:
        return REFUSED
    except Exception:  # whatever a decoder raises, the picture is what is wrong
        return BROKEN
    sys.stdout.buffer.write(plain)
    return 0


if __name__ == "__main__":
    sys.exit(main())
