#!/usr/bin/env python3
"""Write a table of toned pinyin (yi1 xia4) in the tokens of a model (y ī x ià), and a folder with these tokens.

The manifest is tab-separated, with the columns path, split, pinyin. The output folder gets table.tsv and
lang/tokens.txt. Rows without a sound file, and rows of train with a unit that the model lacks, are left out; the output
of the command names them. The manifest's dev becomes the split test. Some words of train that no other row repeats
become the split dev, on which settings can be chosen.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from pathlib import Path

try:
    from pypinyin.contrib.tone_convert import to_finals_tone, to_initials, tone3_to_tone

    from stateless_transducer.files import replacing
    from stateless_transducer.text.tokens import TokenTable
except ModuleNotFoundError as err:
    sys.exit(
        f"{Path(__file__).name}: error: {err}. Activate the environment in which stateless-transducer is installed, "
        "with the extra demo."
    )

_VALIDATION_PERIOD = 20


def units(pinyin: str) -> list[str]:
    """Split syllables into initials and toned finals."""
    syllables = [tone3_to_tone(syllable) for syllable in pinyin.split()]
    parts = [
        part
        for syllable in syllables
        for part in (to_initials(syllable, strict=False), to_finals_tone(syllable, strict=False))
    ]
    return [part for part in parts if part]


def write_table(manifest: Path, tokens: Path, output: Path) -> int:
    """Write the table and the tokens; return the number of rows."""
    table = TokenTable(TokenTable.read(tokens).symbols, "word")
    table.write(output / "lang")
    rows, num_without_sound, skipped = [], 0, []
    with manifest.open(encoding="utf-8", newline="") as source:
        for row in csv.DictReader(source, delimiter="\t"):
            path = (manifest.parent / row["path"]).resolve()
            text = " ".join(units(row["pinyin"]))
            missing = table.unknown_units(text)
            if not path.is_file():
                num_without_sound += 1
            elif row["split"] == "train" and missing:
                skipped.append(f"{row['pinyin']} ({', '.join(missing)})")
            else:
                rows.append([path.stem, path, row["split"], text])
    with replacing(output / "table.tsv") as temporary, temporary.open("w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target, delimiter="\t", lineterminator="\n")
        writer.writerows([["id", "path", "split", "text"], *_with_validation(rows)])
    print(f"{len(rows)} rows; left out: {num_without_sound} without a sound file")
    if skipped:
        print(f"left out of train, for units that the model lacks: {'; '.join(skipped)}")
    return len(rows)


def _with_validation(rows: list[list]) -> list[list]:
    """Name the split dev test, and move every 20th row of train whose text no other row has to dev."""
    counts = Counter(text for *_, text in rows)
    unique = [id_ for id_, _, split, text in rows if split == "train" and counts[text] == 1]
    validation = set(unique[::_VALIDATION_PERIOD])
    names = {"dev": "test"}
    return [
        [id_, path, "dev" if id_ in validation else names.get(split, split), text] for id_, path, split, text in rows
    ]


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("tokens", type=Path, help="tokens.txt of the model")
    parser.add_argument("output", type=Path, help="folder to write")
    arguments = parser.parse_args()
    try:
        num_rows = write_table(arguments.manifest, arguments.tokens, arguments.output)
    except (OSError, ValueError) as err:
        parser.error(str(err))
    except KeyError as err:
        parser.error(f"{arguments.manifest}: there is no column {err}")
    if not num_rows:
        parser.error(f"{arguments.manifest}: no row has a sound file beside it")


if __name__ == "__main__":
    main()
