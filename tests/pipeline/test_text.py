"""Embedding a text without the padding before it: the same tokens as with it, whatever its length."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ltx2.models import encoder
from ltx2.models.components import Models, load
from ltx2.models.connectors import _forward, text_tokens
from ltx2.models.small import small
from ltx2.pipeline import text
from ltx2.pipeline.text import embed, tokenise
from ltx2.spec.errors import RefusedRequest
from tests.models.fast.host import META, Apart
from tests.models.fast.test_graphs import FakeRecorder

TEXTS = ("", "a cat", "a red ball bounces with a beep")


@pytest.fixture(scope="module", params=["2.0", "2.5", "tiny"])
def models(request: pytest.FixtureRequest) -> Models:
    return load("tiny", dtype=torch.float32) if request.param == "tiny" else small(request.param)


@pytest.fixture
def gemma3(models: Models) -> Models:
    """Of which graphs are recorded."""
    if models.card.version == "2.5":
        pytest.skip("2.5 has a Gemma 4")
    return models


def _lengths(models: Models) -> list[int]:
    """Collects how many tokens the encoder is given from now on."""
    lengths: list[int] = []
    network: Any = models.networks["text_encoder"].model
    network.register_forward_pre_hook(
        lambda _module, _args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return lengths


@pytest.mark.parametrize("words", TEXTS)
@pytest.mark.parametrize("group", [1, 32])
def test_the_tokens_are_those_of_the_whole_padded_text(
    models: Models, monkeypatch: pytest.MonkeyPatch, words: str, group: int
) -> None:
    length, lengths = models.card.text_tokens, _lengths(models)
    used = int(tokenise(models.tokenizer, [words], length)[1].sum())
    with monkeypatch.context() as patched:
        patched.setattr(text, "hidden_states", _by_the_book)
        patched.setattr(text, "text_tokens", _connected_by_the_book)
        whole = embed(models, [words])
    monkeypatch.setattr(encoder, "GROUP", group)
    short = embed(models, [words])
    assert lengths == [length, min(length, -(-used // group) * group)] and 0 < used < length
    for ours, expected in ((short.video, whole.video), (short.audio, whole.audio)):
        assert ours.shape == expected.shape
        assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def _by_the_book(network: Any, ids: torch.Tensor, mask: torch.Tensor, *_: object) -> torch.Tensor:
    """All tokens and the encoder's own mask."""
    result = network.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    return torch.stack(result.hidden_states, dim=-1)


def _connected_by_the_book(network: Any, states: torch.Tensor, mask: torch.Tensor, *_: object) -> Any:
    """The module's own forward over all of the padding."""
    assert states.shape[1] == mask.shape[1]
    return network(states, mask, padding_side="left")[:2]


def test_connectors_without_registers_keep_their_padding() -> None:
    models = small("2.0")
    network: Any = models.networks["connectors"]
    for side in (network.video_connector, network.audio_connector):
        side.learnable_registers = None
    mask = torch.tensor([[0] * 48 + [1] * 16])
    states = torch.randn(1, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    whole = torch.cat([torch.zeros_like(states), states], 1)
    for ours, expected in zip(text_tokens(network, states, mask), network(whole, mask, "left")[:2], strict=True):
        assert torch.equal(ours, expected)


def test_a_text_of_no_token_is_a_text(gemma3: Models) -> None:
    """As an empty one where the tokenizer begins with none."""
    ids, mask = tokenise(gemma3.tokenizer, [""], gemma3.card.text_tokens)
    states = encoder.hidden_states(gemma3.networks["text_encoder"], ids, torch.zeros_like(mask), torch.device("cpu"))
    assert states.shape[1] == encoder.GROUP and torch.isfinite(states).all()


def test_sliding_windows_are_those_of_the_encoder(gemma3: Models) -> None:
    """Windows shorter than the text, in layers of both kinds."""
    made: Any = copy.deepcopy(gemma3.networks["text_encoder"].config)
    config, kinds = made.get_text_config(), ["sliding_attention", "full_attention"]
    config.layer_types, config.sliding_window = [kinds[n % 2] for n in range(len(config.layer_types))], 5
    rope = config.rope_parameters
    config.rope_parameters = {kind: rope.get(kind, rope["full_attention"]) for kind in kinds}
    network = type(gemma3.networks["text_encoder"])(made).eval().requires_grad_(False)
    ids, mask = tokenise(gemma3.tokenizer, ["a red ball and a cat"], gemma3.card.text_tokens)
    expected = _by_the_book(network, ids, mask)
    states = encoder.hidden_states(network, ids, mask, torch.device("cpu"))
    used = int(mask.sum())
    assert used > config.sliding_window and states.shape[1] < expected.shape[1]
    assert torch.allclose(states[:, -used:], expected[:, -used:], rtol=1e-4, atol=1e-5)


def test_graphs_are_used_again_and_made_anew_when_weights_have_moved(
    gemma3: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = copy.deepcopy(gemma3.networks["text_encoder"])
    recorder, graphs = FakeRecorder(), encoder._Text()
    graphs.recorder = recorder
    monkeypatch.setattr(encoder, "_graphs", lambda *_: graphs)
    device, length = torch.device("cpu"), gemma3.card.text_tokens
    for words in (*TEXTS, *TEXTS):
        ids, mask = tokenise(gemma3.tokenizer, [words], length)
        with monkeypatch.context() as plain:
            plain.setattr(encoder, "_graphs", lambda *_: None)
            expected = encoder.hidden_states(network, ids, mask, device)
        assert torch.equal(encoder.hidden_states(network, ids, mask, device), expected)
    before = recorder.recorded
    assert 1 <= before <= len(graphs.recorded) and recorder.replayed == 2 * len(TEXTS), "every result is a replay's"
    for weight in network.parameters():
        weight.data = weight.data.clone()
    assert torch.equal(encoder.hidden_states(network, ids, mask, device), expected)
    assert recorder.recorded == before + 1


@torch.inference_mode()
def test_what_is_recorded_asks_nothing_of_the_host(gemma3: Models) -> None:
    network = copy.deepcopy(gemma3.networks["text_encoder"]).to(META)
    ids, mask = tokenise(gemma3.tokenizer, ["a cat"], gemma3.card.text_tokens)
    places = torch.arange(ids.shape[1], device=META)[None]
    given = (ids.to(META), places, encoder._masks(network, mask, META))
    with Apart() as apart:
        states = encoder._forward(network, *given)
    assert apart.done > 100 and not apart.touched
    assert states.shape[:2] == ids.shape
    connectors, valid = copy.deepcopy(gemma3.networks["connectors"]).to(META), mask.to(META)
    with Apart() as apart:
        video, audio = _forward(connectors, states[:, -32:], valid)
    assert apart.done > 50 and not apart.touched
    assert video.shape[:2] == audio.shape[:2] == ids.shape


def test_what_cannot_be_recorded_runs_without_and_says_so(
    gemma3: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        raise RuntimeError("operation not permitted when stream is capturing")

    expected = embed(gemma3, ["a cat"])
    graphs = encoder._Text()
    graphs.recorder = refuse
    monkeypatch.setattr(encoder, "_graphs", lambda *_: graphs)
    for _ in range(2):
        assert torch.equal(embed(gemma3, ["a cat"]).video, expected.video)
    assert caplog.text.count("operation not permitted") == 2, "once for the encoder, once for the connectors"


@pytest.mark.gpu
@pytest.mark.parametrize("number", [0, 1])
def test_a_graph_on_a_gpu_gives_the_bits_of_the_forward(number: int) -> None:
    from ltx2.models import fast

    if number >= torch.cuda.device_count():
        pytest.skip("there is one GPU")
    # Also one that is not the current one.
    device = torch.device("cuda", number)
    models = load("tiny", device=device, dtype=torch.bfloat16)
    network = models.networks["text_encoder"]
    models.fast = False
    plain = [embed(models, [words]).video for words in TEXTS]
    models.fast = True
    for _ in range(3):
        for words, expected in zip(TEXTS, plain, strict=True):
            assert torch.equal(embed(models, [words]).video, expected)
    for one in (network, models.networks["connectors"]):
        graphs = encoder._graphs(one, device)
        assert graphs is not None and len(graphs.recorded) == 1, "recorded, and not refused"
        assert fast.forget(one), "dropped with what else is kept"


def test_a_text_of_every_token_and_one_too_many(models: Models) -> None:
    length = models.card.text_tokens
    words = "a " * length
    while len(models.tokenizer(words.strip()).input_ids) > length:
        words = words[:-2]
    lengths = _lengths(models)
    assert torch.isfinite(embed(models, [words]).video).all() and lengths == [length]
    with pytest.raises(RefusedRequest, match="prompt: it has"):
        embed(models, [words + "a a a"])
