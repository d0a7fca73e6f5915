"""Tiny trainers in forked processes: one alone or several of one job, killed or not."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from datasets import Dataset
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from rl_reasoner import GRPOConfig, GRPOTrainer, open_policy
from support.places import free_port

FSDP: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"},
}
PROMPTS = [f"{a}+{b}=" for a in range(2) for b in range(4)]
Weights = dict[str, torch.Tensor]


def letters(completions: list[str], **columns: Any) -> list[float]:
    """How many different letters a completion has."""
    return [len(set(c)) / 8 for c in completions]


class Kill(TrainerCallback):  # type: ignore[misc]
    """Ends the job as `kill -9` does, before the optimizer's step number `at`."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.at and args.process_index == 0:
            os.killpg(0, signal.SIGKILL)


def build(
    policy: str,
    folder: Path,
    reward: Any = letters,
    prompts: int = 8,
    kind: type[GRPOTrainer] = GRPOTrainer,
    chats: bool = False,
    columns: dict[str, list[Any]] | None = None,
    stream: bool = False,
    peft_config: Any = None,
    **changes: Any,
) -> Any:
    """Two prompts a step and eight in the data: an epoch is four steps where not changed."""
    opened = open_policy(policy, seed=5, device="cpu")
    arguments = {
        "output_dir": str(folder),
        "max_steps": 7,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 6,
        "learning_rate": 3e-3,
        "save_steps": 2,
        "seed": 7,
        "use_cpu": True,
        "ddp_backend": "gloo" if "WORLD_SIZE" in os.environ else None,
        "bf16": False,
        "gradient_checkpointing": False,
        "isolate_rewards": False,
        "report_to": "none",
        "disable_tqdm": True,
        **changes,
    }
    texts: list[Any] = PROMPTS[:prompts]
    if chats:
        opened.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        texts = [[{"role": "user", "content": text}] for text in texts]
    data = Dataset.from_dict({"prompt": texts, **(columns or {})})
    return kind(
        opened.model,
        reward_funcs=reward,
        args=GRPOConfig(**arguments),
        train_dataset=data.to_iterable_dataset() if stream else data,
        eval_dataset=data if "eval_steps" in changes else None,
        processing_class=opened.tokenizer,
        peft_config=peft_config,
    )


def weights(trainer: GRPOTrainer) -> Weights:
    """The parameters as they are now, by name; of a sharded model whole, by all processes."""
    named = trainer.model.named_parameters()
    return {name: plain(p.detach()).clone() for name, p in named}


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with all its parts; a collective call where it is in parts."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def same(one: Weights, other: Weights) -> bool:
    """Whether two sets of weights are equal bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def trained(
    count: int,
    folder: Path,
    resume: bool = False,
    kill: int | None = None,
    policy: str = "scratch:dense-tiny",
    **changes: Any,
) -> Weights:
    """The final weights of a run of `count` processes in `folder`; nothing of one that is killed.

    With `kill` it ends before that step as by kill -9; with `resume` it goes on from a checkpoint.
    """

    def job(rank: int) -> None:
        trainer = build(policy, folder, **changes)
        if kill is not None:
            trainer.add_callback(Kill(kill))
        trainer.train(resume_from_checkpoint=resume)
        assert not resume or 0 < trainer._initial_global_step < changes["max_steps"]
        torch.save(weights(trainer), folder / f"{rank}.pt")

    ended = together(count, job)
    if kill is not None:
        assert ended == [signal.SIGKILL] * count
        return {}
    assert ended == [0] * count
    found: list[Weights] = [torch.load(folder / f"{rank}.pt") for rank in range(count)]
    assert all(same(found[0], other) for other in found), "the processes have different weights"
    return found[0]


def together(count: int, job: Callable[[int], None]) -> list[int]:
    """Run `job(rank)` in `count` processes of one group over gloo; how each ended.

    The numbers are those of `os.waitpid`: 0, or the signal that ended it.
    """
    torch.set_num_threads(1)  # a process with more of them cannot be forked safely
    port = free_port()
    group = 0
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.setpgid(0, group)
            _run(job, rank, count, port)
        group = group or child
        os.setpgid(child, group)
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children]


def _run(job: Callable[[int], None], rank: int, count: int, port: int) -> None:
    """The life of a child: it never returns."""
    code = 1
    try:
        PartialState._reset_state()
        AcceleratorState._reset_state(reset_partial_state=True)
        if count > 1:
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
            os.environ |= {name: str(number) for name, number in numbers.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
            os.environ["LOCAL_WORLD_SIZE"] = str(count)
        job(rank)
        if count > 1:
            torch.distributed.barrier()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def killed(policy: str, folder: Path, at: int, changes: dict[str, Any]) -> None:
    """Train in a process of its own until it is killed in step `at`."""

    def job(rank: int) -> None:
        trainer = build(policy, folder, **changes)
        trainer.add_callback(Kill(at))
        trainer.train()

    assert together(1, job) == [signal.SIGKILL]


EVAL: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8}


def children() -> set[int]:
    """The processes that this one has started, and those have."""
    found: set[int] = set()
    waiting = [os.getpid()]
    while waiting:
        pid = waiting.pop()
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                started = {int(number) for number in task.read_text().split()}
            except OSError:
                continue
            waiting += started - found
            found |= started
    return found


def state_of(pid: int) -> str:
    """The letter of a process's state; empty once it has ended, waited for or not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
    return state.strip("XZ")
