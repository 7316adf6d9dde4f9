"""The text of documents, docstrings, comments, messages and options is plain American English.

The list holds only phrases that are wrong wherever they occur, so that no file needs an exception.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "egs/**/*.md") for path in ROOT.glob(pattern)
)
SOURCES = sorted((ROOT / "stateless_transducer").rglob("*.py"))

_PER = "line|frame|sound|batch|file|token|utterance|process|cell|second|hypothesis|row|word|sentence|letter|segment"
PHRASES = {
    r"nobody|somebody|whoever|those who|who (?:has|have|wants?|comes?|sends?|works?)": "the user, the client, no one",
    r"for want of": "without",
    r"go(?:es|ing)? on with|went on with|goes on": "resume, continue",
    r"(?:begun|begin|begins) from": "initialized from, start",
    r"before (?:and|or) behind|behind (?:the|its) (?:last|first|end)|behind (?:each|it|them|those)": "after",
    rf"(?:one|two|three|numbers|symbols?|tokens?|hypotheses|scores) an? (?:{_PER})": "per",
    r"(?:that|which|what) (?:is|are) there|there is to|are there, too": "exist, is supported",
    r"of like (?:length|size)": "of similar length",
    r"foreseen|forsee": "predicted",
    r"(?:is|are|be) told|tells? (?:of|whether)|hears? (?:of|nothing|little)": "report, detect",
    r"to speak of": "negligible",
    r"wants? (?:trying|to be)": "must be",
    r"thrown away|in the meantime": "discarded, while queued",
    r"learnt|spelt|whilst|amongst": "American spelling",
    r"(?:recogni|normali|quanti|initiali|optimi|summari|minimi|maximi|organi|synthesi|tokeni|seriali|speciali)"
    r"s(?:e[sdr]?|ing|ation|able)": "American spelling: -ize",
    r"(?:behavi|col|fav|neighb|hon|lab)our\w*|licence[sd]?|centre[sd]?|grey|analyse[sdr]?|catalogue|artefacts?|"
    r"modell(?:ed|ing)|labell(?:ed|ing)|travell(?:ed|ing)|programmes?": "American spelling",
}
OPENINGS = r"(?:Of (?:the|an?|all|each|what)|That|Who|Whose|Where|How)\b"
"""Words with which no docstring begins: it begins with an imperative or a noun."""


def _code_removed(text: str) -> str:
    """Replace code by blanks, so that lines keep their numbers."""
    text = re.sub(r"^( *)```.*?^ *```", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"``.*?``|`[^`\n]*`|\]\([^)]*\)", " ", text)


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    """Docstrings, descriptions of options, messages and comments of a source file, with their lines."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


def _docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Docstrings and descriptions of fields: strings that are statements."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


PATTERNS = [(re.compile(rf"\b(?:{phrase})\b", re.IGNORECASE), better) for phrase, better in PHRASES.items()]


def _findings(line: int, text: str) -> Iterator[str]:
    one_line = re.sub(r"\s", " ", text)
    for pattern, better in PATTERNS:
        for match in pattern.finditer(one_line):
            yield f"{line + text.count(chr(10), 0, match.start())}: {match[0]!r}: {better}"


def test_documents_hold_no_banned_phrase():
    assert len(DOCUMENTS) > 15
    found = [
        f"{path.relative_to(ROOT)}:{finding}"
        for path in DOCUMENTS
        for finding in _findings(1, _code_removed(path.read_text(encoding="utf-8")))
    ]
    assert not found, "\n".join(found)


def test_sources_hold_no_banned_phrase():
    assert len(SOURCES) > 100
    found = [
        f"{path.relative_to(ROOT)}:{finding}"
        for path in SOURCES
        for line, text in _texts(path)
        for finding in _findings(line, _code_removed(text))
    ]
    assert not found, "\n".join(found)


def test_docstrings_begin_with_a_verb_or_a_noun():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text[:60]!r}"
        for path in SOURCES
        for line, text in _docstrings(path)
        if re.match(OPENINGS, text)
    ]
    assert not found, "\n".join(found)
