"""`pip install`, told as it goes: `python .ci/install.py ARGUMENTS`.

A line for each package that is fetched, with its number and size, and how many there are in all,
once pip knows it. Errors are pip's own, and so is the exit code.
"""

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator

_FETCHED = re.compile(r"\s*(?:Downloading|Using cached) (?:\S*/)?(\w[\w.]*)-\d\S*(?: (\(.*\)))?")
_ALL = re.compile(r"Installing collected packages: (.+)")


def told(lines: Iterable[str]) -> Iterator[str]:
    """What a reader is told of pip's output."""
    fetched = 0
    for line in lines:
        if (found := _FETCHED.match(line)) and ".metadata" not in line:
            fetched += 1
            yield f"  {fetched:3} {found[1]} {found[2] or ''}".rstrip()
        elif found := _ALL.match(line):
            yield f"  all fetched; installing {len(found[1].split(','))} packages"


if __name__ == "__main__":
    command = [sys.executable, "-m", "pip", "install", "--progress-bar", "off", *sys.argv[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as pip:
        assert pip.stdout is not None
        for text in told(pip.stdout):
            print(text, flush=True)
    raise SystemExit(pip.returncode)
