"""What people would write to get a scene: free English with synonyms, word order and punctuation varied."""

import random
from typing import Protocol


class Described(Protocol):
    """A scene as far as a caption names it."""

    @property
    def colour(self) -> str: ...
    @property
    def shape(self) -> str: ...
    @property
    def size(self) -> str: ...
    @property
    def motion(self) -> str: ...
    @property
    def background(self) -> str: ...
    @property
    def sound(self) -> str: ...
    @property
    def pitch(self) -> str: ...


COLOUR = {
    "red": ("red", "red", "bright red", "crimson"),
    "orange": ("orange", "orange", "bright orange"),
    "yellow": ("yellow", "yellow", "bright yellow"),
    "green": ("green", "green", "bright green"),
    "blue": ("blue", "blue", "deep blue"),
    "purple": ("purple", "purple", "violet"),
}
SHAPE = {
    "circle": ("circle", "ball", "ball", "disc", "round shape"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle", "triangle", "three-sided shape"),
    "star": ("star", "star", "five-pointed star"),
}
SIZE = {"small": ("small", "small", "tiny", "little"), "large": ("large", "large", "big", "huge")}
# third person, participle
MOTION = {
    "left": (
        ("moves left", "moving left"),
        ("moves to the left", "moving to the left"),
        ("slides left", "sliding left"),
        ("travels from right to left", "travelling from right to left"),
        ("glides towards the left", "gliding towards the left"),
    ),
    "right": (
        ("moves right", "moving right"),
        ("moves to the right", "moving to the right"),
        ("slides right", "sliding right"),
        ("travels from left to right", "travelling from left to right"),
        ("glides towards the right", "gliding towards the right"),
    ),
    "up": (
        ("moves up", "moving up"),
        ("rises", "rising"),
        ("floats upwards", "floating upwards"),
        ("climbs from the bottom to the top", "climbing from the bottom to the top"),
    ),
    "down": (
        ("moves down", "moving down"),
        ("sinks", "sinking"),
        ("glides downwards", "gliding downwards"),
        ("descends from the top to the bottom", "descending from the top to the bottom"),
    ),
    "bounce": (
        ("bounces", "bouncing"),
        ("bounces", "bouncing"),
        ("bounces up and down", "bouncing up and down"),
        ("jumps up and down", "jumping up and down"),
        ("hops on the floor", "hopping on the floor"),
    ),
    "grow": (
        ("grows", "growing"),
        ("expands", "expanding"),
        ("gets bigger and bigger", "getting bigger and bigger"),
        ("swells", "swelling"),
    ),
    "shrink": (
        ("shrinks", "shrinking"),
        ("contracts", "contracting"),
        ("gets smaller and smaller", "getting smaller and smaller"),
        ("dwindles", "dwindling"),
    ),
    "spin": (
        ("spins", "spinning"),
        ("rotates", "rotating"),
        ("turns around itself", "turning around itself"),
        ("spins in place", "spinning in place"),
    ),
    "rest": (
        ("rests", "resting"),
        ("stays still", "staying still"),
        ("does not move", "not moving"),
        ("stands still", "standing still"),
    ),
}
BACKGROUND = {
    "dark": ("a dark background", "a dark background", "a black background", "a dark backdrop"),
    "light": ("a light background", "a light background", "a white background", "a bright backdrop"),
    "gradient": ("a gradient background", "a blue gradient background", "a smooth gradient", "a gradient backdrop"),
    "striped": ("a striped background", "a background with stripes", "vertical stripes", "a striped backdrop"),
    "checkered": (
        "a checkered background",
        "a checkerboard background",
        "a chessboard pattern",
        "a checkered backdrop",
    ),
}
PITCH = {
    "low": ("low", "low", "deep", "low-pitched"),
    "middle": ("middle", "medium", "mid-range", "medium-pitched"),
    "high": ("high", "high", "high-pitched"),
}
TONE = ("a {} tone", "a continuous {} tone", "a steady {} note", "a {} hum", "a long {} note")
BEEPS = (
    "a {} beep at every bounce",
    "a {} beep at each bounce",
    "a {} beep each time it hits the floor",
    "{} beeps when it touches the ground",
    "a short {} beep on every bounce",
)
SILENCE = ("in silence", "without any sound", "with no sound", "silently", "in complete silence")
QUIET = ("No sound.", "It is silent.", "There is silence.", "Silent.")
OPENINGS = ("a video of {}", "a clip of {}", "{}", "{}", "an animation of {}")


def caption(scene: Described, rng: random.Random, omit_size: float = 0.0) -> str:
    """Name every attribute of a scene in one or two sentences; leave out the size with probability `omit_size`."""
    size = "" if rng.random() < omit_size else rng.choice(SIZE[scene.size])
    thing = _thing(size, rng.choice(COLOUR[scene.colour]), rng.choice(SHAPE[scene.shape]), rng)
    verb, participle = rng.choice(MOTION[scene.motion])
    ground = rng.choice(("on", "over", "in front of")) + " " + rng.choice(BACKGROUND[scene.background])
    return _style(rng.choice(_sentences(scene, thing, verb, participle, ground, rng)), rng)


def _thing(size: str, colour: str, shape: str, rng: random.Random) -> str:
    plain = " ".join(word for word in (size, colour, shape) if word)
    choices = [plain, plain, plain, plain]
    if size:
        choices += [f"{colour} {shape} of {size} size", f"{size} {shape} in {colour}", f"{colour} {size} {shape}"]
    chosen = rng.choice(choices)
    return ("an " if chosen[0] in "aeiou" else "a ") + chosen


def _sentences(
    scene: Described, thing: str, verb: str, participle: str, ground: str, rng: random.Random
) -> tuple[str, ...]:
    opening = rng.choice(OPENINGS).format(f"{thing} {participle} {ground}")
    if scene.sound == "silence":
        quiet = rng.choice(SILENCE)
        return (
            f"{thing} {verb} {ground} {quiet}",
            f"{ground}, {thing} {verb} {quiet}",
            f"{thing} {verb} {quiet} {ground}",
            f"{opening}, {quiet}",
            f"{opening}. {rng.choice(QUIET)}",
            f"{ground}, {thing} {verb}. {rng.choice(QUIET)}",
        )
    noise = rng.choice(BEEPS if scene.sound == "beeps" else TONE).format(rng.choice(PITCH[scene.pitch]))
    return (
        f"{thing} {verb} {ground} with {noise}",
        f"{thing} {verb} {ground}, and we hear {noise}",
        f"{ground}, {thing} {verb} with {noise}",
        f"{opening}, with {noise}",
        f"{opening}. Sound: {noise}.",
        f"{opening}. There is {noise}." if noise.startswith("a ") else f"{opening}. There are {noise}.",
        f"{noise}, {thing} {verb} {ground}",
    )


def _style(text: str, rng: random.Random) -> str:
    if rng.random() < 0.15:
        return text.rstrip(".").lower()
    text = text[0].upper() + text[1:]
    return text if text.endswith(".") or rng.random() < 0.3 else text + "."
