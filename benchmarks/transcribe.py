#!/usr/bin/env python3
"""Speed, memory and start-up of transcription with torch, ONNX graphs and sherpa-onnx.

    python benchmarks/transcribe.py [--threads 2] [--repeats 3] [--seconds 120] [--output results/mine.json]
    python benchmarks/transcribe.py --checkpoint model.pt --wavs folder

Without a checkpoint, the model has the full sizes and random weights, sharpened until about every eighth frame says a
symbol, and the sounds are noise of 2 to 10 s. All have the same model, files and threads; each run is a process of its
own, they take turns, and medians are printed. The gate: ours with torch, ours with ONNX and sherpa-onnx must say the
same in fp32. CPU is seconds of all threads a second of sound, which a busy machine disturbs less than the wall clock.
"alone" gives one file at a time, "batched" all at once: ours makes batches itself, sherpa-onnx gets 8 files of like
length.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from about import about, print_about

BATCH = 8
CONTESTANTS = ("torch fp32", "torch bf16", "onnx fp32", "onnx int8", "sherpa fp32", "sherpa int8")


def prepare(folder: Path, arguments: argparse.Namespace) -> list[Path]:
    """Write model.pt, onnx/ and sounds into a folder; return the sounds."""
    from stateless_transducer.checkpoint import save_checkpoint
    from stateless_transducer.cli import main as transducer

    if arguments.checkpoint is None:
        save_checkpoint(folder / "model.pt", random_checkpoint())
    else:
        shutil.copy(arguments.checkpoint, folder / "model.pt")
    flags = ["--model", str(folder / "model.pt"), "--output", str(folder / "onnx"), "--int8", "true"]
    if transducer(["export", "onnx", *flags]):
        sys.exit("The export failed.")
    return sorted(arguments.wavs.glob("*.wav")) if arguments.wavs else write_noise(folder, arguments.seconds)


def random_checkpoint():
    """Return the full model with random weights and a blank bias that yields a realistic number of tokens."""
    import numpy as np
    import torch

    from stateless_transducer.checkpoint import Checkpoint
    from stateless_transducer.features import FbankConfig, fbank
    from stateless_transducer.model.config import ModelConfig
    from stateless_transducer.model.transducer import build_model
    from stateless_transducer.text.tokens import SPECIAL, TokenTable

    torch.manual_seed(0)
    sizes = ModelConfig(vocab_size=4336)
    table = TokenTable((*SPECIAL, *(chr(0x4E00 + i) for i in range(sizes.vocab_size - len(SPECIAL)))))
    model = build_model(sizes).eval()
    noise = np.random.default_rng(0).standard_normal(16000 * 8).astype(np.float32)
    features = torch.from_numpy(fbank(0.1 * noise, FbankConfig()))
    with torch.inference_mode():
        model.joiner.output_linear.weight *= 8
        # sherpa-onnx never emits <unk>; the end-of-sentence token is never emitted
        model.joiner.output_linear.bias[1:3] -= 100
        encoder_out, _ = model.encode(features[None], torch.tensor([len(features)]))
        logits = model.join(encoder_out[0], model.predict(torch.zeros(1, 2, dtype=torch.int64)))
        lead = logits[:, 1:].max(1).values - logits[:, 0]
        model.joiner.output_linear.bias[0] += lead.quantile(7 / 8)
    return Checkpoint(model.state_dict(), sizes, FbankConfig(), table, {"command": "benchmarks/transcribe.py"})


def write_noise(folder: Path, seconds: float) -> list[Path]:
    """Write sound files of 2 to 10 s."""
    import numpy as np
    import soundfile

    random, paths, left = np.random.default_rng(1), [], seconds
    while left > 0:
        length = float(random.uniform(2, 10))
        paths.append(folder / f"{len(paths):03d}.wav")
        soundfile.write(paths[-1], (0.1 * random.standard_normal(round(16000 * length))).clip(-1, 1), 16000)
        left -= length
    return paths


def work(who: str, mode: str, folder: Path, threads: int, spawned: float, paths: list[Path]) -> None:
    """Run once in this process and print the figures."""
    kind, precision = who.split()
    transcribe = sherpas(folder, precision, threads) if kind == "sherpa" else ours(folder, kind, precision, threads)
    ready = time.time()
    transcribe(paths[:1], "alone")
    started, cpu = time.perf_counter(), time.process_time()
    texts = transcribe(paths, mode)
    figures = {
        "wall_s": time.perf_counter() - started,
        "cpu_s": time.process_time() - cpu,
        "start_s": ready - spawned,
        "peak_mb": peak_mb(),
        "texts": texts,
    }
    print(json.dumps(figures))


def peak_mb() -> float:
    """Return the peak memory of this process; getrusage gives at least that of the parent."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def ours(folder: Path, kind: str, precision: str, threads: int):
    """Return a function of (paths, mode) that gives texts."""
    if kind == "torch":
        import torch

        torch.set_num_threads(threads)
    from stateless_transducer import DetailConfig, Recognizer

    path = folder / ("model.pt" if kind == "torch" else "onnx")
    # text and the frame of each token, as in sherpa-onnx; no ends and confidences, which need another pass
    details = DetailConfig(align=False)
    recognizer = Recognizer.from_pretrained(path, precision=precision, num_threads=threads, details=details)  # pyright: ignore

    def transcribe(paths: list[Path], mode: str) -> list[str]:
        if mode == "alone":
            return [recognizer.transcribe([path])[0].text for path in paths]
        return [found.text for found in recognizer.transcribe(paths)]

    return transcribe


def sherpas(folder: Path, precision: str, threads: int):
    """Return a function of (paths, mode) that gives texts of sherpa-onnx."""
    import sherpa_onnx
    import soundfile

    suffix = ".int8.onnx" if precision == "int8" else ".onnx"
    recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(
        **{role: str(folder / "onnx" / f"{role}{suffix}") for role in ("encoder", "decoder", "joiner")},
        tokens=str(folder / "onnx" / "tokens.txt"),
        num_threads=threads,
    )

    def transcribe(paths: list[Path], mode: str) -> list[str]:
        by_length = sorted(paths, key=lambda path: path.stat().st_size) if mode == "batched" else paths
        size, texts = BATCH if mode == "batched" else 1, {}
        for i in range(0, len(by_length), size):
            batch = by_length[i : i + size]
            streams = [recognizer.create_stream() for _ in batch]
            for stream, path in zip(streams, batch, strict=True):
                samples, sample_rate = soundfile.read(path, dtype="float32")
                stream.accept_waveform(sample_rate, samples)
            recognizer.decode_streams(streams)
            texts.update({path: stream.result.text for path, stream in zip(batch, streams, strict=True)})
        return [texts[path] for path in paths]

    return transcribe


def run(who: str, mode: str, folder: Path, arguments: argparse.Namespace, paths: list[Path]) -> dict:
    """Run once in a new process."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    command = [sys.executable, __file__, "--work", who, mode, str(folder), str(arguments.threads), str(time.time())]
    done = subprocess.run([*command, *map(str, paths)], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{who} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(arguments: argparse.Namespace, folder: Path, paths: list[Path], seconds: float) -> list[dict]:
    """Print rows of the table."""
    runs: dict[tuple[str, str], list[dict]] = {}
    for repeat in range(arguments.repeats):
        for mode in ("alone", "batched"):
            for who in arguments.contestants:
                found = run(who, mode, folder, arguments, paths)
                runs.setdefault((mode, who), []).append(found)
                print(f"{repeat} {mode} {who}: {found['wall_s'] / seconds:.4f}", file=sys.stderr, flush=True)
    check(runs)
    rows = []
    for (mode, who), own in runs.items():
        wall, cpu = ([each[name] for each in own] for name in ("wall_s", "cpu_s"))
        beside = runs.get((mode, f"sherpa {'int8' if who.endswith('int8') else 'fp32'}"), own)
        rows.append(
            {
                "mode": mode,
                "who": who,
                "real_time_factor": statistics.median(wall) / seconds,
                "spread": [min(wall) / seconds, max(wall) / seconds],
                "cpu_factor": statistics.median(cpu) / seconds,
                "to_sherpa": statistics.median(a["wall_s"] / b["wall_s"] for a, b in zip(own, beside, strict=True)),
                "cpu_to_sherpa": statistics.median(a["cpu_s"] / b["cpu_s"] for a, b in zip(own, beside, strict=True)),
                "start_s": statistics.median(each["start_s"] for each in own),
                "peak_mb": statistics.median(each["peak_mb"] for each in own),
                "characters": sum(map(len, own[0]["texts"])),
            }
        )
    return rows


def check(runs: dict[tuple[str, str], list[dict]]) -> None:
    """Exit unless all fp32 implementations give the same texts."""
    exact = {key: own[0]["texts"] for key, own in runs.items() if key[1].endswith("fp32")}
    wanted = next(iter(exact.values()))
    for key, texts in exact.items():
        unlike = sum(a != b for a, b in zip(texts, wanted, strict=True))
        if unlike:
            sys.exit(f"Gate: {key} says {unlike} of {len(wanted)} otherwise than {next(iter(exact))}.")


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        who, mode, folder, threads, spawned, *paths = sys.argv[2:]
        work(who, mode, Path(folder), int(threads), float(spawned), [Path(path) for path in paths])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--wavs", type=Path, help="folder with .wav files")
    parser.add_argument("--seconds", type=float, default=120.0, help="of noise, without --wavs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--contestants", nargs="+", default=CONTESTANTS, choices=CONTESTANTS)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    import onnxruntime
    import sherpa_onnx
    import soundfile

    facts = about(onnxruntime=onnxruntime.__version__, sherpa_onnx=sherpa_onnx.__version__, threads=arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        paths = prepare(Path(temporary), arguments)
        seconds = sum(soundfile.info(path).duration for path in paths)
        facts |= {"files": len(paths), "seconds": round(seconds, 1)}
        rows = measure(arguments, Path(temporary), paths, seconds)
    print_about(facts)
    print("| mode | who | real-time factor | spread | CPU | to sherpa-onnx, wall / CPU | start, s | peak, MB |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        low, high = row["spread"]
        print(
            f"| {row['mode']} | {row['who']} | {row['real_time_factor']:.4f} | {low:.4f}..{high:.4f} "
            f"| {row['cpu_factor']:.4f} | {row['to_sherpa']:.2f} / {row['cpu_to_sherpa']:.2f} "
            f"| {row['start_s']:.2f} | {row['peak_mb']:.0f} |"
        )
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
