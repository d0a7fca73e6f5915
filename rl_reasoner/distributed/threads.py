"""How many threads torch computes with on a CPU, and how they wait for each other.

OpenMP's threads spin while they wait: beside other work they take the cores from those that they
wait for, and a training of two minutes takes twenty. So they sleep, after a moment, where that can
be said before torch is loaded. A tiny policy, whose products are too small to be shared, is
computed by one thread; for others it is measured, on the policy and beside what else the machine
does now, whether more threads are faster. Another number rounds sums differently, so a run keeps
its own (rl_reasoner.machine). What the environment says goes first. Of models it knows their size
and device, and that they take token ids.
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from rl_reasoner.machine import choices

if TYPE_CHECKING:
    from torch import nn

TINY = 1_000_000  # parameters, up to which one thread is used
HUGE = 1_000_000_000  # from which a pass takes seconds, and all threads are used
_GAIN = 1.1  # more threads have to be so much faster: they leave nothing for rewards
_SECONDS = 0.6  # of measuring, for each number of threads
_SPINS = "10000"  # some tenths of a millisecond: as long as a core is free, the wait is shorter
_SHAPES = ((1, 64), (16, 1))  # rows and tokens of a pass: like training, like sampling
_OWN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # by which a user says how many
_SHARED = "RL_REASONER_SHARED_CORES"  # set where the launcher has said it, not the user


def wait_asleep() -> None:
    """Have OpenMP's threads sleep after a moment's wait; torch, once loaded, does not heed it.

    A wait policy that is in the environment stays.
    """
    said = any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"))
    if "torch" not in sys.modules and not said:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ["GOMP_SPINCOUNT"] = _SPINS  # GNU's OpenMP; LLVM's knows no such number


def share_cores(processes: int) -> None:
    """Divide the cores among `processes` to be started, unless the user has set threads."""
    if not user_sets_threads():
        cores = len(os.sched_getaffinity(0))
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores // processes))
        os.environ[_SHARED] = "1"


def user_sets_threads() -> bool:
    """Whether the user has set the number of threads."""
    return any(name in os.environ for name in _OWN) and _SHARED not in os.environ


class Threads:
    """torch's threads while policies are used, as a context; the caller's are set back at its end.

    Several may stand inside each other.
    """

    def __enter__(self) -> Self:
        import torch

        self._before = torch.get_num_threads()
        return self

    def __exit__(self, *ended: object) -> None:
        import torch

        if torch.get_num_threads() != self._before:
            torch.set_num_threads(self._before)

    def suit(self, *models: "nn.Module") -> str:
        """Compute with the threads that suit `models` on a CPU, all the same; in words.

        One where all are tiny, as many as measured where the largest is not; the run that is
        resumed keeps its number.
        """
        import torch

        wanted, why = self._wanted(models)
        if torch.get_num_threads() != wanted:
            torch.set_num_threads(wanted)
        return f"{wanted} thread{'s' * (wanted > 1)}{f' ({why})' if why else ''}"

    def _wanted(self, models: "Sequence[nn.Module]") -> tuple[int, str]:
        """How many threads for `models`, and why so many."""
        sizes = [_size_on_cpu(model) for model in models]
        most = self._before
        if user_sets_threads():
            return most, "set by the environment"
        if not all(sizes):  # on another device, or no model at all
            return most, ""
        if max(sizes) <= TINY:
            return 1, "a tiny policy; OMP_NUM_THREADS changes it"
        if _SHARED in os.environ:
            return most, ""
        largest = models[sizes.index(max(sizes))]
        chosen: int = choices.get(
            f"threads for {max(sizes)} parameters",
            lambda: fastest(largest, most) if most > 1 and max(sizes) < HUGE else most,
            lambda count: isinstance(count, int) and count > 0,
            here_and_now=True,
        )
        return chosen, f"the fastest of 1 to {most}; OMP_NUM_THREADS changes it"


def _size_on_cpu(model: "nn.Module") -> int:
    """How many parameters of a model lie in the CPU's memory."""
    return sum(p.numel() for p in model.parameters() if p.device.type == "cpu")


def fastest(model: "nn.Module", most: int) -> int:
    """How many threads, up to `most`, compute `model` the fastest beside what else runs now.

    1, 2, 4 and so on are tried on short passes, in turn. Of numbers that are nearly as fast it is
    the smallest. Weights, mode, random states and the threads are left as they are.
    """
    import torch

    counts = sorted({*(1 << n for n in range(most.bit_length())), most})
    before, training = torch.get_num_threads(), [m for m in model.modules() if m.training]
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    model.eval()
    try:
        with torch.no_grad():
            _pass(model)  # the first one makes buffers
            started = time.perf_counter()
            while time.perf_counter() - started < _SECONDS * len(counts):
                for count in counts:
                    torch.set_num_threads(count)
                    seconds[count].append(_pass(model))
    finally:
        torch.set_num_threads(before)
        for module in training:
            module.training = True
    mean = {count: sum(taken) / len(taken) for count, taken in seconds.items()}
    return next(count for count in counts if mean[count] <= _GAIN * min(mean.values()))


def _pass(model: Any) -> float:
    """Seconds of a pass of each shape."""
    import torch

    device = next(model.parameters()).device
    started = time.perf_counter()
    for shape in _SHAPES:
        model(input_ids=torch.ones(shape, dtype=torch.long, device=device), use_cache=False)
    return time.perf_counter() - started
