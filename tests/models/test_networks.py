"""Every network but the transformer against the official outputs, loaded from official single files."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from ltx2.models.singlefile import load_component, open_singlefile
from tests.data_files import DATA, largest_difference, tensors

CPU = torch.device("cpu")


@cache
def _media() -> dict[str, Tensor]:
    return tensors("media_cases")


def _load(file: str, component: str, without: tuple[str, ...] = ()) -> Any:
    opened = open_singlefile(DATA / f"{file}.safetensors")
    return load_component(opened, component, dtype=torch.float32, device=CPU, without=without)


@pytest.mark.parametrize("form", ["v1", "v2"])
@torch.inference_mode()
def test_connectors(form: str) -> None:
    shared, values = tensors("connectors_v1_cases"), tensors(f"connectors_{form}_cases")
    mask = shared["attention_mask"]
    states = torch.full((*mask.shape, *shared["hidden_states_valid"].shape[1:]), 7.0)
    states[mask.bool()] = shared["hidden_states_valid"].float()
    video, audio, mask_out = _load(f"connectors_{form}", "connectors")(states, mask, padding_side="left")
    assert largest_difference(video, values["video_encoding"]) <= 1e-5
    assert largest_difference(audio, values["audio_encoding"]) <= 1e-5
    assert torch.equal(mask_out, values["attention_mask_out"])


@pytest.mark.parametrize("version", ["2.0", "2.3"])
@torch.inference_mode()
def test_video_vae(version: str) -> None:
    case = {key.removeprefix(f"video_vae_{version}."): value for key, value in _media().items()}
    vae = _load(f"video_vae_{version}", "vae")
    coarse = case["pixels_coarse"].float().repeat_interleave(4, -1).repeat_interleave(4, -2)
    pixels = coarse + case["pixels_pattern"].float().repeat(1, *(side // 4 for side in coarse.shape[-2:]))[:, None]
    mean, std = (value.view(1, -1, 1, 1, 1) for value in (vae.latents_mean, vae.latents_std))
    for frames, expected in ((9, "encoded"), (1, "encoded_first_frame_alone")):
        latent = (vae.encode(pixels[:, :, :frames]).latent_dist.mode() - mean) / std
        assert largest_difference(latent, case[expected]) <= 1e-5
    video = vae.decode(case["latent"] * std + mean, None, return_dict=False)[0]
    assert largest_difference(video[..., ::4, ::4], case["decoded_stride4"]) <= 1e-5
    assert largest_difference(video[..., 0, :], case["decoded_row0"]) <= 1e-5
    assert largest_difference(video[..., -1], case["decoded_last_column"]) <= 1e-5
    assert largest_difference(video.double().sum((1, 3, 4)), case["decoded_frame_sum"]) <= 1e-2


@torch.inference_mode()
def test_padding_of_the_video_decoder_follows_the_header() -> None:
    opened = open_singlefile(DATA / "video_vae_2.3.safetensors")
    opened.configs["vae"]["decoder_spatial_padding_mode"] = "reflect"
    vae: Any = load_component(opened, "vae", dtype=torch.float32, device=CPU)
    latent = _media()["video_vae_2.3.latent"]
    latent = latent * vae.latents_std.view(1, -1, 1, 1, 1) + vae.latents_mean.view(1, -1, 1, 1, 1)
    video = vae.decode(latent, None, return_dict=False)[0]
    assert largest_difference(video[..., 0, :], _media()["video_vae_2.3.decoded_reflect_row0"]) <= 1e-5
    assert largest_difference(video[..., 0, :], _media()["video_vae_2.3.decoded_row0"]) > 0.1


@pytest.mark.parametrize("rate", ["24k", "48k"])
@torch.inference_mode()
def test_audio_vae(rate: str) -> None:
    case = {key.removeprefix(f"audio_{rate}."): value for key, value in _media().items()}
    vae = _load(f"audio_vae_vocoder_{rate}", "audio_vae", without=() if rate == "48k" else ("encoder",))
    mean, std = vae.latents_mean, vae.latents_std
    tokens = case["latent"].transpose(1, 2).flatten(2) * std + mean
    latent = tokens.unflatten(2, case["latent"].shape[1::2]).transpose(1, 2)
    assert largest_difference(vae.decode(latent, return_dict=False)[0], case["mel"]) <= 1e-5
    if rate == "48k":
        encoded = vae.encode(case["encoder_mel_in"]).latent_dist.mode()
        tokens = (encoded.transpose(1, 2).flatten(2) - mean) / std
        encoded = tokens.unflatten(2, encoded.shape[1::2]).transpose(1, 2)
        assert largest_difference(encoded, case["encoded"]) <= 1e-5


@pytest.mark.parametrize(("rate", "tolerance"), [("24k", 1e-5), ("48k", 1e-4)])
@torch.inference_mode()
def test_vocoder(rate: str, tolerance: float) -> None:
    case = {key.removeprefix(f"audio_{rate}."): value for key, value in _media().items()}
    vocoder = _load(f"audio_vae_vocoder_{rate}", "vocoder")
    wave = vocoder(case["vocoder_mel"])
    assert vocoder.config.output_sampling_rate == int(rate.removesuffix("k")) * 1000
    assert largest_difference(wave[..., :1500], case["waveform_head"]) <= tolerance
    assert largest_difference(wave[..., -500:], case["waveform_tail"]) <= tolerance
    assert largest_difference(wave.double().sum(-1), case["waveform_sum"]) <= 1e-2
    if rate == "48k":
        first = vocoder.vocoder(case["vocoder_mel"])
        assert largest_difference(first[..., :600], case["waveform_16k"]) <= tolerance
        assert first.abs().max() == 1, "the official clamp after the 16 kHz generator is at work in this case"


@pytest.mark.parametrize("name", ["x2_rational", "x1.5", "temporal_x2"])
@torch.inference_mode()
def test_upsampler(name: str) -> None:
    upsampled = _load(f"upsampler_{name}", "upsampler")(_media()["upsampler.latent"])
    assert largest_difference(upsampled, _media()[f"upsampler.{name}.raw"]) <= 1e-5


@pytest.mark.parametrize(
    ("file", "component", "without"),
    [
        ("e2e_video_vae", "vae", ("encoder",)),
        ("e2e_audio_vae", "audio_vae", ("encoder",)),
        ("e2e_upsampler_x2", "upsampler", ()),
    ],
)
def test_parts_of_the_end_to_end_cases_load(file: str, component: str, without: tuple[str, ...]) -> None:
    network = _load(file, component, without)
    assert not any(tensor.is_meta or tensor.requires_grad for tensor in network.state_dict(keep_vars=True).values())
    assert not network.training


@torch.inference_mode()
def test_fp8_weights_are_dequantised_with_their_scale() -> None:
    from ltx2.models.rename import component_of, diffusers_name

    opened = open_singlefile(DATA / "fp8_transformer_2.3.safetensors")
    network = load_component(opened, "transformer", dtype=torch.bfloat16, device=CPU)
    expected = {key: value for key, value in tensors("fp8_expected").items() if key.startswith("dequant_bf16/")}
    state = network.state_dict()
    assert len(expected) == 34
    for key, value in expected.items():
        place = component_of(key.removeprefix("dequant_bf16/"))
        assert place
        assert torch.equal(state[diffusers_name(*place)], value), key
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}


@torch.inference_mode()
def test_forward_with_dequantised_weights() -> None:
    from ltx2.models.velocity import Stream, velocity

    opened = open_singlefile(DATA / "fp8_transformer_2.3.safetensors")
    network = load_component(opened, "transformer", dtype=torch.float32, device=CPU)
    values, expected = tensors("transformer_2.3_cases"), tensors("fp8_expected")
    video, audio = (
        Stream(
            latent=values[f"t2v.{side}.latent"],
            timesteps=values[f"t2v.{side}.timesteps"][..., 0],
            sigma=values[f"t2v.{side}.sigma"],
            positions=values[f"t2v.{side}.positions"],
            context=values[f"t2v.{side}.context"],
        )
        for side in ("video", "audio")
    )
    for ours, side in zip(velocity(network, video, audio), ("video", "audio"), strict=True):
        assert largest_difference(ours, expected[f"t2v.{side}.velocity"]) <= 1e-5
