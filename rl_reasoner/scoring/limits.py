"""What a reward may take: time and memory, and where it runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a reward may take: seconds a row, seconds a batch (each of two tries), MiB a process.

    With `apart` False everything runs in the caller's process, on a thread. `on`: "here", or "ray"
    for `@reward` functions on a cluster (`ray_cluster`).
    """

    timeout_s: float = 60.0
    batch_timeout_s: float = 600.0
    memory_mb: int = 8192
    apart: bool = True
    on: str = "here"
