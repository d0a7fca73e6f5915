"""The operations between the products of a pass over one new token of each row, compiled.

Such a pass is hundreds of small operations, and calling each of them from Python costs more than
computing it. `cpp/step_*.cpp` do those between the matrix products in one call each: norms,
rotation with the write to the cache and the attention, gated activations, mixtures of experts, the
drawing of tokens. `operations` gives them where rl_reasoner.kernels.native has its library and
their values are torch's: what needs them has a way without. Knows tensors only.
"""

import ctypes
import logging
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rl_reasoner.kernels import native
from rl_reasoner.kernels.panel_weight import laid_out, panels

DTYPES = tuple(native.SUFFIXES)
_BLOCK = 8  # rows of one prompt that attend together
logger = logging.getLogger(__name__)


class _Cache(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((n, ctypes.c_int64) for n in ("row", "head", "token"))]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((n, _Cache) for n in ("prompt_keys", "prompt_values", "own_keys", "own_values")),
        *((n, ctypes.c_void_p) for n in ("query_norm", "key_norm")),
        *((n, ctypes.c_float) for n in ("eps", "scale")),
        *((n, ctypes.c_int64) for n in ("heads", "shared", "dim", "window", "wide")),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_int64) for n in ("rows", "blocks")),
        *((n, ctypes.c_void_p) for n in ("length", "prompt", "prompt_length", "order", "block")),
        *((n, ctypes.c_void_p) for n in ("cosine", "sine", "query")),
        ("threads", ctypes.c_int64),
    ]


class _Experts(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_void_p) for n in ("gate_up", "down")),
        *((n, ctypes.c_int64) for n in ("count", "chosen", "hidden", "inner", "normalised")),
    ]


@dataclass(frozen=True)
class Heads:
    """What the attention of one layer is: numbers, and the norms of queries and keys, if any.

    `shared`: heads of the keys; `window` 0: no sliding window. Norms: (dim,) fp32.
    """

    heads: int
    shared: int
    dim: int
    scale: float
    window: int = 0
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None
    eps: float = 0.0


class Rows:
    """The rows of passes, until one enters or leaves: where their keys and values lie.

    `lengths` (rows,) own tokens before the new one, which the caller counts up in place; `prompts`
    (rows,) their prompts, of `prompt_lengths` (prompts,) tokens; `cosine`, `sine` (positions, dim)
    fp32. All are int64 or fp32, on the CPU, and kept alive here.
    """

    def __init__(
        self,
        lengths: Tensor,
        prompts: Tensor,
        prompt_lengths: Tensor,
        rotation: tuple[Tensor, Tensor],
        heads: int,
    ) -> None:
        order = prompts.argsort(stable=True)
        _, counts = torch.unique_consecutive(prompts[order], return_counts=True)
        starts = [0]
        for count in counts.tolist():
            first = starts[-1]
            starts += [first + min(i + _BLOCK, count) for i in range(0, count, _BLOCK)]
        block = torch.tensor(starts)
        query = torch.empty(len(prompts), heads, rotation[0].shape[1])
        self._kept = (lengths, prompts, prompt_lengths, order, block, *rotation, query)
        self.step = _Step(len(prompts), len(starts) - 1, *(t.data_ptr() for t in self._kept), 1)


class Operations:
    """The compiled operations, on contiguous tensors of fp32 or bfloat16 on the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._norm = native.functions(library, "norm", "ppppiifn")
        self._gated = native.functions(library, "gated", "ppiin")
        self._attend = native.functions(library, "attend", "pppp")
        self._mixture = native.functions(library, "mixture", "pppppin")
        self._draw = native.functions(library, "draw", "piifpippn")

    def norm(
        self, hidden: Tensor, change: Tensor | None, weight: Tensor, eps: float, out: Tensor
    ) -> Tensor:
        """`hidden` (rows, width) fp32 += `change`; `out` gets its RMS norm times `weight`, fp32."""
        self._norm[out.dtype](
            hidden.data_ptr(),
            None if change is None else change.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            *hidden.shape,
            eps,
            torch.get_num_threads(),
        )
        return out

    def gated(self, given: Tensor, out: Tensor) -> Tensor:
        """(rows, 2 * width), first the gates -> (rows, width): silu(gates) times the others."""
        self._gated[out.dtype](
            given.data_ptr(), out.data_ptr(), *out.shape, torch.get_num_threads()
        )
        return out

    def attend(self, layer: _Layer, rows: Rows, projected: Tensor, out: Tensor) -> Tensor:
        """Turn, keep, attend: queries, keys, values (rows, all heads * dim) -> (rows, heads * dim).

        `layer`: of `layer_of`.
        """
        rows.step.threads = torch.get_num_threads()
        self._attend[out.dtype](
            ctypes.addressof(layer),
            ctypes.addressof(rows.step),
            projected.data_ptr(),
            out.data_ptr(),
        )
        return out

    def mixture(
        self, experts: "PanelExperts", given: Tensor, logits: Tensor, chosen: Tensor, out: Tensor
    ) -> Tensor:
        """(rows, hidden) through their experts; `chosen` (rows, k) int64 is told which."""
        self._mixture[out.dtype](
            ctypes.addressof(experts.numbers),
            *(t.data_ptr() for t in (given, logits, out, chosen)),
            len(given),
            torch.get_num_threads(),
        )
        return out

    def draw(
        self, logits: Tensor, temperature: float, uniform: Tensor | None, broken: int
    ) -> tuple[Tensor, Tensor]:
        """(rows, V) logits -> tokens (rows,), and the log-probability each was drawn with.

        By inversion of `uniform` (rows,) fp32 in [0, 1); greedy where it is None. A row whose
        logits are not numbers gets the token `broken` and NaN.
        """
        tokens = torch.empty(len(logits), dtype=torch.long)
        logps = torch.empty(len(logits), dtype=torch.float32)
        self._draw[logits.dtype](
            logits.data_ptr(),
            *logits.shape,
            temperature,
            None if uniform is None else uniform.data_ptr(),
            broken,
            tokens.data_ptr(),
            logps.data_ptr(),
            torch.get_num_threads(),
        )
        return tokens, logps


def layer_of(
    heads: Heads, prompt: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor]
) -> tuple[_Layer, Any]:
    """A layer's attention on buffers (rows or prompts, kv heads, tokens, dim), and what it needs.

    All four buffers are of one type, fp32 or bfloat16, with a last stride of 1.
    """
    norms = (heads.query_norm, heads.key_norm)
    layer = _Layer(
        *(_Cache(t.data_ptr(), *t.stride()[:3]) for t in (*prompt, *own)),
        *(None if norm is None else norm.data_ptr() for norm in norms),
        *(heads.eps, heads.scale, heads.heads, heads.shared, heads.dim, heads.window),
        own[0].dtype == torch.float32,
    )
    return layer, (norms, prompt, own)


class PanelExperts:
    """The weights of a mixture's experts as `Operations.mixture` reads them: a copy.

    `gate_up` (experts, 2 * inner, hidden), gates first; `down` (experts, hidden, inner).
    """

    def __init__(self, gate_up: Tensor, down: Tensor, chosen: int, normalised: bool) -> None:
        count, hidden, inner = down.shape
        lanes = int(native.library().lanes())
        gates, others = (panels(half, lanes) for half in gate_up.chunk(2, dim=1))
        self._kept = (
            laid_out(torch.cat((gates, others), dim=-1)),
            laid_out(panels(down, 2 * lanes)),
        )
        pointers = (t.data_ptr() for t in self._kept)
        self.numbers = _Experts(*pointers, count, chosen, hidden, inner, normalised)


def operations() -> Operations | None:
    """The compiled operations, where this machine has them and the run does not go without."""
    return _loaded() if native.available() else None


@cache
def _loaded() -> Operations | None:
    found = Operations(native.library())
    if _agrees(found):
        return found
    logger.info("sampling goes without compiled operations: they differ from torch's")
    return None


def _agrees(found: Operations) -> bool:
    """Whether the operations give torch's values on random ones of both types."""
    random = torch.Generator().manual_seed(0)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        hidden, weight = (torch.randn(*size, generator=random) for size in ((3, 72), (72,)))
        given = torch.randn(3, 72, generator=random).to(dtype)
        expected = torch.nn.functional.rms_norm(hidden + given, (72,), weight, 1e-6)
        normed = found.norm(hidden, given, weight, 1e-6, torch.empty_like(given))
        gates, others = given.float().chunk(2, dim=1)
        gated = found.gated(given, given.new_empty(3, 36))
        pairs = (
            (normed, expected),
            (gated, torch.nn.functional.silu(gates) * others),
            (found.draw(given, 1.0, None, 0)[0], given.argmax(-1)),
        )
        for own, torchs in pairs:
            if not torch.allclose(own.float(), torchs.float(), rtol=tolerance, atol=tolerance):
                return False
    return True
