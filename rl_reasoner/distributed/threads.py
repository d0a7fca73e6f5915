"""How many threads torch computes with on a CPU, and how they wait for each other.

OpenMP's threads spin while they wait: beside other work they take the cores from those that they
wait for, and a training of two minutes takes twenty. So they sleep instead, where that can be said
before torch is loaded, and a tiny policy, whose products are too small to be shared, is computed by
one thread. What the environment says goes first. Knows nothing of models but their size and device.
"""

import os
import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from torch import nn

TINY = 5_000_000  # parameters, up to which one thread is used
_OWN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # by which a user says how many
_SHARED = "RL_REASONER_SHARED_CORES"  # set where the launcher has said it, not the user


def wait_asleep() -> None:
    """Have OpenMP's threads sleep while they wait; torch, once loaded, does not heed it any more.

    A wait policy that is in the environment stays.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


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
        """Use one thread where all `models` are tiny and on a CPU, else as before; in words."""
        import torch

        parameters = [list(model.parameters()) for model in models]
        sizes = [sum(p.numel() for p in own if p.device.type == "cpu") for own in parameters]
        tiny = all(0 < size <= TINY for size in sizes)
        wanted = 1 if tiny and not user_sets_threads() else self._before
        if torch.get_num_threads() != wanted:
            torch.set_num_threads(wanted)
        why = ""
        if user_sets_threads():
            why = " (set by the environment)"
        elif tiny:
            why = " (a tiny policy; OMP_NUM_THREADS changes it)"
        return f"{wanted} thread{'s' * (wanted > 1)}{why}"
