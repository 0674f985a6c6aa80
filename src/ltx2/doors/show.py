"""A Plan and its cost as text for people: what `ltx2 plan` prints."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import shorten
from typing import TYPE_CHECKING

from ltx2.spec.cost import Cost, StageCost
from ltx2.spec.lossy import NO_EXTRAS
from ltx2.spec.settings import Settings

if TYPE_CHECKING:
    from ltx2.spec.card import Card
    from ltx2.spec.plan import Guidance, Plan, Stage


def describe(plan: Plan, card: Card, cost: Cost, settings: Settings) -> str:
    """The whole plan, a few aligned lines."""
    sound = f"sound at {card.output_sampling_rate} Hz from stage {plan.audio_stage + 1}" if plan.audio else "no sound"
    lines = [
        ("model", f"{card.name} (LTX {card.version}, {card.kind})" + (f": {card.note}" if card.note else "")),
        ("plan", f"{plan.preset}, seed {plan.seed}, {plan.schedule} schedule"),
        ("prompt", plan.prompt),
        ("clip", f"{plan.width}x{plan.height}, {plan.frames} frames at {plan.fps} fps, {plan.seconds:.2f} s, {sound}"),
    ]
    if plan.negative_prompt and any(stage.video.cfg != 1 or stage.audio.cfg != 1 for stage in plan.stages):
        lines.append(("negative", shorten(plan.negative_prompt, 100, placeholder=" ...")))
    if plan.image:
        lines.append(("image", f"{plan.image}, strength {plan.image_strength:g}"))
    lines += [("lora", f"{path}, strength {strength:g}") for path, strength in plan.loras]
    for number, (stage, part) in enumerate(zip(plan.stages, cost.stages, strict=True), start=1):
        title = f"stage {number}"
        lines += [
            (title if first else "", text)
            for first, text in zip([True] + [False] * 4, _stage(stage, part), strict=False)
        ]
    most = "up to " if cost.at_most else ""
    lines.append(
        ("work", f"{most}{cost.passes} passes, {_work(cost.flops)}, and {_work(cost.text_flops)} for the text")
    )
    kept = f", originals of merged LoRAs {size(cost.original_bytes)}" if cost.original_bytes else ""
    memory = f"weights {size(cost.weight_bytes)}{kept}, activations {size(cost.activation_bytes + cost.text_key_bytes)}"
    lines.append(
        ("memory", f"{memory}, graphs {size(cost.kept_bytes + cost.graph_bytes)}, decode {size(cost.decode_bytes)}")
    )
    lines.append(("", f"peak {size(cost.resident_bytes)}, or {size(cost.staged_bytes)} with one network at a time"))
    if card.family == card.version:
        estimate = f"{most or 'about '}{cost.seconds:.3g} s and ${cost.dollars:.2g} on one H200"
        basis = f"at {cost.rate / 1e12:.0f} TFLOP/s, without encoding, ${settings.price_per_hour:g} an hour"
        lines.append(("estimate", f"{estimate} ({basis})"))
    # No estimate for a small model: it is bound by launches and imports, which counting does not see.
    return "\n".join(f"{title:<9} {text}" for title, text in lines)


def size(count: float) -> str:
    """Bytes in GiB, or in MiB below one."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _stage(stage: Stage, cost: StageCost) -> Iterator[str]:
    tokens = f"{cost.video_tokens} video and {cost.audio_tokens} audio tokens"
    yield f"{stage.width}x{stage.height}, {tokens}, {stage.steps} steps of {stage.sampler}"
    lora = f", distilled LoRA at {stage.lora:g}" if stage.lora else ""
    which = "an evaluation" if stage.guided_evaluations == stage.evaluations else "a guided evaluation"
    yield f"{cost.passes} passes ({stage.passes_per_step} {which}), {_work(cost.flops)}{lora}"
    if stage.extras != NO_EXTRAS:
        yield f"lossy: {_extras(stage)}"
    if stage.passes_per_step > 1:
        yield f"guidance: picture {_guidance(stage.video)}; sound {_guidance(stage.audio)}"
    yield "sigmas " + " ".join(f"{sigma:.4g}" for sigma in stage.sigmas)


def _extras(stage: Stage) -> str:
    steps = range(stage.steps)
    guided = [step + 1 for step in steps if stage.extras.guides(step, stage.steps)]
    skipped = sum(stage.extras.may_skip(step, stage.steps) for step in steps)
    parts = [f"guidance in steps {guided[0]} to {guided[-1]}"] if len(guided) < stage.steps else []
    if stage.extras.cache:
        parts.append(f"up to {skipped} steps skipped, while the velocity changes by less than {stage.extras.cache:g}")
    return ", ".join(parts)


def _guidance(guidance: Guidance) -> str:
    blocks = f" at block {', '.join(map(str, guidance.stg_blocks))}" if guidance.stg else ""
    return f"cfg {guidance.cfg:g}, stg {guidance.stg:g}{blocks}, modality {guidance.modality:g}, rescale {guidance.rescale:g}"


def _work(flops: float) -> str:
    """Operations in TFLOP, or in GFLOP below a tenth of one."""
    return f"{flops / 1e12:,.1f} TFLOP" if flops >= 1e11 else f"{flops / 1e9:.3g} GFLOP"
