"""`python -m rl_reasoner.cli`: the command line."""

import sys

from rl_reasoner.cli.dispatch import main

if __name__ == "__main__":
    sys.exit(main())
