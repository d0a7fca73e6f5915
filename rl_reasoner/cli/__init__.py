"""The command line: parse, call, print, exit code."""

from rl_reasoner.cli.dispatch import main, main_of

__all__ = ["main", "main_of"]
