"""`pip install` by the versions that the tests passed with: `python .ci/install.py ARGUMENTS`.

They stand in constraints.txt. One that cannot be had here (another Python or platform, withdrawn
from the registry) is left out with a line that says so, and its range in pyproject.toml decides; so
for all of them where pip does not say which. Told as it goes: a line for each package that is
fetched, with its number and size, and how many there are in all, once pip knows it. Errors are
pip's own, and so is the exit code.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

TESTED = Path(__file__).resolve().parents[1] / "constraints.txt"

_FETCHED = re.compile(r"\s*(?:Downloading|Using cached) (?:\S*/)?(\w[\w.]*)-\d\S*(?: (\(.*\)))?")
_ALL = re.compile(r"Installing collected packages: (.+)")
_REFUSED = re.compile(
    r"\(constraint\) ([\w.-]+)|No matching distribution found for ([\w.-]+)"
    r"|(?i:failed(?: to build|\s+building) (?:wheel|installable wheels) for) ([\w.-]+)"
)


def told(lines: Iterable[str]) -> Iterator[str]:
    """What a reader is told of pip's output."""
    fetched = 0
    for line in lines:
        if (found := _FETCHED.match(line)) and ".metadata" not in line:
            fetched += 1
            yield f"  {fetched:3} {found[1]} {found[2] or ''}".rstrip()
        elif found := _ALL.match(line):
            yield f"  all fetched; installing {len(found[1].split(','))} packages"


def without(versions: Sequence[str], errors: str) -> list[str]:
    """The tested versions but for those that pip refused; none where it does not name any."""
    refused = {_plain("".join(names)) for names in _REFUSED.findall(errors)}
    kept = [version for version in versions if _plain(version.partition("==")[0]) not in refused]
    return kept if len(kept) < len(versions) else []


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pip(arguments: Sequence[str], versions: Sequence[str]) -> tuple[int, str]:
    """pip's exit code, and what it said went wrong."""
    with (
        tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints,
        tempfile.TemporaryFile("w+") as errors,
    ):
        constraints.write("\n".join(versions))
        constraints.flush()
        command = [sys.executable, "-m", "pip", "install", "--progress-bar", "off"]
        command += ["-c", constraints.name, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as pip:
            assert pip.stdout is not None
            said: list[str] = []
            for text in told(_kept(pip.stdout, said)):
                print(text, flush=True)
        errors.seek(0)
        # which versions do not go together pip says on standard output
        return pip.returncode, "".join(filter(_REFUSED.search, said)) + errors.read()


def _kept(lines: Iterable[str], said: list[str]) -> Iterator[str]:
    for line in lines:
        said.append(line)
        yield line


def main(arguments: Sequence[str]) -> int:
    """Install; the exit code."""
    lines = TESTED.read_text().splitlines()
    versions = [line for line in lines if line and not line.startswith("#")]
    while True:
        code, errors = _pip(arguments, versions)
        if not code or not versions:
            sys.stderr.write(errors)
            return code
        kept = without(versions, errors)
        left_out = ", ".join(version for version in versions if version not in kept)
        what = left_out if kept else "the tested versions"
        print(f"  cannot be installed here, by its range instead: {what}", flush=True)
        versions = kept


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
