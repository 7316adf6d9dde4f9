#!/usr/bin/env python3
"""Copy the recordings of a table at 8 kHz, the rate of the digits.

    ./narrow_band.py manifest.tsv FOLDER

``manifest.tsv`` has columns id, path and others. Writes FOLDER/wav/<id>.wav and FOLDER/table.tsv, with the other
columns as they are, for ``transducer prepare table``. A file that exists is kept.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

try:
    import soundfile
    from make_noise import RATE

    from stateless_transducer.audio import AudioError, read_audio
    from stateless_transducer.files import replacing
    from stateless_transducer.wording import counted
except ModuleNotFoundError as err:
    sys.exit(
        f"{Path(__file__).name}: error: {err}. Activate the environment in which stateless-transducer is installed."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="table of recordings, with columns id and path")
    parser.add_argument("folder", type=Path, help="folder to write")
    arguments = parser.parse_args()
    try:
        count = copy_all(arguments.table, arguments.folder)
    except (AudioError, OSError, ValueError) as err:
        print(f"narrow_band.py: error: {err}", file=sys.stderr)
        return 1
    print(f"{arguments.folder}/table.tsv: {counted(count, 'utterance')}")
    return 0


def copy_all(table: Path, folder: Path) -> int:
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    missing = [name for name in ("id", "path") if not rows or name not in rows[0]]
    if missing:
        raise ValueError(f"{table} must have rows with the column `{missing[0]}`")
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    for row in rows:
        source, name = table.parent / row["path"], f"wav/{row['id']}.wav"
        if not (folder / name).exists():
            with replacing(folder / name) as temporary:
                soundfile.write(temporary, read_audio(source, RATE), RATE, subtype="PCM_16", format="WAV")
        row["path"] = name
    with replacing(folder / "table.tsv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


if __name__ == "__main__":
    sys.exit(main())
