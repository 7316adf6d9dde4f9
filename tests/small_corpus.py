"""A prepared corpus of made-up features, and the options to train a tiny model on it."""

from __future__ import annotations

from pathlib import Path

import torch
from lhotse import CutSet, MonoCut, NumpyFilesWriter, SupervisionSegment
from lhotse.features import Features

from stateless_transducer.text.tokens import build_token_table

TOKENS = build_token_table(["abcdefgh"], "char")

TINY = (
    "--num-layers 1 --attention-dim 16 --num-heads 2 --feedforward-dim 16 --conv-kernel 3 --subsampling-channels 4 "
    "--joiner-dim 16 --num-buckets 2 --min-utterance-s 0.3 --num-workers 0 --tensorboard false --log-interval 1 "
    "--enable-musan false --spec-aug-time-warp-factor 0 --optimizer adamw --warm-step 4"
).split()


def make_cut(folder: Path, id_: str, seconds: float, text: str, frames: torch.Tensor | None = None) -> MonoCut:
    """A cut with stored features: noise, or what is given."""
    values = (torch.randn(round(seconds * 100), 80) if frames is None else frames).numpy()
    writer = NumpyFilesWriter(folder)
    features = Features(
        type="test",
        num_frames=len(values),
        num_features=80,
        frame_shift=0.01,
        sampling_rate=16000,
        start=0.0,
        duration=seconds,
        storage_type=writer.name,
        storage_path=writer.storage_path,
        storage_key=writer.write(id_, values),
        recording_id=id_,
        channels=0,
    )
    said = SupervisionSegment(id=id_, recording_id=id_, start=0.0, duration=seconds, text=text)
    return MonoCut(id=id_, start=0.0, duration=seconds, channel=0, supervisions=[said], features=features)


def write_small_corpus(folder: Path, *, count: int = 24) -> list[str]:
    """Cuts ``aishell_cuts_{train,dev}.jsonl.gz`` and tokens; the options of ``transducer train`` that name them."""
    generator = torch.Generator().manual_seed(5)
    for split, number in (("train", count), ("dev", 4)):
        cuts = []
        for n in range(number):
            tokens = torch.randint(0, 8, (1 + n % 5,), generator=generator).tolist()
            seconds = 0.6 + 0.05 * (n % 12)
            frames = torch.randn(round(seconds * 100), 80, generator=generator)
            cuts.append(
                make_cut(folder / "feats", f"{split}{n:02d}", seconds, "".join("abcdefgh"[i] for i in tokens), frames)
            )
        CutSet.from_cuts(cuts).to_file(folder / f"aishell_cuts_{split}.jsonl.gz")
    TOKENS.write(folder / "lang")
    return ["--manifest-dir", str(folder), "--lang-dir", str(folder / "lang"), *TINY]
