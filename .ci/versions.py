"""The versions that the tests passed with: made anew, or held against what is newest today.

`python .ci/versions.py tested` (make versions): the newest of everything that the ranges in
pyproject.toml let in, in an environment of its own; all tests; then constraints.txt is written, and
what moved is told. Nothing is written where a test fails. `python .ci/versions.py latest` (make
latest): beyond the ranges, too, for the packages whose inner parts we lean on; the fast tests and
the contracts with trl; then a table of what moved and which tests fail because of which: those that
pass again with that one package as it was. Ends with 1 where a test failed. Environments lie in
build/.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SET = ROOT / "constraints.txt"
HEAD = (
    "# What all tests passed with, on Python {python}; .ci/install.py installs by it, and "
    "`make versions` makes it.\n# torch is the machine's own.\n"
)
LEANED_ON = (
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
)  # the bounds in pyproject.toml
CONTRACTS = "tests/training/test_trainer_contract.py"
_MACHINES = re.compile(r"(torch|nvidia-.*|cuda-.*|triton)==")  # an index decides which build

Moves = dict[str, tuple[str | None, str | None]]
"""Version in the set and version here, by package; None where there is none."""


def plain(name: str) -> str:
    """A package's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def versions(lines: Sequence[str]) -> dict[str, str]:
    """Versions by package, of lines such as `rich==14.0`; torch and its like left out."""
    pairs = (line.strip().partition("==") for line in lines if not _MACHINES.match(line))
    return {plain(name): version for name, sign, version in pairs if sign and name[0] != "#"}


def moves(before: Mapping[str, str], now: Mapping[str, str]) -> Moves:
    """The packages that are not as they were."""
    names = sorted({*before, *now})
    return {n: (before.get(n), now.get(n)) for n in names if before.get(n) != now.get(n)}


def blamed(
    failed: Sequence[str], suspects: Sequence[str], still: Callable[[str, Sequence[str]], set[str]]
) -> dict[str, str]:
    """The package that each failed test fails for, of those with one.

    `still(package, tests)` gives the tests that fail with that one package as it was.
    """
    because: dict[str, str] = {}
    for package in suspects:
        if left := [test for test in failed if test not in because]:
            fails = still(package, left)
            because |= {test: package for test in left if test not in fails}
    return because


def table(moved: Moves, failed: Sequence[str], because: Mapping[str, str]) -> str:
    """What moved, and under each package the tests that fail because of it."""
    width = max(map(len, moved), default=0)
    lines = [f"{len(moved)} packages moved since constraints.txt; {len(failed)} tests fail"]
    for name, (old, new) in sorted(moved.items(), key=lambda m: m[0] not in because.values()):
        lines.append(f"  {name:{width}}  {old or 'not there'} -> {new or 'not there'}")
        lines += [f"      fails: {test}" for test in failed if because.get(test) == name]
    if alone := [test for test in failed if test not in because]:
        lines += ["  because of no package alone, or not of a package:"]
        lines += [f"      fails: {test}" for test in alone]
    return "\n".join(lines)


def environment(name: str, beyond: bool) -> Path:
    """The Python of a new environment with the newest packages."""
    folder = ROOT / "build" / name
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    print(f"installing the newest packages into {folder.relative_to(ROOT)}", flush=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-e", ".[dev]"], cwd=ROOT, check=True)
    if beyond:  # pip says which ranges that leaves
        subprocess.run([*pip, "--upgrade", *LEANED_ON], cwd=ROOT, check=True)
    return python


def installed(python: Path) -> list[str]:
    """`name==version` of each package, in the order of names."""
    freeze = [python, "-m", "pip", "freeze", "--exclude-editable", "--disable-pip-version-check"]
    lines = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout.splitlines()
    return sorted((line for line in lines if versions([line])), key=str.lower)


def failures(python: Path, *arguments: str, path: Path | None = None) -> set[str]:
    """The tests that fail, by their ids."""
    kept = python.parents[1] / "cache"
    shutil.rmtree(kept, ignore_errors=True)
    command = [
        python,
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        "--dist",
        "worksteal",
        "-o",
        f"cache_dir={kept}",
    ]
    added = {"PYTHONPATH": str(path)} if path else {}
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **added}
    )
    if done.returncode not in (0, 1, 5):  # 5: no test
        raise SystemExit(f"pytest itself failed, with exit code {done.returncode}")
    file = kept / "v" / "cache" / "lastfailed"
    return set(json.loads(file.read_text())) if file.exists() else set()


def tested() -> int:
    """Write the set anew, where all tests pass."""
    python = environment("tested", beyond=False)
    if failed := failures(python):
        print(f"constraints.txt stays as it is: {len(failed)} tests fail with the newest packages")
        return 1
    lines, before = installed(python), versions(SET.read_text().splitlines())
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    SET.write_text(HEAD.format(python=here) + "\n".join(lines) + "\n")
    print(table(moves(before, versions(lines)), [], {}))
    return 0


def latest() -> int:
    """Tell what the newest packages break."""
    python = environment("latest", beyond=True)
    moved = moves(versions(SET.read_text().splitlines()), versions(installed(python)))
    failed = sorted(failures(python, "-m", "not slow and not matrix") | failures(python, CONTRACTS))

    def still(package: str, tests: Sequence[str]) -> set[str]:
        old = python.parents[1] / "old" / package
        print(f"{len(tests)} failed tests again, with {package} {moved[package][0]}", flush=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", old]
        if subprocess.run([*pip, f"{package}=={moved[package][0]}"]).returncode:
            return {*tests}
        return failures(python, "-m", "", *tests, path=old)

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    direct = [plain(re.split(r"[^\w.-]", need)[0]) for need in wanted]
    changed = [name for name, (old, new) in moved.items() if old and new]
    suspects = [n for n in direct if n in changed] + [n for n in changed if n not in direct]
    print(table(moved, failed, blamed(failed, suspects, still)))
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit({"tested": tested, "latest": latest}[sys.argv[1]]())
