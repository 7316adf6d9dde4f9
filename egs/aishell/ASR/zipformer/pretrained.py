#!/usr/bin/env python3
"""Transcribe sound files with a trained model, icefall's or ours: see --help."""

import sys
from pathlib import Path

try:
    from stateless_transducer.cli import run_script
    from stateless_transducer.commands import recipe
except ModuleNotFoundError as err:
    sys.exit(
        f"{Path(__file__).name}: error: {err}. Activate the environment in which stateless-transducer is installed."
    )

LANG_DIR = Path("data/lang_char")

if __name__ == "__main__":
    sys.exit(run_script(recipe.run_pretrained, LANG_DIR, options=recipe.PretrainedOptions))
