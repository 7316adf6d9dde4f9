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


def adapted_weights(
    checkpoint: Checkpoint, token_table: TokenTable, fresh: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """The trained weights with a row for each token of the table, and a line that says what was kept.

    Args:
        checkpoint: of the trained model.
        token_table: of the new one.
        fresh: weights of a new model of `adapted_config`: rows of tokens that the trained model does not know.
    """
    old = checkpoint.token_table
    known = [symbol for symbol in token_table.symbols if symbol in old.ids]
    unknown = [symbol for symbol in token_table.symbols if symbol not in old.ids]
    rows = torch.tensor([token_table.ids[symbol] for symbol in known])
    old_rows = torch.tensor([old.ids[symbol] for symbol in known])
    weights = dict(checkpoint.weights)
    for name in TOKEN_ROWS:
        weights[name] = fresh[name].detach().clone()
        weights[name][rows] = checkpoint.weights[name][old_rows]
    if token_table == old:
        return weights, f"all {len(old)} tokens are the model's own"
    examples = " ".join(unknown[:_NUM_EXAMPLES]) + (" ..." if len(unknown) > _NUM_EXAMPLES else "")
    new = f"{len(unknown)} are new ({examples})" if unknown else "none is new"
    return weights, (
        f"{len(known)} of {len(token_table)} tokens keep their rows, {new}, {len(old) - len(known)} of the model's "
        "tokens are not used"
    )
