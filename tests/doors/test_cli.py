"""The command line: help without weight, plans without torch, exit codes, and errors that name the knob."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from ltx2 import __version__
from ltx2.doors.cli import build_parsers, main
from ltx2.doors.generate import found
from ltx2.spec.card import Card
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.plan import resolve
from ltx2.spec.request import Request
from tests.data_files import hear_interrupts

# A published config needs no weights to be planned.
BIG = ["--model", "ltx-2", "--weights", "random"]
HEAVY = ("torch", "diffusers", "transformers", "numpy", "av", "PIL")


def modules_after(*words: str) -> set[str]:
    """Which heavy modules a command has imported when it is done, in a process of its own."""
    code = (
        "import sys; from ltx2.doors.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        f"print(*(name for name in {(*HEAVY, 'pydantic')!r} if name in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "words", [["--help"], ["generate", "--help"], ["bench", "--help"], ["serve", "--help"], ["--version"], []]
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    assert modules_after(*words) == set()


def test_the_examples_of_every_help_are_commands() -> None:
    parser, commands = build_parsers()
    examples = [
        line.partition("   ")[0].strip()
        for command in commands.values()
        for line in (command.epilog or "").splitlines()
        if line.startswith("  ltx2 ")
    ]
    assert len(examples) >= 10
    for example in examples:
        _, extra = parser.parse_known_args(example.split()[1:])
        assert not extra, example


def test_plan_imports_no_torch() -> None:
    assert modules_after("plan", "a cat", *BIG) == {"pydantic"}


def test_refusals_come_before_torch(tmp_path: Path) -> None:
    assert modules_after("generate", "a cat", "-o", str(tmp_path / "a.mp4"), "--width", "770", *BIG) == {"pydantic"}


def test_plan_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "a cat", "--preset", "classic", "--steps", "40", "--seed", "5", "--json", *BIG]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["plan"]["seed"] == 5
    assert report["cost"]["passes"] == 80
    assert report["cost"]["stages"][0]["video_tokens"] == 4992
    assert captured.err == ""


def test_plan_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "a cat", "--preset", "two-stage", "-o", "unused.mp4", *BIG]) == 0
    text = capsys.readouterr().out
    for part in ("768x512, 6144 video and 126 audio tokens", "1536x1024", "163 passes", "sigmas 0.9094 0.725 0.4219 0"):
        assert part in text


def test_flags_reach_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--width 512 --height 320 --seconds 2 --fps 24000/1001 --no-audio --stg-blocks 3,5 --video-cfg 2 --sampler res_2s"
    assert main(["plan", "a cat", "--preset", "dev", "--json", *words.split(), *BIG]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["width"], plan["height"], plan["frames"], plan["fps"]) == (512, 320, 49, "24000/1001")
    assert plan["audio"] is False
    assert plan["stages"][0]["video"]["stg_blocks"] == [3, 5]
    assert (plan["stages"][0]["video"]["cfg"], plan["stages"][0]["sampler"]) == (2.0, "res_2s")


def test_the_embedded_model_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "a red ball"]) == 0
    captured = capsys.readouterr()
    assert "model     tiny" in captured.out
    assert captured.err.startswith("ltx2: note: no --model given")
    assert captured.err.count("\n") == 1
    for words in (["--model", "tiny"], ["--quiet"]):
        assert main(["plan", "a red ball", *words]) == 0
        assert capsys.readouterr().err == ""


def test_every_knob_has_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    text = capsys.readouterr().out
    spelt = {"audio": "--no-audio", "loras": "--lora", "prompt": "PROMPT"}
    for knob in Request.model_fields:
        assert spelt.get(knob, "--" + knob.replace("_", "-")) in text
    for name in ("euler-ancestral", "res_2s", "gradient-estimation", "official", "diffusers", "distilled-two-stage"):
        assert name in text


REFUSED = [
    (["plan", "x", "--widht", "64"], "--width", "widht"),
    (["plan", "x", "--prest", "dev"], "--preset", "prest"),
    (["generat", "x"], "generate", None),
    (["plan", "a", "red", "ball"], "quotes", None),
    (["plan", "x", "--preset", "fast"], "distilled-two-stage", "preset"),
    (["plan", "x", "--width", "wide"], "width", "width"),
    (["plan", "x", "--model", "no-such-model"], "tiny", "model"),
    (["plan", "x", "--model", "ltx-2"], "--weights random", "model"),
    (["plan", "x", "--model", "nobody/nothing"], "--download", "model"),
    (["plan", "x", "--weights", "fake"], "random", "weights"),
    (["plan", "x", "--kind", "turbo"], "distilled", "kind"),
    (["plan", "x", "--image", "no.png"], "no.png", "image"),
    (["plan", "x", "--lora", "no.safetensors:0.5"], "no.safetensors", "lora"),
    (["plan", "x", "--upsampler", "no.safetensors"], "no.safetensors", "upsampler"),
    (["plan", "x", "--audio-input", "a.wav"], "not offered", "audio_input"),
    (["plan", "x", "--decoder", "diffusion"], "diffusion decoder of 2.5", "decoder"),
    (["plan", "x", "--auto-duration"], "not offered", "auto_duration"),
    (["plan"], "prompt", "prompt"),
    (["generate", "x"], "-o out.mp4", "output"),
    (["generate", "x", "-o", "out.avi"], "out.mp4", "output"),
    (["generate", "x", "-o", "no/such/folder/out.mp4"], "make it first", "output"),
    (["generate", "--from", "missing.mp4", "-o", "b.mp4"], "missing.mp4", "from"),
    (["generate", "--from", "a.mp4", "-o", "b.mp4", "--width", "64"], "width", "from"),
    (["bench", "--repeats", "many"], "--help", None),
    (["bench", "--repeats", "0"], "1 works", "repeats"),
    (["bench", "--quality", *BIG], "embedded", "quality"),
    (["bench", "--against", "diffusers", "--preset", "two-stage", *BIG], "classic, dev", "against"),
]


@pytest.mark.parametrize(("words", "part", "knob"), REFUSED, ids=[" ".join(row[0])[:60] for row in REFUSED])
def test_refusals(
    words: list[str], part: str, knob: str | None, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if words[0] != "generat" and "--model" not in words:
        words = [words[0], *BIG, *words[1:]]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("ltx2: error: ")
    assert part in captured.err
    assert captured.out == ""
    assert main([*words, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["knob"] == knob
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a.mp4"
    folder.mkdir()
    assert main(["generate", "x", "-o", str(folder), *BIG]) == 2
    assert "is a folder" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 64])
def test_an_unreadable_image(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(content)
    assert main(["generate", "x", "--image", str(image), "-o", str(tmp_path / "a.mp4"), *BIG]) == 2
    assert "image: " in capsys.readouterr().err


def test_a_folder_that_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "x", "--model", str(tmp_path)]) == 2
    assert "transformer/config.json" in capsys.readouterr().err


def test_a_bad_environment_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LTX2_DEVICE", "tpu")
    assert main(["plan", "x", *BIG]) == 2
    assert "LTX2_DEVICE" in capsys.readouterr().err


def test_a_device_that_is_not_there(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "x", "-o", str(tmp_path / "a.mp4"), "--model", str(checkpoint), "--preset", "classic"]
    assert main([*words, "--device", "cuda:99"]) == 2
    assert "cuda:99" in capsys.readouterr().err


SMALL = ["--preset", "classic", "--steps", "2", "--width", "128", "--height", "64", "--frames", "17", "--device", "cpu"]


def test_generate_and_make_it_again(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "a.mp4", tmp_path / "b.mp4"
    assert main(["generate", "a cat", "-o", str(first), "--model", str(checkpoint), *SMALL, "--seed", "7"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{first}  seed 7  ")
    assert "GiB" in captured.out or "MiB" in captured.out
    for phase in ("load", "text", "stage 1", "sound"):
        assert f"\n{phase} " in "\n" + captured.err
    assert main(["generate", "--from", str(first), "-o", str(second), "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert (report["seed"], report["file"]) == (7, str(second))
    assert captured.err == ""
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_made_again_with_its_image_and_lora(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    picture = tmp_path / "pictures/first.png"
    Image.effect_noise((128, 64), 50).convert("RGB").save(picture)
    words = ["--model", str(checkpoint), *SMALL, "--no-audio", "--quiet", "--seed", "7"]

    def make(out: str, *more: str) -> tuple[int, str]:
        done = main(["generate", "-o", out, "--quiet", *more])
        return done, capsys.readouterr().err

    # A path below this folder stays one, and is found again from here.
    assert make("a.mp4", "a cat", *words, "--image", "pictures/first.png")[0] == 0
    assert make("b.mp4", "--from", "a.mp4")[0] == 0
    assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()
    # Of an absolute path the file knows the name only; who has it says where the picture is.
    assert make("a.mp4", "a cat", *words, "--image", str(picture))[0] == 0
    content = Path("a.mp4").read_bytes()
    assert str(tmp_path).encode() not in content and b"first.png" in content
    done, said = make("b.mp4", "--from", "a.mp4")
    assert done == 2 and "first.png" in said and "--image FOLDER/first.png" in said
    assert make("b.mp4", "--from", "a.mp4", "--image", str(picture))[0] == 0
    assert content == Path("b.mp4").read_bytes()
    other = picture.rename(picture.with_name("other.png"))
    done, said = make("b.mp4", "--from", "a.mp4", "--image", str(other))
    assert done == 2 and "was made with first.png" in said
    done, said = make("b.mp4", "--from", "a.mp4", "--lora", "x.safetensors")
    assert done == 2 and "was made without" in said


def test_where_loras_are_now(tmp_path: Path) -> None:
    here = [tmp_path / name for name in ("one.safetensors", "two.safetensors")]
    for path in here:
        path.touch()
    request = Request(prompt="x", loras=[{"path": f"gone/{p.name}", "strength": 0.5} for p in here], seed=1)  # type: ignore[arg-type]
    plan = resolve(request, Card("miniature", "2.0", family="2.0"))
    assert found(plan, {"lora": [str(here[0]), f"{here[1]}:0.5"]}).loras == tuple((str(path), 0.5) for path in here)
    for words in (
        [str(here[0])],
        [str(path) for path in reversed(here)],
        [str(here[0]), f"{here[1]}:0.7"],
        [*here, "x"],
    ):
        with pytest.raises(RefusedRequest, match=r"one\.safetensors:0\.5, two\.safetensors:0\.5"):
            found(plan, {"lora": [str(word) for word in words]})
    with pytest.raises(RefusedRequest, match=r"gone/one\.safetensors") as refused:
        found(plan, {})
    assert refused.value.knob == "lora"


def test_quiet_says_one_line(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.mp4"
    words = ["generate", "a cat", "-o", str(out), "--model", str(checkpoint), *SMALL, "--no-audio", "--quiet"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("\n") == 1


def test_what_does_not_fit_is_exit_code_3(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ltx2.engine.memory as memory

    monkeypatch.setattr(memory, "available", lambda device: 2**20)
    assert main(["generate", "a cat", "-o", str(tmp_path / "a.mp4"), "--model", str(checkpoint), *SMALL]) == 3
    assert "GiB" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_are_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ltx2.engine.memory as memory

    monkeypatch.setattr(memory, "available", lambda device: 40 * 2**30)
    assert (
        main(["generate", "a cat", "-o", str(tmp_path / "a.mp4"), *BIG, "--device", "cpu", "--precision", "bf16"]) == 3
    )
    assert "the weights alone are too large" in capsys.readouterr().err


def test_without_the_engine_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["generate", "a cat", "-o", str(tmp_path / "a.mp4"), *BIG]) == 1
    assert "pip install 'ltx2[engine]'" in capsys.readouterr().err


def test_a_failure_is_exit_code_1(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ltx2.pipeline.generate as pipeline

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline, "decode_audio", full_disk)
    assert main(["generate", "a cat", "-o", str(tmp_path / "a.mp4"), "--model", str(checkpoint), *SMALL]) == 1
    said = capsys.readouterr().err
    assert f"no room for the video in {tmp_path}" in said and "-o" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=lambda stop: stop.name)
def test_interrupting_leaves_nothing(stop: signal.Signals, tmp_path: Path, checkpoint: Path) -> None:
    words = [*SMALL, "--steps", "200", "--width", "512", "--height", "512"]
    command = [
        sys.executable,
        "-m",
        "ltx2",
        "generate",
        "a cat",
        "-o",
        str(tmp_path / "a.mp4"),
        "--model",
        str(checkpoint),
    ]
    running = subprocess.Popen(
        [*command, *words], stderr=subprocess.PIPE, text=True, cwd=tmp_path, preexec_fn=hear_interrupts
    )
    assert running.stderr is not None
    while not (line := running.stderr.readline()).startswith("text"):
        assert line, "it ended before the first stage"
    time.sleep(0.2)
    running.send_signal(stop)
    assert running.wait(timeout=60) == 130
    assert "interrupted" in running.stderr.read()
    assert list(tmp_path.iterdir()) == []


def test_the_command_and_the_module_are_the_same() -> None:
    script = Path(sys.executable).with_name("ltx2")
    for command in ([str(script)], [sys.executable, "-m", "ltx2"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, env=os.environ)
        assert (done.returncode, done.stdout) == (0, f"ltx2 {__version__}\n")
