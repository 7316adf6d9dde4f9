"""States of causal encoders as sherpa-onnx passes them: arrays by position, with the streams on various axes.

sherpa-onnx makes the first states, zeros, from sizes in the metadata. Letters: N streams, L frames of left context,
C channels, F mel bins after subsampling, D width, H heads, Dh = D / H, K kernel of the convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from stateless_transducer.model.config import ConformerConfig, EncoderConfig, ZipformerConfig
from stateless_transducer.model.conformer import ConformerState
from stateless_transducer.model.encoder import CausalEncoder
from stateless_transducer.model.zipformer import ZipformerState
from stateless_transducer.model.zipformer_layer import LayerState


@dataclass(frozen=True)
class StreamingLayout:
    """Arrays of an encoder's state in another program."""

    axes: dict[str, int]
    """Axis of the streams by name of the array, in the order of the graph's inputs."""
    num_outputs: int
    """Number of these arrays, from the first one on, that the graph returns for the next chunk."""
    metadata: dict[str, str | int]
    """Sizes of the encoder, in sherpa-onnx's words."""
    to_arrays: Callable[[Any], list[Tensor]]
    """Convert a state of the encoder."""
    from_arrays: Callable[[Sequence[Tensor]], Any]
    """Convert arrays to a state of the encoder."""


def streaming_layout(encoder: CausalEncoder, config: EncoderConfig) -> StreamingLayout:
    """Return the layout of an encoder, which has the chunks of live sound.

    Raises:
        ValueError: sherpa-onnx runs no such encoder.
    """
    if isinstance(config, ZipformerConfig):
        return _zipformer2(encoder, config)
    if isinstance(config, ConformerConfig):
        return _conformer(encoder, config)
    raise ValueError(f"sherpa-onnx runs no streaming {config.kind}, but streaming conformers and Zipformers.")


def _zipformer2(encoder: CausalEncoder, config: ZipformerConfig) -> StreamingLayout:
    """Six arrays for each layer, the frames that the subsampling has seen, and the number of frames of 20 ms so far."""
    if config.subsampling_channels != ZipformerConfig.subsampling_channels:
        raise ValueError(
            f"sherpa-onnx runs streaming Zipformers of {ZipformerConfig.subsampling_channels} `subsampling_channels`, "
            f"but this model has {config.subsampling_channels}."
        )
    num_layers = sum(config.num_encoder_layers)
    # attention: (L, N, C), (1, N, L, C); convolutions: (N, C, K // 2)
    kinds = {"key": 1, "nonlin_attn": 1, "val1": 1, "val2": 1, "conv1": 0, "conv2": 0}
    axes = {f"cached_{kind}_{layer}": axis for layer in range(num_layers) for kind, axis in kinds.items()}
    axes |= {"embed_states": 0, "processed_lens": 0}
    left_frames = [encoder.live_chunks().divided(factor).cached_frames for factor in config.downsampling_factor]

    def to_arrays(state: ZipformerState) -> list[Tensor]:
        arrays: list[Tensor] = []
        for layer in (layer for stack in state.stacks for layer in stack):
            arrays += [layer.keys.transpose(0, 1), layer.gated[None]]
            arrays += [layer.values1.transpose(0, 1), layer.values2.transpose(0, 1)]
            arrays += [layer.convolved1.transpose(1, 2), layer.convolved2.transpose(1, 2)]
        return [*arrays, state.embedded, state.num_frames]

    def from_arrays(arrays: Sequence[Tensor]) -> ZipformerState:
        layers: list[LayerState] = []
        for i in range(num_layers):
            key, gated, value1, value2, convolved1, convolved2 = arrays[6 * i : 6 * i + 6]
            attention = (key.transpose(0, 1), gated[0], value1.transpose(0, 1), value2.transpose(0, 1))
            layers.append(LayerState(*attention, convolved1.transpose(1, 2), convolved2.transpose(1, 2)))
        rest = iter(layers)
        stacks = tuple(tuple(islice(rest, count)) for count in config.num_encoder_layers)
        return ZipformerState(stacks, *arrays[6 * num_layers :])

    sizes = {
        "encoder_dims": config.encoder_dim,
        "query_head_dims": config.query_head_dim,
        "value_head_dims": config.value_head_dim,
        "num_heads": config.num_heads,
        "num_encoder_layers": config.num_encoder_layers,
        "cnn_module_kernels": config.cnn_module_kernel,
        "left_context_len": left_frames,
    }
    metadata = {name: ",".join(map(str, numbers)) for name, numbers in sizes.items()}
    return StreamingLayout(axes, len(axes), _chunk(encoder) | metadata, to_arrays, from_arrays)


def _conformer(encoder: CausalEncoder, config: ConformerConfig) -> StreamingLayout:
    """Keys and values of all layers, in one array; frames that the convolutions have seen; feature frames so far."""
    axes = {"cached_attn": 2, "cached_conv": 2, "processed_lens": 0}
    factor = config.subsampling.factor
    L = encoder.live_chunks().divided(config.chunk_factor).cached_frames

    def to_arrays(state: ConformerState) -> list[Tensor]:
        # (N, layers, H, L, Dh) -> (layers, L, N, D)
        halves = [part.permute(1, 3, 0, 2, 4).flatten(3) for part in (state.keys, state.values)]
        # (N, layers, D, K-1) -> (layers, K-1, N, D)
        return [torch.cat(halves, dim=1), state.convolved.permute(1, 3, 0, 2), state.num_frames * factor]

    def from_arrays(arrays: Sequence[Tensor]) -> ConformerState:
        attention, convolved, num_feature_frames = arrays
        keys, values = attention.unflatten(3, (config.num_heads, -1)).permute(2, 0, 3, 1, 4).split(L, dim=3)
        return ConformerState(keys, values, convolved.permute(2, 0, 3, 1), num_feature_frames // factor)

    metadata = {
        # sherpa-onnx knows one array, and this number as its second size alone
        "left_context": 2 * L,
        "num_encoder_layers": config.num_layers,
        "encoder_dim": config.attention_dim,
        # to sherpa-onnx, one more than the frames of the state
        "cnn_module_kernel": config.conv_past + 1,
        "pad_length": encoder.look_ahead,
    }
    # sherpa-onnx counts the frames itself
    return StreamingLayout(axes, 2, _chunk(encoder) | metadata, to_arrays, from_arrays)


def _chunk(encoder: CausalEncoder) -> dict[str, str | int]:
    return {"T": encoder.chunk_frames, "decode_chunk_len": encoder.chunk_shift}
