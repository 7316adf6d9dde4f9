#!/usr/bin/env python3
"""Write a table of toned pinyin (yi1 xia4) in the tokens of a model (y ī x ià), and a folder with these tokens.

./pinyin_units.py MANIFEST TOKENS OUTPUT

The manifest is tab-separated, with the columns path, split, pinyin. OUTPUT gets table.tsv and lang/tokens.txt. Rows
with a unit that the model lacks are left out of train, and reported.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

try:
    from pypinyin.contrib.tone_convert import to_finals_tone, to_initials, tone3_to_tone

    from stateless_transducer.text.tokens import TokenTable
except ModuleNotFoundError as err:
    sys.exit(
        f"{Path(__file__).name}: error: {err}. Activate the environment in which stateless-transducer is installed, "
        "with the extra demo."
    )


def units(pinyin: str) -> list[str]:
    """Split syllables into initials and toned finals."""
    marked = [tone3_to_tone(syllable) for syllable in pinyin.split()]
    parts = [part for each in marked for part in (to_initials(each, strict=False), to_finals_tone(each, strict=False))]
    return [part for part in parts if part]


def main(manifest: Path, tokens: Path, output: Path) -> None:
    table = TokenTable(TokenTable.read(tokens).symbols, "word")
    table.write(output / "lang")
    lacking = []
    with manifest.open(encoding="utf-8", newline="") as source, (output / "table.tsv").open("w", newline="") as target:
        writer = csv.writer(target, delimiter="\t", lineterminator="\n")
        writer.writerow(["id", "path", "split", "text"])
        for row in csv.DictReader(source, delimiter="\t"):
            path = (manifest.parent / row["path"]).resolve()
            if not path.is_file():
                # held back
                continue
            text = " ".join(units(row["pinyin"]))
            if row["split"] == "train" and table.unknown_units(text):
                lacking.append(f"{row['pinyin']} ({', '.join(table.unknown_units(text))})")
                continue
            writer.writerow([path.stem, path, row["split"], text])
    if lacking:
        print(f"left out of train, for units that the model lacks: {'; '.join(lacking)}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
