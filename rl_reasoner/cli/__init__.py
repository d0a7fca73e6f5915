"""The command line: parse, call, print, exit code; one file a verb.

May import every other room, but only inside `run()`: `--help` loads nothing heavy.
"""

from rl_reasoner.cli.dispatch import main, main_of

__all__ = ["main", "main_of"]
