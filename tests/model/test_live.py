from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_causal import toy_model

from stateless_transducer.features import FbankConfig
from stateless_transducer.model import live as live_module
from stateless_transducer.model.encoder import row_of_state
from stateless_transducer.model.live import LiveTransducer


def _live(**options):
    return LiveTransducer(toy_model(), FbankConfig(), chunk_ms=160, left_ms=320, **options)


def _chunks(features, live):
    """The chunks of a sound, (T_in, F) each."""
    starts = range(0, len(features) - live.chunk_frames + 1, live.chunk_shift)
    return [features[start : start + live.chunk_frames] for start in starts]


def test_streams_of_any_age_are_encoded_as_the_whole():
    """Streams begin one after another, leave, and change their order; each gets the frames of its whole sound."""
    live, rng = _live(), np.random.default_rng(0)
    assert (live.chunk_shift, live.chunk_frames, live.subsampling.factor) == (16, 19, 4)
    sounds = [rng.standard_normal((16 * count + 3, 80)).astype(np.float32) * 3 - 8 for count in (6, 3, 6, 4)]
    chunks = [_chunks(sound, live) for sound in sounds]
    states, outputs = [live.initial_state() for _ in sounds], [[] for _ in sounds]
    for together in ([0], [0, 1], [1, 0, 2], [2, 1, 3, 0], [0, 2, 3], [0, 2, 3], [3, 2], [2]):
        features = np.stack([chunks[i][len(outputs[i])] for i in together])
        before = [states[i] for i in together]
        encoder_out, after = live.encode_chunk(features, before)
        again, _ = live.encode_chunk(features, before)
        torch.testing.assert_close(encoder_out, again, rtol=0, atol=0)
        for i, row, state in zip(together, encoder_out, after, strict=True):
            outputs[i].append(row)
            states[i] = state
    model = toy_model()
    model.encoder.use_chunks(8, 16)
    for sound, parts in zip(sounds, outputs, strict=True):
        with torch.inference_mode():
            whole, _ = model.encode(torch.from_numpy(sound)[None], torch.tensor([len(sound)]))
        torch.testing.assert_close(torch.cat(parts), whole[0], rtol=0, atol=1e-5)


def test_a_batch_gives_the_rows_that_go_on_unless_unchanged(monkeypatch):
    calls = []

    def counted_row(state, row):
        calls.append(row)
        return row_of_state(state, row)

    monkeypatch.setattr(live_module, "row_of_state", counted_row)
    live, features = _live(), np.zeros((4, 19, 80), np.float32)
    _, states = live.encode_chunk(features, [live.initial_state() for _ in range(4)])
    _, others = live.encode_chunk(features[:2], states[:2])
    for streams, rows in ((states, []), (states[::-1], [3, 2, 1, 0]), ([states[2], *others], [2, 0, 1])):
        calls.clear()
        live.encode_chunk(features[: len(streams)], streams)
        assert calls == rows


def test_bfloat16_is_near_float32():
    features = np.random.default_rng(0).standard_normal((1, 19, 80)).astype(np.float32) * 3 - 8
    exact, near = (
        live.encode_chunk(features, [live.initial_state()])[0] for live in (_live(), _live(dtype=torch.bfloat16))
    )
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, exact, rtol=0, atol=0.1 * float(exact.std()))


def test_models_and_chunks_that_do_not_fit_are_refused():
    for chunk_ms, left_ms, message in (
        (100, 320, r"`chunk_ms` must be a multiple of 40 ms, but is 100"),
        (0, 320, r"`chunk_ms` must be a multiple of 40 ms, but is 0. Pass 40"),
        (160, 330, r"`left_ms` must be a multiple of 40 ms, but is 330. Pass 320"),
    ):
        with pytest.raises(ValueError, match=message):
            LiveTransducer(toy_model(), FbankConfig(), chunk_ms=chunk_ms, left_ms=left_ms)
    model = toy_model()
    model.encoder.is_causal = False
    with pytest.raises(ValueError, match="--causal true"):
        LiveTransducer(model, FbankConfig())
