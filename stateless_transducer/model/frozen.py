"""Inference layout of a trained transducer: the same outputs, faster, without gradients.

Letters: N utterances, T_in feature frames, F mel bins, T encoder frames, V vocabulary, D joiner width,
C tokens of context.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from stateless_transducer.model.packed_linear import PackedLinear
from stateless_transducer.model.transducer import Transducer


class FrozenTransducer:
    """Transducer for the searches, with the outputs of the `Transducer` that it is made from.

    The decoder, an embedding and a depthwise convolution, becomes a table for each of the C positions: a step is C
    gathers and a sum. The joiner's weight is laid out once, see `PackedLinear`. With bfloat16, encoder and joiner
    multiply in bfloat16, while sums stay in float32.
    """

    def __init__(self, model: Transducer, *, dtype: torch.dtype = torch.float32) -> None:
        """Lay out a model on its device; later changes of the model have no effect.

        Args:
            model: transducer in evaluation mode.
            dtype: dtype of matrix products, float32 or bfloat16.
        """
        self.blank_id, self.context_size = model.blank_id, model.context_size
        self.subsampling = model.subsampling
        self._encode, self._dtype = model.encode, dtype
        with torch.no_grad():
            embedding = model.decoder.embedding.weight
            kernel = model.decoder.conv.weight[:, 0].T if self.context_size > 1 else torch.ones_like(embedding[:1])
            self._tables = [embedding * factor for factor in kernel]  # C times (V, D)
            linear = model.joiner.output_linear
            self._output_linear = PackedLinear(linear.weight.to(dtype), linear.bias.to(dtype))

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
        decoder_out = self._tables[0].index_select(0, contexts[:, 0])
        for position, table in enumerate(self._tables[1:], start=1):
            decoder_out += table.index_select(0, contexts[:, position])
        return decoder_out

    @torch.inference_mode()
    def join(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        """Map encoder and decoder outputs, (N, D) each, to logits (N, V), float32."""
        return self._output_linear(torch.tanh(encoder_out + decoder_out)).float()
