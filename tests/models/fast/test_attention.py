"""Attention in fp8, which is lossy: how far it is from the exact one, where it is taken, and where it is refused."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ltx2.engine.engine import Engine
from ltx2.models import fast
from ltx2.models.fast import Stage, Twin, attention, passes
from ltx2.models.fast.attention import (
    attend,
    attend_as_fp8,
    attend_in_fp8,
    backend,
    check_attention,
    through_flash,
)
from ltx2.models.fast.graphs import Graphs
from ltx2.models.fast.ops import PLAIN, Heads, Table, choose, norm_scales, normalise_heads
from ltx2.models.small import small
from ltx2.models.velocity import velocities
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.events import Finished
from ltx2.spec.plan import resolve
from ltx2.spec.request import request
from tests.models.fast.test_forward import WEAK, _random_streams, _small
from tests.models.fast.test_graphs import FakeRecorder

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def _inputs(tokens: int, heads: int, device: torch.device = CPU, dtype: torch.dtype = torch.float32):
    """Packed queries, keys and values with a few large channels, norm weights and a table."""
    draw, width = torch.Generator().manual_seed(tokens), heads * 128
    packed = torch.randn(2, tokens, 3 * width, generator=draw)
    packed[..., ::97] *= 3
    weights = tuple((1 + torch.randn(width, generator=draw) / 4).to(device, dtype) for _ in range(2))
    angles = (torch.rand(tokens, heads, 64, generator=draw) * 6).to(device)
    return packed.to(device, dtype).split(width, -1), weights, Table(angles.cos(), angles.sin())


def _exact(qkv: tuple[Tensor, ...], weights: tuple[Tensor, ...], table: Table, heads: int) -> Tensor:
    q, k = (normalise_heads(qkv[n].clone(), weights[n], table, heads, 1e-6) for n in (0, 1))
    return attend(q, k, qkv[2], heads)


def _quantised(qkv, weights, table: Table, heads: int, ops=PLAIN) -> Heads:
    scales = (norm_scales(weights[0], heads), norm_scales(weights[1], heads))
    return ops.quantise_heads(tuple(part.clone() for part in qkv), weights, scales, table, heads, 1e-6)


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def test_it_is_near_the_exact_one_and_not_it() -> None:
    qkv, weights, table = _inputs(700, 2)
    exact = _exact(qkv, weights, table, 2)
    ours = attend_in_fp8(_quantised(qkv, weights, table, 2), torch.float32)
    assert ours.shape == exact.shape
    # e4m3 rounds by 2.6 % of a value (root mean square); queries, keys, values and weights do so, each at random.
    assert 0.02 < _relative(ours, exact) < 0.08


def test_its_softmax_is_the_formula() -> None:
    """With values that e4m3 holds exactly nothing is left but the rounding of the weights."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randint(-3, 4, (1, 40, 32), generator=draw).float() for _ in range(3))
    one = torch.ones(1, 2)
    parts = Heads(*(part.to(torch.float8_e4m3fn) for part in (q, k, v)), (one, one, one))
    assert _relative(attend_as_fp8(parts, torch.float32), attend(q, k, v, 2)) < 2**-5
    halves = Heads(*parts[:3], (one / 2, one, one * 3))
    assert _relative(attend_as_fp8(halves, torch.float32), attend(q / 2, k, v * 3, 2)) < 2**-5


def test_no_head_leaves_e4m3_whatever_it_is() -> None:
    """The worst case of the bound: everything in one channel, which RoPE turns onto itself."""
    weight = torch.tensor([0.1, 4.0, 1.0, 0.5] * 8)
    q = torch.zeros(1, 1, 32)
    q[..., 1] = 1e4
    table = Table(torch.ones(1, 2, 8), torch.zeros(1, 2, 8))
    heads = PLAIN.quantise_heads(
        (q, q.clone(), q.clone()), (weight, weight), (norm_scales(weight, 2),) * 2, table, 2, 0
    )
    assert float(heads.q.float().max()) == 448 and torch.isfinite(heads.k.float()).all()


def test_what_is_not_finite_stays_so() -> None:
    qkv, weights, table = _inputs(20, 2)
    qkv[2][0, 3, 5] = float("nan")
    result = attend_as_fp8(_quantised(qkv, weights, table, 2), torch.float32)
    assert torch.isnan(result[0]).any() and torch.isfinite(result[1]).all()


@pytest.mark.parametrize("version", ["2.0", "2.3", "2.5"])
@torch.inference_mode()
def test_a_whole_evaluation_with_it_is_near_the_exact_one(version: str) -> None:
    transformer = _small(version)
    video, audio = _random_streams(transformer, 2, True)
    made = Stage(Twin(transformer, fp8_from=1))(video, audio, WEAK["all"])
    for ours, slow in zip(made, velocities(transformer, video, audio, WEAK["all"]), strict=True):
        for one, other in zip(ours, slow, strict=True):
            cosine = functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)
            assert cosine >= 0.999 and not torch.equal(one, other)


@torch.inference_mode()
def test_it_is_taken_from_a_number_of_tokens_on_and_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = copy.deepcopy(_small("2.0"))
    video, audio = _random_streams(transformer, 1, False)
    tokens = video.latent.shape[1]

    def run(asked: bool) -> Tensor:
        return passes(transformer, fp8_attention=asked)(video, audio, ())[0][0]

    exact = run(False)
    twin = fast._twin(transformer)
    assert torch.equal(run(True), exact), "a short sequence stays exact"
    assert fast._twin(transformer, attention.FP8_TOKENS) is not twin, "its graphs would replay the other attention"
    monkeypatch.setattr(fast, "FP8_TOKENS", tokens)
    lossy = run(True)
    assert not torch.equal(lossy, exact)
    assert torch.equal(run(True), lossy)
    assert torch.equal(run(False), exact)
    monkeypatch.setattr(fast, "FP8_TOKENS", tokens + 1)
    assert torch.equal(run(True), exact)


@torch.inference_mode()
def test_it_can_be_recorded() -> None:
    transformer = copy.deepcopy(_small("2.0"))
    video, audio = _random_streams(transformer, 2, False)
    stage = Stage(Twin(transformer, graphs=Graphs(FakeRecorder()), fp8_from=1))
    runs = [stage(video, audio)[0][0] for _ in range(4)]
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_a_video_says_that_it_is_lossy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its warnings and in its metadata; and it is another one than the exact one."""
    models = small("2.0")
    plan = resolve(
        request(prompt="a cat", preset="classic", steps=2, width=128, height=128, frames=9, seed=1), models.card
    )
    tokens = plan.grid(plan.stages[0]).video_tokens
    transformer = models.networks["transformer"]
    monkeypatch.setattr(fast, "FP8_TOKENS", tokens + 1)
    assert not fast.lossy_paths(transformer, plan, True), "too small for it: the video is exact"
    monkeypatch.setattr(fast, "FP8_TOKENS", tokens)
    assert not fast.lossy_paths(transformer, plan, False)
    files: list[bytes] = []
    for models.attention in ("auto", "fp8", "fp8"):
        out = tmp_path / "v.mp4"
        *_, last = Engine(models).generate(plan, out)
        with av.open(str(out)) as container:
            told = json.loads(container.metadata["comment"])
        assert isinstance(last, Finished) and list(last.warnings) == told.get("lossy", [])
        assert bool(last.warnings) == (models.attention == "fp8")
        files.append(out.read_bytes())
    [words] = last.warnings
    assert words.startswith("lossy: ") and "fp8" in words
    assert files[0] != files[1] == files[2]


def _pretend(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], packages: set[str]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "A GPU")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in packages else None)
    monkeypatch.setattr(attention, "flash_3", lambda: object() if "fa3_fwd_interface" in packages else None)


@pytest.mark.parametrize(
    ("capability", "packages", "taken", "reason"),
    [
        ((8, 9), {"fa3_fwd_interface", "triton"}, True, "A GPU is no Hopper GPU"),
        ((10, 0), {"fa3_fwd_interface", "triton"}, True, "A GPU is no Hopper GPU"),
        ((9, 0), {"triton"}, True, "the package fa3-fwd is not installed"),
        ((9, 0), {"fa3_fwd_interface"}, True, "the package triton is not installed"),
        ((9, 0), {"fa3_fwd_interface", "triton"}, False, "LTX2_FAST=off"),
    ],
)
def test_where_it_cannot_be_it_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], packages: set[str], taken: bool, reason: str
) -> None:
    _pretend(monkeypatch, capability, packages)
    with pytest.raises(RefusedRequest, match=reason) as refused:
        check_attention("fp8", CUDA, taken)
    assert refused.value.knob == "attention" and "auto" in str(refused.value.hint)
    check_attention("auto", CUDA, taken)


def test_where_it_can_be_it_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, (9, 0), {"fa3_fwd_interface", "triton"})
    check_attention("fp8", CUDA)


def test_a_package_that_does_not_load_is_refused_for_fp8_and_done_without_otherwise(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a wheel for another CUDA."""
    load = attention.flash_3.__wrapped__
    _pretend(monkeypatch, (9, 0), {"fa3_fwd_interface", "triton"})
    monkeypatch.setitem(sys.modules, "fa3_fwd_interface", None)
    assert load() is None and "fa3-fwd is installed, but does not load" in caplog.text
    monkeypatch.setattr(attention, "flash_3", load)
    with pytest.raises(RefusedRequest, match="fa3-fwd does not load"):
        check_attention("fp8", CUDA)
    assert backend(CUDA, torch.bfloat16, 24_576) == "torch, cuDNN first"


class FakeFlash:
    """FlashAttention 3's kernel as its callers see it: what it refuses, and exact attention in bfloat16."""

    def __init__(self) -> None:
        self.copied: list[bool] = []

    def __call__(self, *parts: Tensor, softmax_scale: float | None = None, **scales: Tensor) -> Tensor:
        fp8 = parts[0].dtype == torch.float8_e4m3fn
        for part in parts:
            assert part.ndim == 4 and part.stride(-1) == 1
            assert part.shape[-1] % (16 if fp8 else 8) == 0, "head_size should be a multiple"
            assert all(part.stride(n) * part.element_size() % 16 == 0 for n in range(3)), "no TMA descriptor"
        self.copied.append(all(part.is_contiguous() for part in parts))
        wide = [part.float() for part in parts]
        for number, name in enumerate(("q_descale", "k_descale", "v_descale") if fp8 else ()):
            assert scales[name].shape == (len(parts[0]), parts[0].shape[2]) and scales[name].dtype == torch.float32
            wide[number] *= scales[name][:, None, :, None]
        q, k, v = (part.transpose(1, 2) for part in wide)
        return functional.scaled_dot_product_attention(q, k, v, scale=softmax_scale).transpose(1, 2).bfloat16()


@pytest.mark.parametrize("channels", [56, 64])
def test_heads_of_any_width_suit_the_fp8_kernel(channels: int) -> None:
    """56 as in the embedded model."""
    draw, heads = torch.Generator().manual_seed(0), 4
    q, k, v = (torch.randn(2, 30, heads * channels, generator=draw).to(torch.float8_e4m3fn) for _ in range(3))
    scales = tuple(torch.rand(1, heads, generator=draw).expand(2, -1) for _ in range(3))
    parts = Heads(q, k, v, scales)
    seen = through_flash(FakeFlash(), parts)
    assert seen.shape == q.shape and _relative(seen, attend_as_fp8(parts, torch.float32)) < 0.03


@pytest.mark.parametrize(("heads", "channels", "gates", "copies"), [(4, 56, 4, True), (32, 128, 32, False)])
def test_rows_that_the_kernel_cannot_move_are_copied(
    monkeypatch: pytest.MonkeyPatch, heads: int, channels: int, gates: int, copies: bool
) -> None:
    """Of a projection that gives queries, keys, values and gate logits; published sizes need no copy."""
    flash, width = FakeFlash(), heads * channels
    monkeypatch.setattr(attention, "takes_flash_3", lambda *_: True)
    monkeypatch.setattr(attention, "flash_3", lambda: flash)
    packed = torch.randn(1, 9, 3 * width + gates, generator=torch.Generator().manual_seed(0)).bfloat16()
    q, k, v = packed[..., : 3 * width].split(width, -1)
    seen = attend(q, k, v, heads)
    assert flash.copied == [copies]
    monkeypatch.setattr(attention, "takes_flash_3", lambda *_: False)
    assert _relative(seen, attend(q, k, v, heads)) < 0.01


@pytest.mark.parametrize(
    ("queries", "keys", "taken"),
    # A video's own, to its text, to its sound, the sound's to it; a quarter of the video to its text.
    [(4_992, 4_992, True), (4_992, 1_024, True), (4_992, 101, False), (101, 4_992, False), (1_248, 1_024, False)],
)
def test_flash_3_is_for_long_sequences(monkeypatch: pytest.MonkeyPatch, queries: int, keys: int, taken: bool) -> None:
    _pretend(monkeypatch, (9, 0), {"fa3_fwd_interface"})
    assert attention.takes_flash_3(CUDA, torch.bfloat16, queries, keys) is taken
    assert not attention.takes_flash_3(CUDA, torch.float32, queries, keys)
    _pretend(monkeypatch, (8, 9), {"fa3_fwd_interface"})
    assert not attention.takes_flash_3(CUDA, torch.bfloat16, queries, keys)


def test_reports_name_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(attention, "flash_3", lambda: object())
    half = torch.bfloat16
    assert backend(CPU, torch.float32, 24_576) == "torch"
    assert [backend(CUDA, half, tokens) for tokens in (1_248, 4_992)] == ["torch, cuDNN first", "fa3-fwd"]
    assert [backend(CUDA, half, tokens, True) for tokens in (1_248, 4_992)] == ["torch, cuDNN first", "fa3-fwd in fp8"]
    monkeypatch.setattr(attention, "flash_3", lambda: None)
    assert backend(CUDA, half, 24_576) == "torch, cuDNN first"


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [4_992, 8_209])
@torch.inference_mode()
def test_the_kernel_equals_its_twin_and_itself(tokens: int) -> None:
    if reason := attention.no_fp8_attention(CUDA):
        pytest.skip(reason)
    heads, half = 32, torch.bfloat16
    qkv, weights, table = _inputs(tokens, heads, CUDA, half)
    parts = _quantised(qkv, weights, table, heads, choose(CUDA))
    ours, twin = attend_in_fp8(parts, half), attend_as_fp8(parts, half)
    # The kernel rounds the softmax's weights against the largest of the blocks so far, the twin against that of all:
    # of the same values both get other roundings, 2.6 % each.
    assert _relative(ours, twin) < 0.05
    exact = _exact(qkv, weights, table, heads)
    assert _relative(ours, exact) == pytest.approx(_relative(twin, exact), rel=0.2)
    for _ in range(5):
        again = _quantised(qkv, weights, table, heads, choose(CUDA))
        assert all(
            torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(again[:3], parts[:3], strict=True)
        )
        assert torch.equal(attend_in_fp8(again, half), ours)


@pytest.mark.gpu
@pytest.mark.parametrize("lossy", [False, True], ids=["fa3", "fp8"])
@torch.inference_mode()
def test_it_replays_from_a_graph(lossy: bool) -> None:
    if reason := attention.no_fp8_attention(CUDA):
        pytest.skip(reason)
    qkv, weights, table = _inputs(4_992, 32, CUDA, torch.bfloat16)
    fixed = (qkv, weights, table)

    def work() -> Tensor:
        if not lossy:
            return _exact(*fixed, 32)
        return attend_in_fp8(_quantised(*fixed, 32, choose(CUDA)), torch.bfloat16)

    expected = work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = work()
    for _ in range(3):
        graph.replay()
        assert torch.equal(recorded, expected)
