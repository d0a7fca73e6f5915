"""The C++ in `cpp/`, compiled once on this machine where it has a compiler, called with pointers.

The library lies in the cache folder under a hash of its source and of the processor; only one that
nobody else could have written is loaded. Where there is no compiler, or what it made does not give
the right numbers, there is no library: everything has another way, in torch's own operations. Knows
tensors only.
"""

import ctypes
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rl_reasoner.files import no_link
from rl_reasoner.machine import choices, processor
from rl_reasoner.paths import cache_folder

_SOURCES = sorted(Path(__file__).with_name("cpp").iterdir())
_CODE = [file for file in _SOURCES if file.suffix == ".cpp"]
_FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp"]
_WAIT_S = 120.0  # for the compiler
_DIGEST = hashlib.sha256().digest_size  # bytes at the end of the file
SUFFIXES = {torch.float32: "fp32", torch.bfloat16: "bf16"}  # of functions that know both types
_BY_TYPE = ("attend", "draw", "gated", "layer", "mixture", "norm")
_FUNCTIONS = (
    "attention_backward", "attention_forward", "can_slice", "expert_backward", "expert_forward",
    "gated_backward", "gated_forward", "join_products", "lanes", "rms_backward", "rms_forward",
    "rotate", "slice_rows", "sliced_product",
    *(f"{name}_{suffix}" for name in _BY_TYPE for suffix in SUFFIXES.values()),
)  # fmt: skip
_LETTERS = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float, "n": ctypes.c_int}
logger = logging.getLogger(__name__)


def available() -> bool:
    """Whether this machine runs the library; the same where a run resumes.

    Found out by each process: that a compiler failed once says nothing of the next time.
    """
    found = choices.get("native", lambda: _library() is not None, _can_be, here_and_now=True)
    return bool(found)


def _can_be(value: Any) -> bool:
    return value is False or (value is True and _library() is not None)


def can_slice() -> bool:
    """Whether the library multiplies by slices of integers (AMX)."""
    library = _library() if available() else None
    return library is not None and bool(library.can_slice())


def library() -> Any:
    """The library, where it is `available`, for functions that take more than tensors."""
    return _library()


def functions(library: Any, name: str, arguments: str) -> dict[torch.dtype, Any]:
    """The library's NAME_fp32 and NAME_bf16, by type; `arguments`: a letter of `_LETTERS` each."""
    found = {}
    for dtype, suffix in SUFFIXES.items():
        found[dtype] = getattr(library, f"{name}_{suffix}")
        found[dtype].argtypes, found[dtype].restype = [_LETTERS[a] for a in arguments], None
    return found


def run_compiled(name: str, *given: Tensor | int | float) -> None:
    """Call a function of the library: tensors as pointers, `int` as long, `float` as float."""
    library = _library()
    assert library is not None
    _call(library, name, *given)


def _call(library: Any, name: str, *given: Tensor | int | float) -> None:
    converted = [
        ctypes.c_void_p(value.data_ptr())
        if isinstance(value, Tensor)
        else ctypes.c_float(value)
        if isinstance(value, float)
        else ctypes.c_long(value)
        for value in given
    ]
    getattr(library, name)(*converted)


def described() -> str:
    """Whether the library is used, and why or why not, in a few words."""
    compiler = _compiler()
    if available():
        return f"yes ({compiler})"
    if compiler is None:
        return f"no: there is no compiler ({', '.join(_compilers())})"
    return f"no: what {compiler} makes does not work here, or is not wanted"


@cache
def _library() -> Any:
    """The loaded library, or None."""
    compiler = _compiler()
    if compiler is None:
        return None
    sources = [file.read_text(encoding="utf-8") for file in _SOURCES]
    told = "\n".join((*sources, processor(), compiler, *_FLAGS))
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    try:
        file = cache_folder() / "machine" / f"native-{digest}.so"
        library = _loaded(file)
        if library is None:
            if (folder := file.parent).exists() and folder.stat().st_uid != os.geteuid():
                raise OSError(f"{folder} is not this user's (RL_REASONER_CACHE names another)")
            _compile(compiler, file)
            library = _loaded(file)
        return library if library is not None and _is_right(library) else None
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("the compiled operations are not used: %s", error)
        return None


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, _compilers())), None)


def _compilers() -> list[str]:
    return [*filter(None, [os.environ.get("CXX")]), "c++", "g++", "clang++"]


def _loaded(file: Path) -> Any:
    """The library in a file of this user's, in a folder that nobody else can write to; else None.

    It ends with its digest: loading a part of one would end the process. What is looked at is what
    is loaded: the file is opened once.
    """
    try:
        with open(file, "rb", opener=no_link) as opened:
            about, folder = os.fstat(opened.fileno()), file.parent.stat()
            closed = all(
                each.st_uid == os.geteuid() and not each.st_mode & 0o022 for each in (about, folder)
            )
            data = opened.read() if closed else b""
            if not data or data[-_DIGEST:] != hashlib.sha256(data[:-_DIGEST]).digest():
                return None
            link = f"/proc/self/fd/{opened.fileno()}"
            return ctypes.CDLL(link if sys.platform == "linux" else str(file))
    except OSError:  # there is none, or it is a link
        return None


def _compile(compiler: str, file: Path) -> None:
    """Compile in a folder of our own: processes of other machines may do so beside us."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if (about := file.parent.stat()).st_uid == os.geteuid():  # where the umask lets a group write
        file.parent.chmod(about.st_mode & 0o755)
    with TemporaryDirectory(prefix="native-", dir=file.parent) as folder:
        made = Path(folder) / file.name
        _run([compiler, *_FLAGS, "-shared", "-fPIC", *map(str, _CODE), "-o", str(made)])
        digest = hashlib.sha256(made.read_bytes()).digest()
        with made.open("ab") as end:
            end.write(digest)
            end.flush()
            os.fsync(end.fileno())
        made.chmod(0o644)
        made.replace(file)


def _run(command: list[str]) -> None:
    """Run a compiler, and end it with all that it started where it takes too long."""
    none = subprocess.DEVNULL
    with subprocess.Popen(
        command, stdin=none, stdout=none, stderr=none, start_new_session=True
    ) as process:
        try:
            code = process.wait(_WAIT_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if code:
        raise subprocess.CalledProcessError(code, command)


def _is_right(library: Any) -> bool:
    """Whether all functions are there, and those of each kind give torch's numbers.

    A norm, attention and a product, and the gradients of the first two.
    """
    if not all(hasattr(library, name) for name in _FUNCTIONS):
        return False
    proofs = (_norms, _attends, _multiplies)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        return all(torch.allclose(a, b, atol=1e-4) for proof in proofs for a, b in proof(library))


def _norms(library: Any) -> Iterator[tuple[Tensor, Tensor]]:
    x = torch.linspace(-3, 3, 2 * 40).view(2, 40).requires_grad_()
    y, by_x, scale = torch.empty(2, 40), torch.empty(2, 40), torch.empty(2)
    weight, grad, parts = torch.ones(40), torch.linspace(1, 2, 80).view(2, 40), torch.empty(1, 40)
    _call(library, "rms_forward", x, weight, y, scale, 2, 40, 1e-6)
    _call(library, "rms_backward", grad, x, weight, scale, by_x, parts, 2, 40)
    own = x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt()
    yield y, own.detach()
    yield by_x, torch.autograd.grad(own, x, grad)[0]


def _attends(library: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Of a prompt of 37 tokens, for which the units of C++ are filled up, and two heads."""
    heads, tokens, width = 2, 37, 16
    given = torch.linspace(-9, 9, 3 * heads * tokens * width).sin().view(3, heads, tokens, width)
    query, key, value = own = [t.requires_grad_() for t in given.clone()]
    out, sums = torch.empty_like(query), torch.empty(heads, tokens)
    results = [torch.empty(tokens, heads, width) for _ in own]
    told = torch.tensor([0, tokens, 0])
    sizes = (tokens, heads, 1, width, 0.25, told, 1)

    def placed(*tensors: Tensor) -> Iterator[Tensor | int]:
        for tensor in tensors:
            yield from (tensor, width, tokens * width)

    _call(library, "attention_forward", *placed(query, key, value, out), sums, *sizes)
    grad = given[0].cos()
    all_given = (*placed(query, key, value, out), sums, *placed(grad), *results, *sizes)
    _call(library, "attention_backward", *all_given)
    by_torch = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.25)
    yield out, by_torch.detach()
    for result, by_own in zip(results, torch.autograd.grad(by_torch, own, grad), strict=True):
        yield result.transpose(0, 1), by_own


def _multiplies(library: Any) -> Iterator[tuple[Tensor, Tensor]]:
    if library.can_slice():
        a, b = torch.linspace(-2, 2, 40 * 96).view(40, 96), torch.linspace(3, -1, 96 * 35)
        b, out = b.view(35, 96), torch.empty(40, 35)
        _call(library, "sliced_product", a, 96, 1, b, 96, 1, out, 35, 40, 35, 96, 0)
        yield out, a @ b.t()
