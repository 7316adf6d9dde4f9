"""The page in a real browser: its script, style, files and microphone under the server's security policy."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from browser import CHROMIUM, opened
from served import served
from tiny_talker import say

from stateless_transducer.recognition.config import SegmentConfig
from stateless_transducer.recognition.recognizer import Recognizer
from stateless_transducer.server.config import BatchConfig
from stateless_transducer.server.engine import PiecewiseEngine

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")

TEXT = "今天气很好吗"


@pytest.mark.sweep
def test_page_transcribes_files_and_the_microphone(talker, tmp_path):
    random = np.random.default_rng(3)
    silence = np.zeros(32000, np.float32)
    soundfile.write(tmp_path / "a.wav", say(TEXT, random), 16000)
    soundfile.write(tmp_path / "microphone.wav", np.concatenate([say(TEXT, random), silence]), 16000)
    recognizer = Recognizer.from_pretrained(talker / "onnx", segments=SegmentConfig(vad="energy"), num_threads=1)
    engine = PiecewiseEngine(recognizer, BatchConfig())
    with (
        served(engine) as address,
        opened(address, tmp_path / "profile", microphone=tmp_path / "microphone.wav") as page,
    ):
        page.wait("document.getElementById('model').textContent === 'Model: talker'")
        # the style is applied
        assert page.evaluate("getComputedStyle(document.getElementById('drop')).borderTopStyle") == "dashed"
        _transcribes_a_file(page, tmp_path)
        _fits(page, tmp_path)
        _transcribes_the_microphone(page, tmp_path)
        assert page.complaints == []
        # the policy is in force: a script that is not of the page does not run
        foreign = "Object.assign(document.createElement('script'), {textContent: 'var foreign = 1'})"
        page.evaluate(f"document.head.append({foreign})")
        assert page.evaluate("typeof foreign") == "undefined" and "Content Security Policy" in page.complaints[0]


def _transcribes_a_file(page, folder):
    page.choose("#file", folder / "a.wav")
    page.wait("!document.getElementById('save').hidden")
    assert page.evaluate("[...document.querySelectorAll('#text .tokens')].map(e => e.textContent).join('')") == TEXT
    # the text is one stop of the tab key
    stops = []
    page.evaluate("document.activeElement.blur()")
    for _ in range(20):
        page.press("Tab")
        stops.append(page.evaluate("document.activeElement.closest('#text') !== null"))
    assert 1 <= sum(stops) <= 2, stops
    page.evaluate("document.querySelector('#text span').focus()")
    page.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == TEXT[1]
    _plays(page)


def _plays(page):
    """The recording can be heard."""
    page.wait("document.getElementById('player').duration > 1")
    page.call("Runtime.evaluate", expression="document.getElementById('player').play()", userGesture=True)
    page.wait("document.getElementById('player').currentTime > 0.1")
    page.evaluate("document.getElementById('player').pause()")


def _fits(page, folder):
    """Nothing is cut off on a phone; light and dark differ, and both can be read."""
    colors = []
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        for width in (375, 1000):
            page.resize(width)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            (folder / f"page-{scheme}-{width}.png").write_bytes(page.picture())
        colors.append(page.evaluate("getComputedStyle(document.body).color"))
    assert colors[0] != colors[1]


def _transcribes_the_microphone(page, folder):
    page.click("mic")
    page.wait("document.querySelector('#text p:not(.partial)') !== null")
    assert page.evaluate("document.getElementById('mic').textContent") == "Stop"
    (folder / "page-microphone.png").write_bytes(page.picture())
    assert page.evaluate("document.getElementById('player').hidden")
    page.click("mic")
    assert page.evaluate("document.getElementById('mic').textContent") == "Speak"
    assert not page.evaluate("document.getElementById('player').hidden")
    text = page.evaluate("document.querySelector('#text .tokens').textContent")
    # a busy machine loses pieces of the microphone's sound
    assert set(text.replace("<unk>", "")) <= set(TEXT)
    _plays(page)
