"""Which path a stage takes, and what may change between stages: weights that move, LoRAs, text."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from weakref import ref

import pytest
import torch
from torch import nn

from ltx2.models import fast
from ltx2.models.fast import Stage, decoder, passes, projection
from ltx2.models.fast.forward import Forward
from ltx2.models.fast.graphs import Graphs
from ltx2.models.fast.ops import Reads, no_kernels, on
from ltx2.models.fast.projection import Joined
from ltx2.models.lora import added, merged
from ltx2.models.precision import Fp8Linear, quantise_rows
from ltx2.models.residency import Residency
from ltx2.models.small import small
from ltx2.models.velocity import Perturbation, velocities
from ltx2.pipeline.generate import generate
from ltx2.spec.plan import resolve
from ltx2.spec.request import request
from tests.data_files import largest_difference
from tests.models.fast.test_forward import _random_streams, _small
from tests.models.fast.test_graphs import FakeRecorder

WEAK = (Perturbation((1,), (1,)), Perturbation(isolated=True))


def _agree(transformer: nn.Module, seed: int = 0, tolerance: float = 1e-5) -> None:
    video, audio = _random_streams(transformer, 2, False, seed)
    made = passes(transformer)(video, audio, WEAK)
    for ours, slow in zip(made, velocities(transformer, video, audio, WEAK), strict=True):
        for one, other in zip(ours, slow, strict=True):
            assert largest_difference(one, other) <= tolerance * max(1.0, float(other.abs().max()))


@torch.inference_mode()
def test_the_twin_is_kept_while_weights_stay_and_made_anew_when_they_move() -> None:
    transformer = small("2.3").networks["transformer"]
    _agree(transformer)
    first = fast._twin(transformer)
    _agree(transformer, 1)
    assert fast._twin(transformer) is first
    for parameter in transformer.parameters():
        parameter.data = parameter.data.clone()
    assert fast._twin(transformer) is not first
    _agree(transformer)


@torch.inference_mode()
def test_work_is_done_with_its_gpu_as_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current GPU, which need not be the one of the tensors: with --device cuda:1 it is not."""
    seen: list[tuple[str, torch.device]] = []

    @contextmanager
    def note(what: str, device: torch.device) -> Iterator[None]:
        seen.append((f"{what} on", device))
        yield
        seen.append((f"{what} off", device))

    models = small("2.0")
    monkeypatch.setattr(fast, "on", partial(note, "work"))
    monkeypatch.setattr(Forward, "evaluate", _noting(Forward.evaluate, seen))
    monkeypatch.setattr(decoder, "_unpatch", _noting(decoder._unpatch, seen))
    passes(models.networks["transformer"])(*_random_streams(models.networks["transformer"], 1, False), ())
    vae = models.networks["vae"]
    pieces = fast.decoding(vae, torch.zeros(1, vae.config.latent_channels, 2, 2, 2))
    assert pieces is not None
    cpu = torch.device("cpu")
    assert next(pieces).shape[2] == 9
    # Between two pieces the device is the caller's own business.
    assert seen == [("work on", cpu), ("work", cpu), ("work off", cpu)] * 2
    made: list[object] = []
    monkeypatch.setattr(torch.cuda, "device", made.append)
    on(torch.device("cuda", 1))
    assert made == [torch.device("cuda", 1)]


def _noting(real: Callable[..., object], seen: list[tuple[str, torch.device]]) -> Callable[..., object]:
    def noted(*given: object) -> object:
        seen.append(("work", torch.device("cpu")))
        return real(*given)

    return noted


@pytest.mark.parametrize("how", ["forget", "off", "home"])
@torch.inference_mode()
def test_what_the_fast_path_keeps_goes_when_it_is_off_or_the_weights_leave(how: str) -> None:
    transformer = small("2.0").networks["transformer"]
    stage = passes(transformer)
    assert isinstance(stage, Stage)
    stage.twin.graphs = Graphs(FakeRecorder())
    video, audio = _random_streams(transformer, 1, False)
    for _ in range(3):
        stage(video, audio)
    assert stage.constant and stage.constant.keys and len(stage.twin.graphs.recorded) == 1
    joined = stage.twin.forward.blocks[0].video.own.project
    assert isinstance(joined, Joined)
    kept = [ref(one) for one in (stage.twin, stage.twin.graphs, stage.constant.keys[0][0].k, joined.weight)]
    del stage, joined
    assert all(one() is not None for one in kept), "from stage to stage"
    match how:
        case "forget":
            assert fast.forget(transformer) and not fast.forget(transformer)
        case "off":
            passes(transformer, fast=False)
        case _:
            residency = Residency("staged", torch.device("cpu"))
            # The two places here: `meta` is where the weights wait.
            residency.home = torch.device("meta")
            with residency.at_work(transformer):
                pass
    gc.collect()
    assert [one() for one in kept] == [None] * 4


def test_what_took_its_slow_path_is_told() -> None:
    networks = small("2.3").networks
    transformer, cpu = copy.deepcopy(networks["transformer"]), torch.device("cpu")
    assert fast.slow_paths(transformer, networks["vae"], cpu) == ()
    transformer.register_to_config(rope_type="interleaved")  # pyright: ignore[reportCallIssue]
    networks["vae"].use_tiling = True  # pyright: ignore[reportArgumentType]
    assert fast.slow_paths(transformer, networks["vae"], cpu) == (
        "the transformer took its slow path: its RoPE is interleaved, not split",
        "the video decoder took its slow path: it is set to decode in tiles",
    )


def test_a_gpu_without_kernels_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "T4")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())
    assert no_kernels(torch.device("cuda")) == "T4 is older than compute capability 8.0"
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert no_kernels(torch.device("cuda")) == "Triton is not installed"
    assert no_kernels(torch.device("cpu")) is None


@torch.inference_mode()
def test_stages_see_a_lora_merged_or_added_and_then_gone() -> None:
    models = small("2.3")
    transformer, lora = models.networks["transformer"], models.distilled_lora
    assert lora
    video, audio = _random_streams(transformer, 1, False)
    [(before, _)] = passes(transformer)(video, audio, ())
    for way in (merged, added):
        with way(transformer, [(lora, 0.8)]):
            _agree(transformer)
            [(inside, _)] = passes(transformer)(video, audio, ())
            assert largest_difference(inside, before) > 1e-3
        [(after, _)] = passes(transformer)(video, audio, ())
        assert torch.equal(after, before)
        _agree(transformer)


@torch.inference_mode()
def test_a_transformer_of_another_kind_takes_the_slow_path_aloud(caplog: pytest.LogCaptureFixture) -> None:
    transformer = copy.deepcopy(_small("2.0"))
    transformer.register_to_config(rope_type="interleaved")
    video, audio = _random_streams(_small("2.0"), 1, False)
    with caplog.at_level(logging.WARNING):
        run = passes(transformer)
    assert "slow path" in caplog.text and "interleaved" in caplog.text
    assert torch.equal(run(video, audio, ())[0][0], velocities(transformer, video, audio)[0][0])
    caplog.clear()
    passes(transformer, fast=False)
    assert not caplog.records


@torch.inference_mode()
def test_stg_without_perturbed_attention_is_refused() -> None:
    transformer = copy.deepcopy(_small("2.0"))
    transformer.register_to_config(perturbed_attn=False)
    video, audio = _random_streams(transformer, 1, False)
    with pytest.raises(ValueError, match="no-op"):
        passes(transformer)(video, audio, WEAK)


@contextmanager
def _in_fp8(transformer: nn.Module) -> Iterator[None]:
    for block in transformer.transformer_blocks:  # pyright: ignore[reportGeneralTypeIssues]
        for name, layer in list(block.named_modules()):
            if type(layer) is nn.Linear and "gate_logits" not in name:
                weight, scale = quantise_rows(layer.weight)
                path, _, leaf = name.rpartition(".")
                setattr(block.get_submodule(path), leaf, Fp8Linear(weight, scale.flatten(), layer.bias))
    yield


@pytest.mark.parametrize("version", ["2.0", "2.3"])
@torch.inference_mode()
def test_fp8_layers_give_the_same_on_a_cpu_and_nearly_so_in_rows(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = small("2.0" if version == "2.0" else "2.3").networks["transformer"]
    with _in_fp8(transformer):
        _agree(transformer)
        monkeypatch.setattr(projection, "_in_rows", lambda layer: isinstance(layer, Fp8Linear))
        del transformer.__dict__[fast._TWIN]
        video, audio = _random_streams(transformer, 2, True)
        made = passes(transformer)(video, audio, WEAK)
        assert fast._twin(transformer).forward.blocks[0].reads == (Reads.ROWS if version == "2.0" else Reads.BOTH,) * 2
        for ours, slow in zip(made, velocities(transformer, video, audio, WEAK), strict=True):
            for one, other in zip(ours, slow, strict=True):
                cosine = torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)
                assert cosine >= 0.998 and not torch.equal(one, other)


def test_a_video_is_the_same_on_both_paths(tmp_path: Path) -> None:
    models = small("2.3")
    plan = resolve(
        request(prompt="a cat", negative_prompt="dull", preset="dev", steps=2, width=128, height=128, frames=9, seed=1),
        replace(models.card, image_crf=None),
    )
    files = []
    for models.fast in (True, False, True):
        out = tmp_path / "v.mp4"
        for _ in generate(models, plan, out):
            pass
        files.append(out.read_bytes())
    assert files[0] == files[2]
    # Float sums in another order: the pictures differ by a level here and there at most, so the files' sizes hardly do.
    assert abs(len(files[0]) - len(files[1])) <= 0.01 * len(files[1])
