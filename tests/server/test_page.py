"""The script of the page, run by Node.js where there is one, on a page of a few lines."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stateless_transducer.server import app

PAGE = (Path(app.__file__).parent / "page.html").read_text(encoding="utf-8")
# elements that remember what is done to them
_DOCUMENT = """
class Element {
  constructor() { this.children = []; this.style = {}; this.hidden = false; this.textContent = ""; this.value = ""; }
  get firstElementChild() { return this.children[0] ??= new Element(); }
  classList = {add() {}, remove() {}, toggle() {}};
  append(...items) { this.children.push(...items); }
  querySelectorAll() { return []; }
  focus() { document.focused = this; }
  pause() {} play() { document.played = this.currentTime; }
}
const elements = {};
const document = {
  getElementById: id => elements[id] ??= new Element(), createElement: () => new Element(),
};
const location = {href: "http://localhost/"};
const navigator = {};
const fetch = async () => ({json: async () => ({model: MODEL, hotwords: false})});
"""

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="the script of the page is run by Node.js")


def _run(program, model="talker", folder=None):
    """What a program prints that runs behind the script."""
    (script,) = re.findall("<script>(.*)</script>", PAGE, re.DOTALL)
    source = (
        f"const MODEL = {json.dumps(model)};" + _DOCUMENT + script.replace('"use strict";', "") + "{" + program + "}"
    )
    done = subprocess.run(["node", "-"], input=source, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("model", "shown"), [("talker", "Model: talker"), ("model", "")])
def test_the_name_of_the_model_is_shown_where_it_says_something(model, shown):
    assert _run('setTimeout(() => console.log($("model").textContent), 20)', model) == shown + "\n"


def test_the_text_is_one_tab_stop_in_which_arrows_move():
    segment = {"text": "今天很好", "tokens": list("今天很好"), "times": [0.1, 0.3, 0.6, 0.9], "start": 0, "end": 1}
    program = f"""
        for (let i = 0; i < 3; i++) line({json.dumps(segment)});
        const stops = () => spans.map(({{span}}) => span.tabIndex);
        const press = key => $("text").onkeydown({{key, target: document.focused, preventDefault() {{}}}});
        const all = [stops()];
        document.focused = spans[0].span;
        for (const key of ["ArrowRight", "End", "ArrowRight", "ArrowLeft", "Enter"]) {{
            press(key);
            all.push(stops());
        }}
        console.log(JSON.stringify({{all, played: document.played}}));
    """
    found = json.loads(_run(program))
    assert [[i for i, stop in enumerate(stops) if stop == 0] for stops in found["all"]] == [
        [0],
        [1],
        [11],
        [11],
        [10],
        [10],
    ]
    assert found["played"] == 0.6


def test_what_was_spoken_is_a_sound_file_after_stop(tmp_path):
    samples = np.random.default_rng(0).integers(-9000, 9000, 5000).astype(np.int16)
    program = f"""
        const numbers = new Int16Array({json.dumps(samples.tolist())});
        const parts = [new Blob([numbers.slice(0, 1234)]), new Blob([numbers.slice(1234)])];
        wav(parts, 44100).arrayBuffer().then(bytes => require("fs").writeFileSync("a.wav", Buffer.from(bytes)));
    """
    _run(program, folder=tmp_path)
    found, rate = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert rate == 44100
    np.testing.assert_array_equal(found, samples)


def test_a_key_that_live_sound_is_refused_with_is_asked_for_again():
    program = """
        const keys = ["wrong", "right"], sockets = [], stored = {};
        globalThis.prompt = () => keys.shift();
        globalThis.sessionStorage = {
          getItem: name => stored[name] ?? null, setItem: (name, value) => { stored[name] = value; },
          removeItem: name => { delete stored[name]; },
        };
        navigator.mediaDevices = {getUserMedia: async () => ({getTracks: () => []})};
        globalThis.AudioContext = class {
          sampleRate = 16000; audioWorklet = {addModule: async () => {}};
          createMediaStreamSource() { return {connect() {}}; } close() {}
        };
        globalThis.AudioWorkletNode = class { port = {}; };
        globalThis.WebSocket = class {
          static OPEN = 1;
          constructor(address) { this.address = address; sockets.push(this); }
        };
        URL.createObjectURL = () => "blob:";
        const speak = async () => {
          await start();
          const socket = sockets.at(-1);
          if (socket.address.searchParams.get("api_key") === "right") socket.onopen();
          socket.onerror();
          socket.onclose();
          console.log(socket.address.searchParams.get("api_key"), "|", $("error").textContent);
        };
        setTimeout(() => { needsKey = true; speak().then(speak); }, 20);
    """
    refused, lost = _run(program).splitlines()
    assert refused.startswith("wrong |") and "API key" in refused
    assert lost == "right | The connection to the server was lost."
