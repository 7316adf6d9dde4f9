"""``python -m stateless_transducer``: the command ``transducer``."""

import sys

from stateless_transducer.cli import main

sys.exit(main())
