"""Sentences of text files, for language models and tokens."""

from __future__ import annotations

import gzip
import io
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path

from stateless_transducer.files import check_file, parse_json


def read_sentences(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 text, or the ``text`` of each object in a .jsonl file; either may be .gz.

    Sentences are composed (NFC), as training texts are. Empty ones are skipped.

    Raises:
        ValueError: the file is missing, damaged or not UTF-8, or an object has no ``text``.
    """
    check_file(path)
    read = _text_of if ".jsonl" in path.suffixes[-2:] else str.strip
    place = str(path)
    try:
        opened = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
        with opened as packed, io.TextIOWrapper(packed, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                place = f"{path}:{number}"
                if line.strip() and (sentence := read(line)):
                    yield unicodedata.normalize("NFC", sentence)
    except UnicodeDecodeError as err:
        raise ValueError(f"{path} is not UTF-8 ({err}).") from err
    except (ValueError, KeyError, TypeError) as err:
        raise ValueError(f'{place}: not an object with a "text".') from err
    except (OSError, EOFError, zlib.error) as err:
        raise ValueError(f"{path}: cannot be read: {err}") from err


def _text_of(line: str) -> str:
    text = parse_json(line)["text"]
    if not isinstance(text, str):
        raise TypeError
    return text.strip()
