"""The command line: parse the arguments, call, print, and give the exit code.

May import every room; what is heavy is imported inside the verbs, so that `--help` loads no torch.
"""

from rl_reasoner.cli.dispatch import main, main_of

__all__ = ["main", "main_of"]
