"""Settings of the documentation site: `make docs` writes it to build/site.

The pages are the repository's own Markdown, so that they read as well on a forge; their folder is the repository. Two
pages are written here, from the code: the reference of the Python interface and that of the commands.
"""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout, suppress
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

import stateless_transducer
from stateless_transducer import cli

ROOT = Path(__file__).parents[1]
GENERATED = ROOT / "docs" / "generated"

project = "stateless-transducer"
author = "The stateless-transducer authors"
version = release = stateless_transducer.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/**", "*.md", "benchmarks/README.md", "benchmarks/results/*.md", "egs/**/README.md"]
exclude_patterns = ["docs/conf.py", "**/exp*/**", "build/**"]
html_theme = "furo"
html_title = f"stateless-transducer {version}"
html_extra_path = ["site"]
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
# the text is plain Markdown: a code block without a language is what a terminal shows
highlight_language = "none"

# a name between single backticks is code in docstrings, as it is in Markdown
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False


def docstrings_of_aliases(app, what, name, obj, options, lines: list[str]) -> None:
    """Replace, in place, what autodoc takes for the docstring of an alias, that of its value, by its own."""
    if what == "data":
        alias = name.removeprefix("stateless_transducer.")
        module = f"stateless_transducer.{stateless_transducer._MODULES[alias]}"
        lines[:] = ModuleAnalyzer.for_module(module).find_attr_docs()["", alias]


def kind_of(name: str) -> str:
    """Return the directive that documents a name."""
    value = getattr(stateless_transducer, name)
    if isinstance(value, type):
        return "autoclass"
    return "autofunction" if callable(value) else "autodata"


def write_api() -> None:
    """Write the reference of the names that `stateless_transducer` exports, grouped by what they are for."""
    lines = ["# Python reference", "", "The examples run in a folder with their files, after these lines:", ""]
    lines += ["```python", "import numpy as np", "import torch", "from stateless_transducer import *", "```", ""]
    for heading, names in API.items():
        lines += [f"## {heading}", ""]
        for name in names:
            kind = kind_of(name)
            lines += ["```{eval-rst}", f".. {kind}:: stateless_transducer.{name}"]
            lines += ["   :members:"] if kind == "autoclass" else []
            lines += ["```", ""]
    (GENERATED / "api.md").write_text("\n".join(lines), encoding="utf-8")


def write_commands() -> None:
    """Write the reference of the commands: what `transducer COMMAND --help-all` prints."""
    # fits into the column of text
    os.environ["COLUMNS"] = "90"
    lines = ["# Command reference", ""]
    for name in cli.COMMANDS:
        with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
            cli.main([*name.split(), "--help-all"])
        lines += [f"## transducer {name}", "", "```text", printed.getvalue().strip(), "```", ""]
    (GENERATED / "commands.md").write_text("\n".join(lines), encoding="utf-8")


API = {
    "Recognize": [
        "Recognizer",
        "StreamingRecognizer",
        "Sound",
        "Stretch",
        "Transcript",
        "Segment",
        "Word",
        "Alternative",
        "SegmentConfig",
        "DetailConfig",
        "EndpointRules",
        "AudioError",
        "read_audio",
        "fbank",
        "FbankConfig",
    ],
    "Losses": [
        "transducer_loss",
        "joint_transducer_loss",
        "simple_transducer_loss",
        "prune_ranges",
        "prune_joiner_inputs",
        "pruned_transducer_loss",
    ],
    "Searches": [
        "SearchConfig",
        "decode_features",
        "decode_features_nbest",
        "greedy_search",
        "modified_beam_search",
        "beam_search",
        "Hypothesis",
        "LogitOptions",
        "TransducerModel",
        "TransducerSteps",
        "align",
        "Alignment",
    ],
    "Hotwords and language models": [
        "Hotwords",
        "HotwordPhrase",
        "spell_hotwords",
        "Scorer",
        "SumOfScorers",
        "make_scorer",
        "NgramScorer",
        "NeuralScorer",
        "LanguageModel",
        "read_arpa",
    ],
    "Models and files": [
        "ModelConfig",
        "EncoderConfig",
        "ConformerConfig",
        "DecoderConfig",
        "JoinerConfig",
        "Transducer",
        "build_model",
        "Checkpoint",
        "load_checkpoint",
        "save_checkpoint",
        "load_icefall",
        "save_icefall",
        "TokenTable",
    ],
}


def setup(app) -> None:
    """Write the generated pages before Sphinx looks for pages."""
    listed = {name for names in API.values() for name in names}
    exported = set(stateless_transducer.__all__) - {"__version__"}
    if listed != exported:
        raise ValueError(f"docs/conf.py: API differs from what is exported: {sorted(listed ^ exported)}")
    # before napoleon, whose priority is 500
    app.connect("autodoc-process-docstring", docstrings_of_aliases, priority=400)
    GENERATED.mkdir(exist_ok=True)
    write_api()
    write_commands()
