#!/usr/bin/env python3
"""What the demo has never heard: somebody who whispers, about journeys, in words of which most are new to it.

    ./say.py --output-dir travel --minutes 5 --num-test 100

Writes ``<output-dir>/wav/<id>.wav`` and ``<output-dir>/table.tsv`` (train: so many minutes; test: other sentences) for
``transducer prepare table``. Needs espeak-ng: pip install 'stateless-transducer[demo]'.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from pathlib import Path

try:
    import numpy as np
    import soundfile

    from stateless_transducer.audio import resample
    from stateless_transducer.data.corpora.espeak import Espeak, Voice
except ModuleNotFoundError as err:
    sys.exit(
        f"{Path(__file__).name}: error: {err}. Activate the environment in which stateless-transducer is installed."
    )

SAMPLE_RATE = 16000
CITIES = "北京 上海 天津 重庆 广州 深圳 成都 杭州 武汉 西安 南京 苏州 青岛 大连 厦门 昆明 长沙 沈阳 郑州 哈尔滨".split()
SENTENCES = (
    "我想买一张从{}到{}的火车票",
    "请问去{}的航班几点起飞",
    "帮我预订{}机场附近的酒店",
    "从{}坐高铁到{}要多长时间",
    "下一站是{}请带好您的行李",
    "{}和{}之间有直达的列车吗",
    "我的护照忘在{}的宾馆里了",
    "麻烦送我去{}火车站",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5, help="of speech to train on (default: %(default)g)")
    parser.add_argument("--num-test", type=int, default=100, help="sentences to test with (default: %(default)s)")
    parser.add_argument("--variant", default="whisper", help="espeak-ng's voice variant (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    try:
        rows = list(speak(arguments))
    except (OSError, ValueError) as err:
        print(f"say.py: error: {err}", file=sys.stderr)
        return 1
    with (arguments.output_dir / "table.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(("id", "path", "speaker", "split", "text"))
        writer.writerows(rows)
    print(f"{arguments.output_dir}/table.tsv: {len(rows)} sentences")
    return 0


def speak(arguments: argparse.Namespace):
    """Rows of the table: first the test sentences, then others to train on until there are enough minutes."""
    random = np.random.default_rng(arguments.seed)
    espeak, voice = Espeak(), Voice(arguments.variant, pitch=50, pitch_range=50, rate=230)
    folder = arguments.output_dir / "wav"
    folder.mkdir(parents=True, exist_ok=True)
    seconds, said = 0.0, set[str]()
    for number in itertools.count():
        text = draw(random, said)
        split = "test" if number < arguments.num_test else "train"
        if split == "train" and seconds >= arguments.minutes * 60:
            return
        raw = espeak.say(text, voice).astype(np.float32) / 32768
        samples = resample(raw, espeak.sample_rate, SAMPLE_RATE)
        samples *= 0.3 / max(np.abs(samples).max(), 1e-3)
        samples += random.normal(0, 1e-3, len(samples))
        seconds += len(samples) / SAMPLE_RATE if split == "train" else 0
        id_ = f"{arguments.variant}-{number:04d}"
        soundfile.write(folder / f"{id_}.wav", samples, SAMPLE_RATE, subtype="PCM_16")
        yield id_, f"wav/{id_}.wav", arguments.variant, split, text


def draw(random: np.random.Generator, said: set[str]) -> str:
    """A sentence that nobody has said yet; it is said now."""
    while True:
        form = SENTENCES[random.integers(len(SENTENCES))]
        text = form.format(*random.choice(CITIES, form.count("{}"), replace=False))
        if text not in said:
            said.add(text)
            return text


if __name__ == "__main__":
    sys.exit(main())
