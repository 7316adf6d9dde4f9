"""Starting from a trained model, with its tokens or with others."""

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
    """Sizes of the trained model, for as many tokens as the table has."""
    sizes = checkpoint.model_config
    return replace(
        sizes,
        vocab_size=len(token_table),
        blank_id=token_table.blank_id,
        encoder=replace(sizes.encoder, dropout=dropout),
    )


def adapted_weights(checkpoint: Checkpoint, token_table: TokenTable, fresh: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trained weights with a row for each token of the table.

    Args:
        checkpoint: of the trained model.
        token_table: of the new one.
        fresh: weights of a new model of `adapted_config`: rows of tokens that the trained model does not know.
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
    """One phrase for the log: which tokens keep the rows of the trained model."""
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
