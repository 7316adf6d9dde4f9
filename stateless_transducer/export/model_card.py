"""``README.md`` of a published model: front matter that Hugging Face reads, results, training data, use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stateless_transducer.files import parse_json
from stateless_transducer.model_files import STREAMING

if TYPE_CHECKING:
    from stateless_transducer.checkpoint import Checkpoint

MODEL_CARD = "README.md"
_LIBRARY = "stateless-transducer"
"""Name of this project in the front matter of a card."""
_RESULT_KEYS = ("test_set", "metric", "error_rate", "confidence_interval", "method", "utterances")


@dataclass(frozen=True)
class Statements:
    """What only the publisher knows of a model."""

    name: str
    """``owner/name`` of the repository, or the name of the folder."""
    languages: tuple[str, ...]
    """Codes, for example zh."""
    license: str | None = None
    """Identifier of Hugging Face, for example apache-2.0."""
    training_data: str | None = None
    """A sentence about the data."""


def read_result(path: Path) -> dict[str, Any]:
    """Read a ``result-*.json`` of `transducer decode`.

    Raises:
        ValueError: The file does not exist, or is no such file.
    """
    if not path.is_file():
        raise ValueError(f"`results` {path}: no such file; it is a result-*.json of `transducer decode`.")
    try:
        result = parse_json(path.read_bytes())
    except ValueError as err:
        raise ValueError(f"`results` {path} is not JSON: {err}") from err
    lacking = [key for key in _RESULT_KEYS if not isinstance(result, dict) or key not in result]
    if lacking:
        raise ValueError(f"`results` {path} is no result-*.json of `transducer decode`: it lacks `{lacking[0]}`.")
    return result


def check_replaceable(path: Path) -> None:
    """Check that a file, if it exists, is a card that `model_card` wrote.

    Raises:
        ValueError: It is another file, which a card would replace.
    """
    if path.exists() and f'library_name: "{_LIBRARY}"' not in path.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"`output_dir` {path.parent} holds a {path.name} of another origin. Name another folder.")


def model_card(
    checkpoint: Checkpoint,
    statements: Statements,
    results: Sequence[Mapping[str, Any]],
    *,
    has_int8: bool,
    differences: str,
) -> str:
    """Return the text of the card.

    Args:
        checkpoint: The model.
        statements: What its publisher states.
        results: See `read_result`.
        has_int8: Whether the folder has int8 graphs.
        differences: Settings in which the front end differs from that of sherpa-onnx; empty if none.
    """
    num_parameters = sum(weight.numel() for weight in checkpoint.weights.values())
    tokens = checkpoint.token_table
    sections = [
        f"# {statements.name.rpartition('/')[2]}",
        f"A stateless transducer for speech recognition: {checkpoint.model_config.summary}; {num_parameters:,} "
        f"parameters, {len(tokens)} tokens ({tokens.unit}), {checkpoint.fbank_config.sample_rate} Hz.",
    ]
    if results:
        sections += ["## Results", _results_table(results)]
    sections += ["## Training data", statements.training_data or "Not stated."]
    sections += [
        "## Use",
        _here(statements.name, checkpoint, has_int8),
        _in_sherpa_onnx(statements.name, checkpoint, differences),
    ]
    return f"---\n{_front_matter(statements, checkpoint, results)}---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(statements: Statements, checkpoint: Checkpoint, results: Sequence[Mapping[str, Any]]) -> str:
    streaming_tags = ["streaming"] if checkpoint.model_config.is_causal else []
    facts: dict[str, Any] = {
        "language": list(statements.languages),
        "license": statements.license,
        "library_name": _LIBRARY,
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["speech-recognition", "transducer", "onnx", "sherpa-onnx", *streaming_tags],
    }
    if results:
        task = {"type": "automatic-speech-recognition"}
        entries = [
            {
                "task": task,
                "dataset": {"name": result["test_set"], "type": result["test_set"]},
                "metrics": [
                    {"type": str(result["metric"]).lower(), "value": result["error_rate"], "name": _name(result)}
                ],
            }
            for result in results
        ]
        facts["model-index"] = [{"name": statements.name.rpartition("/")[2], "results": entries}]
    # JSON is YAML, with all strings quoted
    lines = (f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in facts.items() if value is not None)
    return "".join(lines)


def _name(result: Mapping[str, Any]) -> str:
    interval = _interval(result)
    return f"{result['metric']} ({result['method']}{f', {interval}' if interval else ''})"


def _interval(result: Mapping[str, Any]) -> str:
    interval = result["confidence_interval"]
    return f"{100 * interval['confidence']:g} % interval {interval['low']}..{interval['high']}" if interval else ""


def _results_table(results: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| test set | search | metric | % | interval | utterances |", "|---|---|---|---|---|---|"]
    for result in results:
        facts = (result["test_set"], result["method"], result["metric"], result["error_rate"], _interval(result) or "-")
        lines.append(f"| {' | '.join(map(str, facts))} | {result['utterances']} |")
    return "\n".join(lines)


def _here(name: str, checkpoint: Checkpoint, has_int8: bool) -> str:
    is_causal = checkpoint.model_config.is_causal
    extras = "hub,torch" if is_causal else "hub,onnx"
    live = (
        f"Live sound, chunk by chunk: `transducer stream {name} --microphone`, or `StreamingRecognizer`. Graphs "
        f"for live sound without torch: `{name}/{STREAMING}`."
    )
    # the graphs of a causal model are those of live sound
    int8 = '  # precision="int8" for the small graphs' if has_int8 and not is_causal else ""
    return (
        "With [stateless-transducer](https://pypi.org/project/stateless-transducer/) "
        f"(`pip install 'stateless-transducer[{extras}]'`):\n\n"
        "```python\n"
        "from stateless_transducer import Recognizer\n\n"
        f'recognizer = Recognizer.from_pretrained("{name}"){int8}\n'
        'print(recognizer.transcribe("a.wav").text)\n'
        "```" + (f"\n\n{live}" if is_causal else "")
    )


def _in_sherpa_onnx(name: str, checkpoint: Checkpoint, differences: str) -> str:
    if differences:
        return f"sherpa-onnx computes other features than this model expects ({differences}), and cannot run it."
    is_causal = checkpoint.model_config.is_causal
    folder, recognizer = (f"{STREAMING}/", "OnlineRecognizer") if is_causal else ("", "OfflineRecognizer")
    return (
        "With sherpa-onnx (`pip install sherpa-onnx`), in the folder of these files:\n\n"
        "```python\n"
        "import sherpa_onnx\n\n"
        f'files = {{role: f"{folder}{{role}}.onnx" for role in ("encoder", "decoder", "joiner")}}\n'
        f'recognizer = sherpa_onnx.{recognizer}.from_transducer(**files, tokens="{folder}tokens.txt")\n'
        "```"
    )
