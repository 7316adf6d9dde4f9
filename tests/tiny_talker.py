"""A tiny model that has learnt, in seconds, which tone is which character: its posteriors are peaked, as real ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from model_sizes import conformer_model, resized
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stateless_transducer.checkpoint import Checkpoint
from stateless_transducer.features import PADDING_VALUE, FbankConfig, fbank
from stateless_transducer.model.config import ModelConfig
from stateless_transducer.model.transducer import build_model
from stateless_transducer.text.tokens import build_token_table

CHARACTERS = "今天气很好吗"
TOKENS = build_token_table([CHARACTERS], "char")
SIZES = conformer_model(
    vocab_size=len(TOKENS),
    num_layers=2,
    attention_dim=32,
    num_heads=4,
    feedforward_dim=32,
    conv_kernel=7,
    subsampling_channels=8,
    joiner_dim=32,
    dropout=0.0,
)


def say(text: str, rng: np.random.Generator) -> np.ndarray:
    """A tone for each character, pauses between, noise below; (S,)."""
    parts = [np.zeros(rng.integers(1600, 4800))]
    for character in text:
        time = np.arange(rng.integers(2400, 4000)) / 16000
        parts.append(0.3 * np.sin(2 * np.pi * 300 * 1.5 ** CHARACTERS.index(character) * time))
        parts.append(np.zeros(rng.integers(800, 2400)))
    wave = np.concatenate(parts)
    return (wave + 0.003 * rng.standard_normal(len(wave))).astype(np.float32)


def some_text(rng: np.random.Generator, most: int = 6) -> str:
    """One character or more."""
    return "".join(CHARACTERS[i] for i in rng.integers(0, len(CHARACTERS), rng.integers(1, most + 1)))


CAUSAL_SIZES = resized(SIZES, causal=True, chunk_size=(8, 16, -1), left_context_frames=(32, -1))


def train(first_steps: int = 60, steps: int = 60, sizes: ModelConfig = SIZES) -> Checkpoint:
    """The same model each time.

    Args:
        first_steps: steps with single characters, from which a model learns sooner what a token is.
        steps: steps with up to six characters.
        sizes: sizes of the model.
    """
    rng = np.random.default_rng(1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build_model(sizes).train()
        # fused: one operation updates all parameters
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for step, batch in enumerate((*_batches(rng, first_steps, most=1), *_batches(rng, steps, most=6))):
            optimizer.param_groups[0]["lr"] = 4e-3 * min(1, (step + 1) / 20)
            nll = model(*batch, max_symbols_per_frame=1)
            loss = nll.sum() / batch[3].sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return Checkpoint(model.state_dict(), sizes, FbankConfig(), TOKENS, {"command": "tests"})


def _batches(rng: np.random.Generator, count: int, *, most: int, batch_size: int = 8) -> Iterator[tuple[Tensor, ...]]:
    """Draw batches of 64 sounds: features, their lengths, tokens, their lengths."""
    texts = [some_text(rng, most) for _ in range(64)]
    features = [torch.from_numpy(fbank(say(text, rng), FbankConfig())) for text in texts]
    tokens = [torch.tensor(TOKENS.encode(text)) for text in texts]
    for _ in range(count):
        chosen = rng.integers(0, len(texts), batch_size)
        yield (
            pad_sequence([features[i] for i in chosen], batch_first=True, padding_value=PADDING_VALUE),
            torch.tensor([len(features[i]) for i in chosen]),
            pad_sequence([tokens[i] for i in chosen], batch_first=True, padding_value=1),
            torch.tensor([len(tokens[i]) for i in chosen]),
        )
