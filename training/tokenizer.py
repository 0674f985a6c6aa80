"""The tokenizer of the embedded model: Gemma's kind of byte-pair encoding with a small vocabulary learnt from captions.

Words of the toy world become one or two tokens; any other text falls back to pieces and bytes.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import GemmaTokenizer

from training.networks import TEXT_POSITIONS
from training.world import caption, sample_scenes

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_image>", "<end_of_image>", "<image_soft_token>")
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
VOCABULARY = 800
FOLDER = Path(__file__).parents[1] / "src" / "ltx2" / "models" / "tiny" / "tokenizer"
PRINTABLE = [chr(code) for code in range(33, 127)] + ["▁"]


def learn(captions: list[str]) -> GemmaTokenizer:
    """Learn merges inside words, each with its leading space; specials and bytes come first, so padding is id 0."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never")
    room = VOCABULARY - len(SPECIAL) - len(BYTES)
    trainer = trainers.BpeTrainer(vocab_size=room, initial_alphabet=PRINTABLE, show_progress=False)
    learner.train_from_iterator(captions, trainer)
    model = _model(learner)
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    vocabulary = {piece: index for index, piece in enumerate((*SPECIAL, *BYTES, *pieces))}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT_POSITIONS, padding_side="left")
    # every text begins with <bos>, so that the empty one has a token too
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return tokenizer


def _model(tokenizer: Tokenizer) -> dict:
    return json.loads(tokenizer.to_str())["model"]


def captions(count: int, seed: int) -> list[str]:
    """Captions of fresh training scenes."""
    rng = random.Random(seed)
    return [caption(scene, rng) for scene in sample_scenes(count, seed)]


def load(folder: Path = FOLDER) -> GemmaTokenizer:
    """The tokenizer in the package; learnt anew, always alike, when `folder` does not hold one yet."""
    if not (folder / "tokenizer.json").exists():
        learn(captions(20_000, seed=11)).save_pretrained(folder)
    return GemmaTokenizer.from_pretrained(folder)
