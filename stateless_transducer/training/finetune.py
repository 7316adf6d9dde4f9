"""Initialization from a trained model, with the same tokens or different ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from stateless_transducer.checkpoint import Checkpoint
from stateless_transducer.model.config import ModelConfig
from stateless_transducer.model.transducer import TOKEN_ROWS
from stateless_transducer.text.tokens import TokenTable

_NUM_EXAMPLES = 10


def adapted_config(checkpoint: Checkpoint, token_table: TokenTable, *, dropout: float) -> ModelConfig:
    """Return the sizes of the trained model, for the number of tokens in the table."""
    sizes = checkpoint.model_config
    return replace(
        sizes,
        vocab_size=len(token_table),
        blank_id=token_table.blank_id,
        encoder=replace(sizes.encoder, dropout=dropout),
    )


def adapted_weights(checkpoint: Checkpoint, token_table: TokenTable, fresh: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the trained weights with a row for each token of the table.

    Args:
        checkpoint: checkpoint of the trained model.
        token_table: tokens of the new model.
        fresh: initial weights of a model of `adapted_config`, for tokens that the trained model lacks.
    """
    old = checkpoint.token_table
    known = [symbol for symbol in token_table.symbols if symbol in old.ids]
    rows = torch.tensor([token_table.ids[symbol] for symbol in known])
    old_rows = torch.tensor([old.ids[symbol] for symbol in known])
    weights = dict(checkpoint.weights)
    for name in TOKEN_ROWS:
        weights[name] = fresh[name].detach().clone()
        weights[name][rows] = checkpoint.weights[name][old_rows]
    return weights


def describe_tokens(old: TokenTable, new: TokenTable) -> str:
    """Describe for the log which tokens keep the rows of the trained model."""
    if new == old:
        return f"all {len(old)} tokens are the model's own"
    unknown = [symbol for symbol in new.symbols if symbol not in old.ids]
    num_known = len(new) - len(unknown)
    examples = " ".join(unknown[:_NUM_EXAMPLES]) + (" ..." if len(unknown) > _NUM_EXAMPLES else "")
    added = f"{len(unknown)} are new ({examples})" if unknown else "none is new"
    return (
        f"{num_known} of {len(new)} tokens keep their rows, {added}, {len(old) - num_known} of the model's "
        "tokens are not used"
    )
