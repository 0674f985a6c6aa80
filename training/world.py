"""The toy world: seeded scenes of one coloured shape that moves over a background with a sound tied to what is seen.

The picture is `height` = 1 unit high and as wide as its aspect; places across are a share of the width, so that a scene
looks alike at every size. Commands: `python -m training.world prompts` writes the held-out prompts of the judge,
`python -m training.world sheet OUT.png` renders scenes to look at.
"""

import json
import math
import random
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.captions import caption

__all__ = ["Scene", "caption", "contacts", "is_held_out", "render", "sample_scenes", "sound"]

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
SHAPES = ("circle", "square", "triangle", "star")
SIZES = ("small", "large")
MOTIONS = ("left", "right", "up", "down", "bounce", "grow", "shrink", "spin", "rest")
HARD = ("bounce", "spin")  # their pictures change most from frame to frame, and stay blurred longest
BACKGROUNDS = ("dark", "light", "gradient", "striped", "checkered")
PITCHES = ("low", "middle", "high")
SOUNDS = ("tone", "beeps", "silence")
ATTRIBUTES = ("colour", "shape", "size", "motion", "background", "sound", "pitch")

PROMPTS = Path(__file__).parents[1] / "src/ltx2/judge/prompts.json"
HELD_OUT_PERCENT = 15
RGB = {
    "red": (0.88, 0.08, 0.10),
    "orange": (1.00, 0.50, 0.02),
    "yellow": (0.98, 0.92, 0.10),
    "green": (0.08, 0.70, 0.18),
    "blue": (0.10, 0.25, 0.95),
    "purple": (0.62, 0.12, 0.80),
}
RADIUS = {"small": 0.115, "large": 0.19}  # of the circle of equal area, in frame heights
HERTZ = {"low": 220.0, "middle": 660.0, "high": 1760.0}
HARMONICS = (1.0, 0.3, 0.1)
LOUDNESS = 0.4
BEEP_SECONDS = 0.1
MARGIN = 0.03
FLOOR = 0.96
ASPECT = 4 / 3  # of the frames that the margins left and right are meant for
# Revolutions a second. A latent holds a third of a second, and a star looks the same after a fifth of a turn: faster than
# 0.3, neighbouring latents no longer tell which way it turns. A spin begins upright, as the shape stands in other motions,
# and goes clockwise: of angles that no word names, a small model makes the mean, a star of seven points.
TURNS = (0.19, 0.21)
GROWTH = 1.35  # a growing shape goes from 1/GROWTH to GROWTH times its size
# corners and the ratio of inner to outer radius: every shape is a star polygon, the circle one of 48 corners
CORNERS = {"circle": 48, "square": 4, "triangle": 3, "star": 5}
INNER = {name: math.cos(math.pi / n) for name, n in CORNERS.items()} | {"star": 0.5}


@dataclass(frozen=True)
class Scene:
    """All that a clip shows and sounds: seven words, and the jitter that no caption names.

    `pitch` is "none" for silence. `x`, `y`, `start`, `stop` are shares of the room that the shape has; `scale`
    multiplies the size; `tint` is added to the colour (RGB of 0..1), `shade` to the background; `hertz` is the exact
    pitch, `period` the seconds from bounce to bounce, `contact` the second of the first one, `turns` the revolutions a
    second, `phase` that of the tone's wave.
    """

    colour: str
    shape: str
    size: str
    motion: str
    background: str
    sound: str
    pitch: str
    x: float = 0.5
    y: float = 0.5
    start: float = 0.0
    stop: float = 1.0
    scale: float = 1.0
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shade: float = 0.0
    hertz: float = 0.0
    period: float = 0.65
    contact: float = 0.3
    turns: float = 0.35
    phase: float = 0.0

    def attributes(self) -> dict[str, str]:
        """The seven words, by name."""
        return {name: getattr(self, name) for name in ATTRIBUTES}


def is_held_out(scene: Scene) -> bool:
    """Whether the scene's combination of attributes is kept from training: the same 15 % on every machine."""
    return zlib.crc32("|".join(scene.attributes().values()).encode()) % 100 < HELD_OUT_PERCENT


def sample_scenes(n: int, seed: int, held_out: bool = False) -> list[Scene]:
    """Draw `n` scenes; `held_out=False` never yields a held-out combination, `True` only those."""
    rng = random.Random(seed)
    scenes: list[Scene] = []
    while len(scenes) < n:
        scene = _draw(rng)
        if is_held_out(scene) == held_out:
            scenes.append(scene)
    return scenes


def _draw(rng: random.Random) -> Scene:
    shape, motion = rng.choice(SHAPES), rng.choice(MOTIONS)
    if motion == "spin" and shape == "circle":
        shape = rng.choice(SHAPES[1:])
    kinds = ("beeps", "beeps", "beeps", "tone", "silence") if motion == "bounce" else ("tone",) * 4 + ("silence",)
    kind = rng.choice(kinds)
    pitch = "none" if kind == "silence" else rng.choice(PITCHES)
    return Scene(
        colour=rng.choice(COLOURS),
        shape=shape,
        size=rng.choice(SIZES),
        motion=motion,
        background=rng.choice(BACKGROUNDS),
        sound=kind,
        pitch=pitch,
        x=rng.random(),
        y=rng.random(),
        start=rng.uniform(0.0, 0.12),
        stop=rng.uniform(0.88, 1.0),
        scale=rng.uniform(0.94, 1.06),
        tint=(rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04)),
        shade=rng.uniform(-0.03, 0.03),
        hertz=0.0 if pitch == "none" else HERTZ[pitch] * rng.uniform(0.96, 1.04),
        period=rng.uniform(0.55, 0.75),
        contact=rng.uniform(0.15, 0.5),
        turns=rng.choice(TURNS) * rng.uniform(0.98, 1.02),
        phase=rng.uniform(0.0, 2 * math.pi),
    )


@dataclass(frozen=True)
class _Path:
    """Where the shapes are, all [N, T]: `x` in shares of the width, `y` and `radius` in heights, `angle` in radians."""

    x: Tensor
    y: Tensor
    radius: Tensor
    angle: Tensor


def _column(scenes: list[Scene], value: Callable[[Scene], float], device: torch.device | str) -> Tensor:
    return torch.tensor([value(scene) for scene in scenes], dtype=torch.float32, device=device)[:, None]


def _outer(shape: str) -> float:
    """Circumradius of a shape whose area is that of the unit circle."""
    n = CORNERS[shape]
    return math.sqrt(math.pi / (n * INNER[shape] * math.sin(math.pi / n)))


def _extents(scene: Scene) -> tuple[float, float, float]:
    """How far the shape reaches at its largest to the side, up and down, in frame heights."""
    outer, n = _outer(scene.shape), CORNERS[scene.shape]
    largest = RADIUS[scene.size] * scene.scale * (GROWTH if scene.motion in ("grow", "shrink") else 1.0)
    if scene.motion == "spin" or scene.shape == "circle":
        reach = largest * outer
        return reach, reach, reach
    if scene.shape == "square":
        reach = largest * outer * math.sqrt(0.5)
        return reach, reach, reach
    side = math.sin(math.radians(120 if n == 3 else 72))
    return largest * outer * side, largest * outer, largest * outer * math.cos(math.pi / n)


def _paths(scenes: list[Scene], times: Tensor, seconds: float) -> _Path:
    """Follow every scene at `times` [T] (seconds) of a clip of `seconds`."""
    device = times.device

    def column(value: Callable[[Scene], float]) -> Tensor:
        return _column(scenes, value, device)

    def moves(*motions: str) -> Tensor:
        return column(lambda scene: scene.motion in motions) > 0

    part = (times / seconds)[None]
    start, stop = column(lambda s: s.start), column(lambda s: s.stop)
    forth = start + (stop - start) * part
    side, above, below = (column(lambda s, i=i: _extents(s)[i]) for i in range(3))
    across = column(lambda s: s.x).expand(-1, len(times))
    across = torch.where(moves("right"), forth, torch.where(moves("left"), 1 - forth, across))
    down = column(lambda s: s.y).expand(-1, len(times))
    down = torch.where(moves("down"), forth, torch.where(moves("up"), 1 - forth, down))
    swing = torch.remainder(times[None] - column(lambda s: s.contact), column(lambda s: s.period))
    hop = 1 - (2 * swing / column(lambda s: s.period) - 1) ** 2
    down = torch.where(moves("bounce"), 1 - stop * hop, down)

    edge = (side + MARGIN) / ASPECT
    top, bottom = above + MARGIN, FLOOR - below
    growth = (2 * part - 1) * column(lambda s: {"grow": 1, "shrink": -1}.get(s.motion, 0))
    radius = column(lambda s: RADIUS[s.size] * s.scale) * GROWTH**growth
    turn = 2 * math.pi * column(lambda s: s.turns if s.motion == "spin" else 0.0) * times[None]
    upright = column(lambda s: math.pi / 4 if s.shape == "square" else -math.pi / 2)
    return _Path(
        x=edge + across * (1 - 2 * edge),
        y=top + down * (bottom - top),
        radius=radius,
        angle=upright + turn,
    )


def _backgrounds(scenes: list[Scene], height: int, width: int, device: torch.device | str) -> Tensor:
    """[N, 3, H, W] in 0..1."""
    y = ((torch.arange(height, device=device) + 0.5) / height)[:, None].expand(height, width)
    x = ((torch.arange(width, device=device) + 0.5) / width)[None].expand(height, width)
    sharp = height / 6.0  # a soft edge of a few pixels

    def wave(value: Tensor, cells: int) -> Tensor:
        return torch.clamp(torch.sin(math.pi * cells * value) * sharp / cells, -1, 1)

    def grey(value: Tensor) -> Tensor:
        return value[None].expand(3, height, width)

    top = torch.tensor((0.08, 0.12, 0.32), device=device)[:, None, None]
    bottom = torch.tensor((0.62, 0.76, 0.92), device=device)[:, None, None]
    kinds = {
        "dark": grey(torch.full_like(x, 0.06)),
        "light": grey(torch.full_like(x, 0.92)),
        "gradient": top + (bottom - top) * y,
        "striped": grey(0.48 + 0.16 * wave(x, 8)),
        "checkered": grey(0.48 + 0.16 * wave(x, 4) * wave(y, 3)),
    }
    shade = _column(scenes, lambda s: s.shade, device)[..., None, None]
    table = torch.stack([kinds[name] for name in BACKGROUNDS])
    return table[[BACKGROUNDS.index(scene.background) for scene in scenes]] + shade


def render(
    scenes: list[Scene], frames: int, height: int, width: int, fps: float, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Draw clips: video [N, 3, F, H, W] float32 in -1..1 and the shape's mask [N, 1, F, H, W] in 0..1, on `device`.

    All shapes are star polygons: folded into half a sector, the outline is one line, so the distance to it is
    `rho * cos(a - beta) - c` for every shape at once.
    """
    times = torch.arange(frames, device=device, dtype=torch.float32) / fps
    path = _paths(scenes, times, frames / fps)
    sector = _column(scenes, lambda s: 2 * math.pi / CORNERS[s.shape], device)[..., None, None]
    slope = _column(scenes, lambda s: _edge_angle(s.shape), device)[..., None, None]
    reach = _column(scenes, lambda s: _outer(s.shape) * math.cos(_edge_angle(s.shape)), device)[..., None, None]
    aspect = width / height
    y = ((torch.arange(height, device=device) + 0.5) / height)[:, None] - path.y[..., None, None]
    x = ((torch.arange(width, device=device) + 0.5) / height)[None] - path.x[..., None, None] * aspect
    angle = torch.atan2(y, x).sub_(path.angle[..., None, None] - sector / 2)
    angle = angle.remainder_(sector).sub_(sector / 2).abs_().sub_(slope).cos_()
    distance = torch.hypot(x, y).mul_(angle).sub_(reach * path.radius[..., None, None])
    mask = distance.mul_(-height / 1.5).add_(0.5).clamp_(0, 1)[:, None]
    colour = torch.tensor([[c + t for c, t in zip(RGB[s.colour], s.tint, strict=True)] for s in scenes], device=device)
    ground = _backgrounds(scenes, height, width, device).clamp(0, 1).mul(2).sub(1)[:, :, None]
    ink = colour.clamp(0, 1).mul(2).sub(1)[:, :, None, None, None]
    return torch.addcmul(ground, mask, ink - ground), mask


def _edge_angle(shape: str) -> float:
    """Direction of the normal of the outline inside half a sector that begins at an outer corner."""
    half = math.pi / CORNERS[shape]
    return math.atan2(1 - INNER[shape] * math.cos(half), INNER[shape] * math.sin(half))


def contacts(scene: Scene, seconds: float) -> list[float]:
    """The seconds at which a bouncing shape touches the floor within a clip of `seconds`; empty for other motions."""
    if scene.motion != "bounce":
        return []
    return [scene.contact + i * scene.period for i in range(math.ceil((seconds - scene.contact) / scene.period))]


def sound(scenes: list[Scene], seconds: float, sampling_rate: int, device: torch.device | str) -> Tensor:
    """The waveforms [N, 2, S] float32 in -1..1, S = round(seconds * sampling_rate); the equal-power pan follows x."""
    times = torch.arange(round(seconds * sampling_rate), device=device, dtype=torch.float32) / sampling_rate
    path = _paths(scenes, times, seconds)
    cycles = _column(scenes, lambda s: s.hertz, device) * times + _column(scenes, lambda s: s.phase, device)
    wave = sum(level * torch.sin(2 * math.pi * (i + 1) * cycles) for i, level in enumerate(HARMONICS))
    since = torch.remainder(
        times - _column(scenes, lambda s: s.contact, device), _column(scenes, lambda s: s.period, device)
    )
    # no beep belongs to the time before the first contact
    since = torch.where(times[None] < _column(scenes, lambda s: s.contact, device), torch.full_like(since, 9.0), since)
    beep = (since / 0.005).clamp(0, 1) * ((BEEP_SECONDS - since) / 0.02).clamp(0, 1)
    tone = (times / 0.04).clamp(0, 1) * ((seconds - times) / 0.06).clamp(0, 1)
    level = torch.where(
        _column(scenes, lambda s: s.sound == "beeps", device) > 0,
        beep,
        _column(scenes, lambda s: s.sound == "tone", device) * tone,
    )
    pan = path.x * (math.pi / 2)
    return (LOUDNESS * level * wave)[:, None] * torch.stack((pan.cos(), pan.sin()), dim=1)


def clip(
    scene: Scene, frames: int = 49, height: int = 192, width: int = 256, fps: float = 24.0, rate: int = 16000
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """One scene as the judge takes it: video uint8 [F, H, W, 3] and audio float32 [2, S], both NumPy arrays."""
    video, _ = render([scene], frames, height, width, fps, "cpu")
    picture = ((video[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()
    return picture.numpy(), sound([scene], frames / fps, rate, "cpu")[0].numpy()


def write_prompts(path: Path = PROMPTS, count: int = 270, seed: int = 7) -> None:
    """Write `count` different held-out prompts with their attributes.

    Every motion has an equal share but bounce, which has two: only there is a beep to be measured.
    """
    rng = random.Random(seed)
    pool: dict[str, dict[tuple[str, ...], Scene]] = {motion: {} for motion in MOTIONS}
    for scene in sample_scenes(count * 20, seed, held_out=True):
        pool[scene.motion].setdefault(tuple(scene.attributes().values()), scene)
    share = count // (len(MOTIONS) + 1)
    rows = []
    for motion in MOTIONS:
        for scene in list(pool[motion].values())[: share * (2 if motion == "bounce" else 1)]:
            rows.append({"prompt": caption(scene, rng), "attributes": scene.attributes()})
    rng.shuffle(rows)
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def write_sheet(path: Path, seed: int = 0) -> None:
    """Render two scenes of every motion with their captions, to look at."""
    from ltx2.judge.sheet import contact_sheet, stack

    rng, pool = random.Random(seed), sample_scenes(400, seed)
    chosen = [scene for motion in MOTIONS for scene in [s for s in pool if s.motion == motion][:2]]
    clips = [(clip(scene, height=96, width=128), caption(scene, rng)) for scene in chosen]
    stack([contact_sheet(video, audio, 16000, text) for (video, audio), text in clips]).save(path)


if __name__ == "__main__":
    if sys.argv[1:] == ["prompts"]:
        write_prompts()
    elif len(sys.argv) == 3 and sys.argv[1] == "sheet":
        write_sheet(Path(sys.argv[2]))
    else:
        sys.exit("usage: python -m training.world prompts | sheet OUT.png")
