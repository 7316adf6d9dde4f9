"""Names of icefall's parameters in ours."""

from __future__ import annotations

_PREFIXES = {
    "encoder.encoder_embed.": "encoder.subsampling.",
    "encoder.encoder.layers.": "encoder.layers.",
    "encoder.encoder_output_layer.": "encoder.output.",
}


def our_name(name: str) -> str:
    for theirs, ours in _PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name
