#!/usr/bin/env python3
"""Streaming with causal models: latency, error rate and delay of tokens by chunk length, and speed by streams.

    python benchmarks/streaming.py plain=a.pt penalty=b.pt --reference offline.pt --manifest-dir demo/data/fbank
    python benchmarks/streaming.py model=a.pt ... --graphs exported/ --sounds folder --streams 1 8 32 --threads 2

Accuracy: greedy search on a prepared test set, with each chunk length and with whole utterances. The delay of a token
is from the frame where the reference, a model that hears whole utterances, most likely says it (our alignment over all
paths), to the frame on which the causal model says it, for tokens that both recognize. Whoever listens waits for the
rest of the chunk as well, at most for the latency in the table.

Speed: the given number of streams advance together, each with all of its sound from the start. The real-time factor is
the time per second of sound of a stream times the number of streams: 32 streams are live at a factor below 1. Graphs of
one model run in sherpa-onnx as well, if it is installed; both must say the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import kaldialign
import numpy as np
import soundfile
import torch
from about import about, print_about

from stateless_transducer import StreamingRecognizer
from stateless_transducer.checkpoint import load_checkpoint
from stateless_transducer.data.batches import Batch, evaluation_batches, load_index
from stateless_transducer.data.config import DataConfig
from stateless_transducer.decoding.alignment import align
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.decoding.hypothesis import Hypothesis
from stateless_transducer.decoding.search import decode_features
from stateless_transducer.export.onnx_graph import find_graph
from stateless_transducer.features import FbankConfig, samples_until
from stateless_transducer.model.chunks import WHOLE, chunks_of_ms
from stateless_transducer.model.encoder import CausalEncoder
from stateless_transducer.model.frozen import FrozenTransducer
from stateless_transducer.model.transducer import Transducer, build_model
from stateless_transducer.text.scoring import ScoredUtterance, score, units
from stateless_transducer.text.tokens import TokenTable, tidied

GREEDY = SearchConfig("greedy_search")
RATE = 16000


@dataclass(frozen=True)
class Model:
    """A checkpoint, ready for evaluation."""

    transducer: Transducer
    tokens: TokenTable
    fbank_config: FbankConfig

    @classmethod
    def open(cls, path: Path) -> Model:
        """Read a checkpoint."""
        checkpoint = load_checkpoint(path)
        transducer = build_model(checkpoint.model_config).eval()
        transducer.load_state_dict(dict(checkpoint.weights))
        return cls(transducer, checkpoint.token_table, checkpoint.fbank_config)

    @property
    def frame_ms(self) -> float:
        """Milliseconds of an encoder frame."""
        return self.transducer.subsampling.factor * self.fbank_config.frame_shift_ms

    def results(self, batches: Sequence[Batch], *, aligned: bool = False) -> Iterator[tuple[str, str, Hypothesis]]:
        """Yield id, transcript and hypothesis of each utterance; aligned: with the frames of our alignment."""
        model = FrozenTransducer(self.transducer)
        for batch in batches:
            hypotheses = decode_features(model, batch.features, batch.feature_lens, GREEDY)
            if aligned:
                encoder_out, lens = model.encode(batch.features, batch.feature_lens)
                times = align(model, encoder_out, lens, hypotheses)
                hypotheses = [
                    Hypothesis(h.tokens, alignment.frames, h.log_probs)
                    for h, alignment in zip(hypotheses, times, strict=True)
                ]
            yield from zip(batch.ids, batch.texts, hypotheses, strict=True)


def delays_ms(hypothesis: Hypothesis, reference: Hypothesis, frame_ms: float) -> list[float]:
    """Return the delays of the tokens that two hypotheses share."""
    gap = -1
    pairs = kaldialign.align(list(reference.tokens), list(hypothesis.tokens), gap)
    delays, frames, reference_frames = [], iter(hypothesis.frames), iter(reference.frames)
    for reference_token, token in pairs:
        t_reference = next(reference_frames) if reference_token != gap else None
        t = next(frames) if token != gap else None
        if token == reference_token and t is not None and t_reference is not None:
            delays.append((t - t_reference) * frame_ms)
    return delays


def measure_accuracy(arguments: argparse.Namespace, models: dict[str, Model]) -> None:
    """Print error rates and delays of tokens."""
    index = load_index(arguments.manifest_dir, arguments.prefix, arguments.test_set)
    data = DataConfig(manifest_dir=arguments.manifest_dir, max_duration=60.0, num_workers=0)
    teacher = Model.open(arguments.reference)
    batches = list(evaluation_batches(index, teacher.tokens, data))
    reference = {id_: hypothesis for id_, _, hypothesis in teacher.results(batches, aligned=True)}
    print("| model | chunk, ms | latency, ms | errors % | delay, ms: median | 90th percentile |")
    print("|---|---|---|---|---|---|")
    for name, model in models.items():
        encoder = model.transducer.encoder
        assert isinstance(encoder, CausalEncoder)
        for chunk_ms in [*arguments.chunk_ms, None]:
            chunks = WHOLE
            if chunk_ms is not None:
                chunks = chunks_of_ms(chunk_ms, arguments.left_ms, factor=encoder.chunk_factor)
            encoder.use_chunks(*chunks)
            results = list(model.results(batches))
            delays = [
                delay
                for id_, _, hypothesis in results
                for delay in delays_ms(hypothesis, reference[id_], model.frame_ms)
            ]
            scored = (
                ScoredUtterance(
                    id_, units(tidied(text), "char"), units(tidied(model.tokens.decode(hypothesis.tokens)), "char")
                )
                for id_, text, hypothesis in results
            )
            # a model at the beginning of its training emits no tokens
            median, ninetieth = np.percentile(delays or [np.nan], [50, 90])
            length, latency = "whole", "the sound"
            if chunk_ms is not None:
                num_samples = samples_until(encoder.chunk_frames, model.fbank_config)
                length, latency = str(chunk_ms), f"{1000 * num_samples / model.fbank_config.sample_rate:.0f}"
            print(
                f"| {name} | {length} | {latency} | {score(scored).error_rate:.2f} | {median:.0f} | {ninetieth:.0f} |",
                flush=True,
            )


def our_recognizer(path: Path, arguments: argparse.Namespace):
    """Return a function of waves that gives texts of `StreamingRecognizer`."""
    chunks = {"chunk_ms": arguments.speed_chunk_ms, "left_ms": arguments.left_ms} if path.is_file() else {}
    recognizer = StreamingRecognizer.from_pretrained(
        path, GREEDY, num_threads=arguments.threads, device="cpu", **chunks
    )

    def recognize(waves: Sequence[np.ndarray]) -> list[str]:
        streams = [recognizer.create_stream() for _ in waves]
        for stream, wave in zip(streams, waves, strict=True):
            stream.accept(wave, RATE)
            stream.finish()
        while recognizer.advance(streams):
            pass
        return [stream.result.text for stream in streams]

    return recognize


def sherpa_recognizer(folder: Path, arguments: argparse.Namespace):
    """Return a function of waves that gives texts of sherpa-onnx."""
    import sherpa_onnx

    encoder, decoder, joiner = (
        str(find_graph(folder, role, prefer_int8=False)) for role in ("encoder", "decoder", "joiner")
    )
    recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
        str(folder / "tokens.txt"), encoder, decoder, joiner, num_threads=arguments.threads
    )
    # as much silence as `Stream.finish` needs for the last chunk of any model
    silence = np.zeros(2 * RATE, np.float32)

    def recognize(waves: Sequence[np.ndarray]) -> list[str]:
        streams = [recognizer.create_stream() for _ in waves]
        for stream, wave in zip(streams, waves, strict=True):
            stream.accept_waveform(RATE, wave)
            stream.accept_waveform(RATE, silence)
            stream.input_finished()
        while ready := [stream for stream in streams if recognizer.is_ready(stream)]:
            recognizer.decode_streams(ready)
        return [recognizer.get_result(stream) for stream in streams]

    return recognize


def measure_speed(arguments: argparse.Namespace, paths: dict[str, Path]) -> None:
    """Print real-time factors."""
    contestants = {name: our_recognizer(path, arguments) for name, path in paths.items()}
    if arguments.graphs is not None:
        contestants["graphs"] = our_recognizer(arguments.graphs, arguments)
        contestants["graphs in sherpa-onnx"] = sherpa_recognizer(arguments.graphs, arguments)
    sounds = [soundfile.read(path, dtype="float32") for path in sorted(arguments.sounds.glob("**/*.wav"))]
    if not sounds or any(rate != RATE for _, rate in sounds):
        raise SystemExit(f"`--sounds` needs wav files of {RATE} Hz.")
    print("| streams | model | real-time factor, wall | CPU | spread |\n|---|---|---|---|---|")
    for num_streams in arguments.streams:
        # the same length for all, so that they stay together to the end
        joined = np.concatenate([wave for wave, _ in sounds[:20]])
        length = int(arguments.seconds * RATE)
        waves = [np.resize(np.roll(joined, -n * length // 4), length) for n in range(num_streams)]
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
        texts: dict[str, list[str]] = {}
        for _ in range(arguments.repeats):
            for name, recognize in contestants.items():
                wall, cpu = time.perf_counter(), time.process_time()
                texts[name] = recognize(waves)
                speech_s = arguments.seconds * num_streams
                runs[name].append(((time.perf_counter() - wall) / speech_s, (time.process_time() - cpu) / speech_s))
        if arguments.graphs is not None and texts["graphs"] != texts["graphs in sherpa-onnx"]:
            print("The texts of the graphs differ here and in sherpa-onnx.")
        for name, factors in runs.items():
            walls, cpus = zip(*factors, strict=True)
            factor = statistics.median(walls) * num_streams
            print(
                f"| {num_streams} | {name} | {factor:.3f} | {statistics.median(cpus) * num_streams:.3f} "
                f"| {min(walls) * num_streams:.3f} to {max(walls) * num_streams:.3f} |",
                flush=True,
            )


def _name_and_path(word: str) -> tuple[str, Path]:
    name, is_named, path = word.partition("=")
    return (name, Path(path)) if is_named else (Path(word).stem, Path(word))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=_name_and_path, nargs="+", help="name=checkpoint")
    parser.add_argument("--reference", type=Path, help="checkpoint of a model of whole utterances; accuracy")
    parser.add_argument("--manifest-dir", type=Path)
    parser.add_argument("--prefix", default="aishell")
    parser.add_argument("--test-set", default="test")
    parser.add_argument("--chunk-ms", type=int, nargs="+", default=[160, 320, 640, 1280])
    parser.add_argument("--left-ms", type=int, default=2560)
    parser.add_argument("--sounds", type=Path, help="folder of wav files; speed")
    parser.add_argument("--graphs", type=Path, help="folder of streaming graphs of a model")
    parser.add_argument("--speed-chunk-ms", type=int, default=320)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each stream")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print_about(about(threads=arguments.threads))
    torch.set_num_threads(arguments.threads)
    paths = dict(arguments.models)
    if arguments.reference is not None:
        measure_accuracy(arguments, {name: Model.open(path) for name, path in paths.items()})
        print()
    if arguments.sounds is not None:
        measure_speed(arguments, paths)


if __name__ == "__main__":
    main()
