"""The command line: parse, call, print, exit code; one file a verb.

May import every other room, but only inside `run()`: `--help` loads nothing heavy.
"""

import signal
import sys

try:
    from rl_reasoner.cli.dispatch import main, main_of
except KeyboardInterrupt:  # a first start reads thousands of files: time enough for Ctrl-C
    print("interrupted", file=sys.stderr)
    raise SystemExit(128 + signal.SIGINT) from None

__all__ = ["main", "main_of"]
