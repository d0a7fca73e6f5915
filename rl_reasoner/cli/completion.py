"""The verb `completion`: the script by which a shell completes our command line."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import tyro
from tyro.conf import Positional


@dataclass
class CompletionVerb:
    """Print a shell's completion script.

    bash and zsh: source <(rl-reasoner completion bash). fish: rl-reasoner completion fish | source
    """

    shell: Positional[Literal["bash", "zsh", "fish"]]
    """the shell"""

    def run(self, verbs: Any) -> None:
        """Print the script for a command line whose verbs are the union `verbs`."""
        with suppress(SystemExit):  # tyro's own way to end
            args = ["--tyro-print-completion", self.shell]
            tyro.cli(verbs, args=args, prog="rl-reasoner")
