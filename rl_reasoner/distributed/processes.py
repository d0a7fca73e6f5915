"""Several processes for one run: who they are, how they are started, how they end.

A process finds out from its environment that it is one of several (`RANK`, `WORLD_SIZE`), so
`torchrun`, `accelerate launch` and `rl-reasoner train --launch` all do. The first process makes the
run's folder, evaluates, logs and writes; the others wait for it as long as it takes, in a process
group of their own that knows no time limit. `start` puts torch's launcher (or accelerate's, for a
file of its settings) underneath and says once, in words, which process ended a job. torch is
imported when there are several processes, not before.
"""

import atexit
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from rl_reasoner.distributed.threads import share_cores
from rl_reasoner.errors import RunStopped, UserError

T = TypeVar("T")
LOST = 75
"""Exit code of a process whose job lost another one: the work failed, and not here."""
_NOTES = "RL_REASONER_JOB"  # the file in which the first process tells its launcher of the run
_PATIENCE = timedelta(days=365)


def count() -> int:
    """How many processes the job has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def first() -> bool:
    """Whether this process is the one that makes folders, evaluates and writes."""
    return rank() == 0


def speaks() -> bool:
    """Whether this process tells mistakes: one on every machine does."""
    return count() == 1 or os.environ.get("LOCAL_RANK", "0") == "0"


class JobEnded(RunStopped):
    """A process of the job was killed, and with it the run."""

    title = "the job ended"


# ---------------------------------------------------------------------------------- together


def join(device: str) -> None:
    """Meet the other processes, on `device` ("cpu" or "cuda"); nothing where there are none."""
    import torch

    if count() == 1 or torch.distributed.is_initialized():
        return
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    else:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    torch.distributed.init_process_group("gloo" if device == "cpu" else "cuda:nccl,cpu:gloo")
    _patient()
    if not first():
        logging.getLogger("rl_reasoner").setLevel(logging.ERROR)


@cache
def _patient() -> Any:
    import torch

    return torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)


def wait() -> None:
    """Wait until all processes have come here, as long as it takes."""
    if count() > 1:
        import torch

        torch.distributed.barrier(group=_patient())


def share(value: T) -> T:
    """The first process's `value`, in all of them; waits for it as long as it takes."""
    if count() == 1:
        return value
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box, src=0, group=_patient())
    return box[0]


def told(folder: Path) -> None:
    """Tell the launcher where the run is, so that it can say how to go on."""
    if first() and (file := os.environ.get(_NOTES)):
        Path(file).write_text(str(folder), encoding="utf-8")


def lost(error: BaseException) -> bool:
    """Whether `error` says that another process of the job has ended."""
    if count() == 1:
        return False
    import torch

    said = str(error)
    known = ("gloo", "onnection closed by peer", "onnection reset by peer", "Broken pipe")
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(part in said for part in known)
    )


def watched() -> bool:
    """Whether a launcher of ours says which process ended the job."""
    return _NOTES in os.environ


def joined() -> bool:
    """Whether this process has met others."""
    torch = sys.modules.get("torch")
    return count() > 1 and torch is not None and bool(torch.distributed.is_initialized())


def leave(code: int) -> NoReturn:
    """End this process of several: what is registered for the end is done, the rest is left.

    Threads of gloo abort a process whose interpreter ends before them, even after the group is
    destroyed, while anything (DistributedDataParallel) still holds it.
    """
    if code == 0:
        with suppress(RuntimeError):  # another one failed: it says so
            wait()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# ------------------------------------------------------------------------------ the launcher


def start(how: str, arguments: Sequence[str]) -> int:
    """Run `rl-reasoner ARGUMENTS` in several processes; the exit code.

    `how`: a number of processes on this machine, or the file of an `accelerate config`.
    Raises `UserError` where it is neither, `JobEnded` where a process was killed.
    """
    if not how.isdigit() and not Path(how).is_file():
        raise UserError(
            f"--launch {how}: a number of processes, or a file of accelerate's settings"
        )
    if how.isdigit() and int(how) < 1:
        raise UserError("--launch 0: there must be at least one process")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="rl-reasoner-") as notes:
        file = Path(notes) / "run"
        os.environ[_NOTES] = str(file)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # advice, once in every process
        try:
            _launched(how, ["rl_reasoner.cli", *arguments])
        except SignalException as signalled:
            return 130 if signalled.sigval in (signal.SIGINT, signal.SIGTERM) else 1
        except ChildFailedError as failed:
            folder = file.read_text(encoding="utf-8") if file.is_file() else ""
            ends = {number: failure.exitcode for number, failure in failed.failures.items()}
            return _code_of(ends, folder)
        finally:
            del os.environ[_NOTES]
    return 0


def _launched(how: str, command: Sequence[str]) -> None:
    """Run the module in `command` under torch's launcher; raises its `ChildFailedError`."""
    if how.isdigit():
        import torch.distributed.run

        runner: Any = torch.distributed.run

        share_cores(int(how))
        given = ["--standalone", f"--nproc-per-node={how}", "--module", *command]
        runner.run(runner.parse_args(given))
        return
    from accelerate.commands.launch import launch_command, launch_command_parser

    given = ["--config_file", how, "--module", *command]
    launch_command(launch_command_parser().parse_args(given))


def _code_of(ends: dict[int, int], folder: str) -> int:
    """The job's exit code, from those of its processes that failed: they have said why.

    Raises `JobEnded` where one was killed and could not.
    """
    own = {number: code for number, code in ends.items() if code != LOST}
    killed = {n: -code for n, code in own.items() if code < 0 and -code != signal.SIGTERM}
    if not killed:
        codes = [code for code in own.values() if code > 0]
        return codes[0] if codes else 1
    number, cause = min(killed.items())
    ended = JobEnded(f"process {number} was killed by {signal.Signals(cause).name}")
    ended.folder = folder
    raise ended


# ------------------------------------------------------------------------------ the settings

PARALLEL = ("auto", "ddp", "fsdp", "zero2", "zero3")


def trainer_arguments(parallel: str) -> dict[str, Any]:
    """Arguments of a transformers trainer for `parallel`; nothing of them for one process.

    "auto" is what the launcher's settings say, and DDP where they say nothing.
    """
    if count() == 1 or parallel in ("auto", "ddp"):
        return {}
    if parallel == "fsdp":
        return {
            "fsdp": True,
            "fsdp_config": {
                "version": 2,
                "reshard_after_forward": True,
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "state_dict_type": "SHARDED_STATE_DICT",
            },
        }
    return {"deepspeed": deepspeed_settings(int(parallel.removeprefix("zero")))}


def deepspeed_settings(stage: int) -> dict[str, Any]:
    """DeepSpeed's configuration for ZeRO stage 2 or 3; "auto" is filled in by transformers."""
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "reduce_bucket_size": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    batch = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        **dict.fromkeys(batch, "auto"),
    }


def share_of(count_of_all: int, what: str, unit: str = "row") -> int:
    """How many of a step's rows or groups are a process's.

    Raises `UserError` where they do not divide.
    """
    if count_of_all % count():
        never = ", and a group is never split" if unit == "group" else ""
        raise UserError(
            f"{what} is not a multiple of the {count()} processes: each takes the same number of "
            f"{unit}s a step{never}"
        )
    return count_of_all // count()
