"""Other forms of a finished video, made when they are first asked for and kept beside it under their checksum."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from PIL import Image

from ltx2.doors.http.published import open_published
from ltx2.doors.http.refusals import Gone, Unwritable
from ltx2.jobs.errors import NoSuchJob
from ltx2.spec.errors import GenerationFailed

LOG = logging.getLogger(__name__)
SMALL = 480  # pixels of the longer side of a gif, an animated WebP or a thumbnail
SMALL_FPS = 12
TILE = 160
TILES = 25

# PyAV is typed in part only.
Make = Callable[[Any, Path], None]


@dataclass(frozen=True)
class Form:
    """A form of a video: its name, the end of its files, its media type, and how it is made (None: it is there)."""

    name: str
    suffix: str
    media_type: str
    make: Make | None


def _frames(source: Any, every: int = 1) -> Iterator[Any]:
    for index, frame in enumerate(source.decode(video=0)):
        if index % every == 0:
            yield frame


def _count(source: Any) -> int:
    return int(source.streams.video[0].frames) or 1


def _fps(source: Any) -> Fraction:
    return source.streams.video[0].average_rate or Fraction(24)


def _within(frame: Any, side: int) -> Image.Image:
    picture: Image.Image = frame.to_image()
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def _writing(out: Path, kind: str, **options: str) -> Any:
    return av.open(str(out), "w", format=kind, options=options)


def make_webm(source: Any, out: Path) -> None:
    """VP9 and Opus at full size, every frame at its own time."""
    with _writing(out, "webm") as target:
        given = source.streams.video[0]
        video = target.add_stream("libvpx-vp9", rate=_fps(source))
        video.width, video.height, video.pix_fmt = given.width, given.height, "yuv420p"
        video.codec_context.options = {"deadline": "realtime", "cpu-used": "8", "crf": "32", "b": "0", "row-mt": "1"}
        sound = source.streams.audio[0] if source.streams.audio else None
        audio = target.add_stream("libopus", rate=48_000) if sound is not None else None
        resampler = av.AudioResampler(format="flt", layout="stereo", rate=48_000)
        streams: list[Any] = [given] if sound is None else [given, sound]
        for frame in source.decode(*streams):
            if isinstance(frame, av.VideoFrame):
                target.mux(video.encode(frame))
            elif audio is not None and isinstance(frame, av.AudioFrame):
                for part in resampler.resample(frame):
                    target.mux(audio.encode(part))
        target.mux(video.encode(None))
        if audio is not None:
            for part in resampler.resample(None):
                target.mux(audio.encode(part))
            target.mux(audio.encode(None))


def _animate(source: Any, out: Path, kind: str, **options: Any) -> None:
    """At most 480 pixels wide and 12 frames a second: both kinds grow quickly."""
    every = max(1, round(_fps(source) / SMALL_FPS))
    pictures = (_within(frame, SMALL) for frame in _frames(source, every))
    milliseconds = round(1000 * every / _fps(source))
    first = next(pictures)
    first.save(out, kind, save_all=True, append_images=pictures, duration=milliseconds, loop=0, **options)


def make_gif(source: Any, out: Path) -> None:
    """A gif without sound."""
    _animate(source, out, "GIF", optimize=False)


def make_webp(source: Any, out: Path) -> None:
    """An animated WebP without sound."""
    _animate(source, out, "WEBP", quality=70, method=0)


def make_thumbnail(source: Any, out: Path) -> None:
    """The frame in the middle, as WebP."""
    for index, frame in enumerate(_frames(source)):
        if index >= _count(source) // 2:
            _within(frame, SMALL).save(out, "WEBP", quality=80)
            return
    raise GenerationFailed("the video has no frame in its middle")


def make_spritesheet(source: Any, out: Path) -> None:
    """Up to 25 frames, evenly spread, row by row in a square of tiles 160 pixels wide or high, as JPEG."""
    count = _count(source)
    across = min(5, max(1, int(count**0.5)))
    wanted = {round(index * (count - 1) / max(1, across**2 - 1)) for index in range(across**2)}
    tiles = [_within(frame, TILE) for index, frame in enumerate(_frames(source)) if index in wanted]
    width, height = tiles[0].size
    sheet = Image.new("RGB", (across * width, -(-len(tiles) // across) * height))
    for index, tile in enumerate(tiles):
        sheet.paste(tile, (index % across * width, index // across * height))
    sheet.save(out, "JPEG", quality=85)


def make_last_frame(source: Any, out: Path) -> None:
    """The last frame at full size, as PNG: the first frame of what goes on from here."""
    last = deque(_frames(source), maxlen=1)
    if not last:
        raise GenerationFailed("the video has no frames")
    last[0].to_image().save(out, "PNG", compress_level=1)


def make_audio(source: Any, out: Path) -> None:
    """The sound track as it is, in an m4a. Raises NoSuchJob when there is none."""
    if not source.streams.audio:
        raise NoSuchJob("this video has no sound")
    given = source.streams.audio[0]
    with _writing(out, "mp4", movflags="+faststart") as target:
        audio = target.add_stream_from_template(given)
        for packet in source.demux(given):
            if packet.dts is not None:
                packet.stream = audio
                target.mux(packet)


MP4 = Form("video", ".mp4", "video/mp4", None)
FORMATS = {
    "mp4": MP4,
    "webm": Form("video", ".webm", "video/webm", make_webm),
    "gif": Form("video", ".gif", "image/gif", make_gif),
    "webp": Form("video", ".webp", "image/webp", make_webp),
}
VARIANTS = {
    "video": MP4,
    "thumbnail": Form("thumbnail", ".webp", "image/webp", make_thumbnail),
    "spritesheet": Form("spritesheet", ".jpg", "image/jpeg", make_spritesheet),
    "audio": Form("audio", ".m4a", "audio/mp4", make_audio),
    "last_frame": Form("last_frame", ".png", "image/png", make_last_frame),
}


def find(video: Path, form: Form) -> Path | None:
    """A form that was made before."""
    return next(iter(sorted(video.parent.glob(f"{form.name}-{'[0-9a-f]' * 64}{form.suffix}"))), None)


def make(video: Path, form: Form) -> Path:
    """Make a form of a video: complete and under its final name, `<name>-<sha256><suffix>`, or not there at all.

    Raises Gone when the video was deleted meanwhile, NoSuchJob for the sound of a silent one, and Unwritable.
    """
    found = find(video, form)
    if found is not None or form.make is None:
        return found or video
    try:
        with tempfile.TemporaryDirectory(dir=video.parent, prefix=".", suffix=".part") as folder:
            part = Path(folder) / f"out{form.suffix}"
            with os.fdopen(open_published(video), "rb") as file, av.open(file, format="mp4") as source:
                form.make(source, part)
            with part.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            return part.replace(video.with_name(f"{form.name}-{digest}{form.suffix}"))
    except FileNotFoundError:
        raise Gone("the files of this video were deleted") from None
    except OSError as error:
        LOG.error("%s could not be made: %s", form.name, error)
        raise Unwritable("there is no room for another form of this video", hint="the mp4 can be had") from None


def digest_of(form_file: Path) -> str:
    """The checksum in the name of a made form."""
    return form_file.stem.rpartition("-")[2]
