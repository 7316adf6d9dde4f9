from __future__ import annotations

import pytest

from stateless_transducer.recognition.endpoint import EndpointRules


@pytest.mark.parametrize(
    ("num_frames", "num_silent_frames", "wanted"),
    [
        (0, 0, False),
        # rule 1: long silence, nothing said
        (236, 236, False),
        (244, 244, True),
        # rule 2: shorter silence, but only behind speech
        (124, 124, False),
        (300, 116, False),
        (300, 124, True),
        # in float32 these are a little less than 1.2 s and 2.4 s
        (300, 120, False),
        (240, 240, False),
        # rule 3: long speech
        (1996, 0, False),
        (2000, 0, True),
    ],
)
def test_rules_end_an_utterance(num_frames, num_silent_frames, wanted):
    assert EndpointRules().are_met(num_frames, num_silent_frames, 0.01) is wanted


def test_rules_can_be_moved():
    rules = EndpointRules(rule1_min_trailing_silence=9, rule2_min_trailing_silence=0.5, rule3_min_utterance_length=5)
    assert rules.are_met(200, 52, 0.01) and not rules.are_met(244, 244, 0.01) and rules.are_met(500, 0, 0.01)


def test_frames_of_twice_the_length_need_half_as_many():
    assert EndpointRules().are_met(122, 122, 0.02) and not EndpointRules().are_met(118, 118, 0.02)


def test_rule_without_a_time_is_named():
    with pytest.raises(ValueError, match="`rule2_min_trailing_silence` must be above 0 s, but is -1"):
        EndpointRules(rule2_min_trailing_silence=-1)
