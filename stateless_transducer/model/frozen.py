"""Inference layout of a trained transducer: the same outputs, faster, without gradients.

Letters: N utterances, T_in feature frames, F mel bins, T encoder frames, V vocabulary, D joiner width,
C tokens of context.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from stateless_transducer.model.packed_linear import PackedLinear
from stateless_transducer.model.transducer import Transducer
from stateless_transducer.ops.subsampling import Subsampling
from stateless_transducer.products import use_fastest_products


class FrozenTransducer:
    """Transducer for the searches, with the outputs of the `Transducer` that it is made from.

    The decoder, an embedding and a convolution, becomes a table for each of the C positions: a step is C gathers and a
    sum, and if the model has them, a ReLU and a projection. The joiner's weights are laid out once, see `PackedLinear`.
    With bfloat16, encoder and joiner multiply in bfloat16, while sums stay in float32.
    """

    def __init__(self, model: Transducer, *, dtype: torch.dtype = torch.float32) -> None:
        """Lay out a model on its device; later changes of the model have no effect.

        On a CPU, it chooses the products of the whole process, see `use_fastest_products`.

        Args:
            model: transducer in evaluation mode.
            dtype: dtype of matrix products, float32 or bfloat16.
        """
        if model.device.type == "cpu":
            use_fastest_products()
        self.blank_id: int = model.blank_id
        self.context_size: int = model.context_size
        self.subsampling: Subsampling = model.subsampling
        self._encode, self._dtype = model.encode, dtype
        self._grouped = model.decoder if model.decoder.is_grouped and self.context_size > 1 else None
        with torch.no_grad():
            tables, projection = model.decoder.tables(), model.joiner.decoder_proj  # C times (V, D)
            if self.context_size == 1:
                tables, projection = [projection(tables[0])], None
            # row V, the last one, is for -1
            self._tables = [torch.cat([table, torch.zeros_like(table[:1])]) for table in tables]
            self._decoder_proj = _packed(projection, torch.float32) if isinstance(projection, nn.Linear) else None
            self._output_linear = _packed(model.joiner.output_linear, dtype)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._output_linear.device

    @torch.inference_mode()
    def encode(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features (N, T_in, F) of lengths (N,): encoder_out (N, T, D), float32, and encoder_out_lens (N,)."""
        is_narrow = self._dtype != torch.float32
        with torch.autocast(features.device.type, self._dtype) if is_narrow else contextlib.nullcontext():
            encoder_out, lens = self._encode(features, feature_lens)
        return encoder_out.float(), lens

    @torch.inference_mode()
    def predict(self, contexts: Tensor) -> Tensor:
        """Map contexts (N, C) to decoder outputs (N, D)."""
        if self._grouped is not None:
            contexts = self._grouped.mark_padding(contexts) % len(self._tables[0])
        decoder_out = self._tables[0].index_select(0, contexts[:, 0])
        for position, table in enumerate(self._tables[1:], start=1):
            decoder_out += table.index_select(0, contexts[:, position])
        if self._grouped is not None:
            decoder_out.relu_()
        return decoder_out if self._decoder_proj is None else self._decoder_proj(decoder_out)

    @torch.inference_mode()
    def join(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        """Map encoder and decoder outputs, (N, D) each, to logits (N, V), float32."""
        return self._output_linear(torch.tanh(encoder_out + decoder_out)).float()


def _packed(linear: nn.Linear, dtype: torch.dtype) -> PackedLinear:
    return PackedLinear(linear.weight.to(dtype), linear.bias.to(dtype))
