"""Tokens as bursts of loudness in silence or noise: their edges are known."""

from __future__ import annotations

import numpy as np
import pytest

from stateless_transducer.features import FbankConfig, fbank
from stateless_transducer.recognition.spans import separate_spans, token_spans

RATE = 16000


def _bursts(spans, seconds, noise):
    """Features of tones with soft beginnings and ends, in seconds."""
    random = np.random.default_rng(0)
    wave = random.normal(0, noise, round(seconds * RATE)) if noise else np.zeros(round(seconds * RATE))
    for start, end in spans:
        first, last = round(start * RATE), round(end * RATE)
        tone = 0.3 * np.sin(2 * np.pi * 500 * np.arange(last - first) / RATE)
        wave[first:last] += tone * np.hanning(last - first) ** 0.25
    return fbank(wave.astype(np.float32), FbankConfig())


@pytest.mark.parametrize("noise", [0.0, 1e-4, 3e-3])
def test_edges_of_tokens_in_pauses_are_found(noise):
    spans = [(0.3, 0.7), (0.9, 1.2), (1.25, 1.9)]
    features = _bursts(spans, 2.5, noise)
    # said early in the token, in its middle, late in it
    for share in (0.1, 0.5, 0.9):
        moments = [round(100 * (start + share * (end - start))) for start, end in spans]
        found = token_spans(features, moments, 4)
        for (first, last), (start, end) in zip(found, spans, strict=True):
            # two windows of 25 ms, and the smoothing
            assert first / 100 == pytest.approx(start, abs=0.05) and last / 100 == pytest.approx(end, abs=0.05)


def test_spans_follow_one_another_and_none_is_empty():
    random = np.random.default_rng(1)
    features = random.normal(-5, 3, (200, 80)).astype(np.float32)
    for _ in range(50):
        moments = np.sort(random.integers(0, 200, random.integers(1, 30))).tolist()
        spans = token_spans(features, moments, 4)
        assert len(spans) == len(moments)
        assert all(start < end for start, end in spans)
        assert all(a[1] <= b[0] or a[0] <= b[0] for a, b in zip(spans[:-1], spans[1:], strict=True))


def test_a_token_lasts_an_encoder_frame_where_the_next_leaves_the_room():
    """Of clicks, one alone and two close to one another."""
    features = np.full((60, 80), -10, np.float32)
    features[[10, 40, 42]] = 0
    alone, first, second = token_spans(features, [10, 40, 42], 4)
    assert alone[1] - alone[0] == second[1] - second[0] == 4
    assert first[0] < first[1] <= second[0]


def test_a_token_is_no_longer_than_anybody_speaks():
    features = np.zeros((1000, 80), np.float32)
    ((start, end),) = token_spans(features, [500], 4)
    assert 300 <= end - start <= 301


def test_nothing_said_has_no_spans():
    assert token_spans(np.zeros((10, 80), np.float32), [], 4) == []


@pytest.mark.parametrize("seed", [*range(30), *(pytest.param(n, marks=pytest.mark.sweep) for n in range(30, 300))])
def test_spans_of_random_moments_never_overlap_and_last_a_frame(seed):
    """From the loudness of noise or bursts, with moments as dense as a frame that says several tokens."""
    random = np.random.default_rng(seed)
    num_frames, first, shortest = int(random.integers(7, 300)), int(random.integers(0, 10**6)), 40
    features = random.normal(-5, 3, (num_frames, 20)).astype(np.float32)
    if seed % 2:
        features[random.random(num_frames) < 0.8] = -16
    count = int(random.integers(1, max(2, num_frames // random.integers(1, 9))))
    moments = np.sort(random.integers(0, num_frames + 4, count)).tolist()
    # a sound may end before its last frame does
    last = first + 10 * num_frames - int(random.integers(0, 5))
    spans = [(first + 10 * start, first + 10 * end) for start, end in token_spans(features, moments, 4)]
    separate = separate_spans(spans, first=first, last=last, shortest=shortest)
    assert len(separate) == count
    borders = [border for span in separate for border in span]
    assert borders == sorted(borders) and first <= borders[0] and borders[-1] <= last
    lengths = [end - start for start, end in separate]
    room = (last - first) / count
    assert min(lengths) >= shortest if room >= shortest else max(lengths) - min(lengths) <= 1


def test_spans_with_room_stay_where_they_are():
    spans = [(100, 150), (150, 300), (420, 460)]
    assert separate_spans(spans, first=0, last=500, shortest=40) == spans
    # the longer neighbor gives way; at the end of the sound, the earlier one
    assert separate_spans([(100, 110), (100, 300)], first=0, last=500, shortest=40) == [(100, 140), (140, 300)]
    assert separate_spans([(100, 480), (480, 490)], first=0, last=500, shortest=40) == [(100, 460), (460, 500)]
