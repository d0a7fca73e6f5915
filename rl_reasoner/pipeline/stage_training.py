"""One stage's training: from its last whole checkpoint, or from its start, to its end.

What ends it early (a signal, a reward that keeps failing, bad gradients, a full disk) leaves a
checkpoint to resume from. The policy is trained in place; an adapter is merged at the end, so that
what is saved opens anywhere.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PrinterCallback

from rl_reasoner.distributed import processes
from rl_reasoner.distributed.sharding import (
    gathered_params_of,
    opened_whole,
    params_are_sharded,
)
from rl_reasoner.distributed.shards import is_sharded
from rl_reasoner.errors import RunStopped
from rl_reasoner.files import keep_rows_until
from rl_reasoner.hacking.meter import HackingMeter
from rl_reasoner.moe.experts import without_router_logits
from rl_reasoner.pipeline.recorder import Recorder
from rl_reasoner.pipeline.stage_trainers import Job, trainer_of
from rl_reasoner.policy.fp8.layers import in_fp8
from rl_reasoner.policy.lora import add_lora, merge_adapter
from rl_reasoner.policy.opening import open_policy
from rl_reasoner.policy.policy import Policy
from rl_reasoner.recipe.stages import GrpoStage
from rl_reasoner.report.dashboards import callbacks_of
from rl_reasoner.report.terminal import LiveView
from rl_reasoner.scoring.ledger import Ledger
from rl_reasoner.scoring.runner import give_up_all
from rl_reasoner.training.checkpointing.checkpoints import last_checkpoint
from rl_reasoner.training.checkpointing.faults import LastStep, disk_is_full, stopped_by_full_disk
from rl_reasoner.training.checkpointing.signals import StepGivenUp, Stop
from rl_reasoner.training.checkpointing.whole_checkpoints import Sealing, load_whole
from rl_reasoner.training.expert_balance import balanced


def train_stage(job: Job, view: LiveView, stop: Stop) -> None:
    """Train the policy of `job`, and save it to `policy/` in the job's folder.

    Raises what ends a run (see `train`); when a stop was asked for, returns with the training left
    at a checkpoint and nothing saved. Of several processes the main one writes.
    """
    policy, folder, stage = job.policy, job.folder, job.stage
    checkpoints = folder / "checkpoints"
    last = last_checkpoint(checkpoints, view.note) if processes.is_main() else None
    checkpoint, step = processes.broadcast(last) or (None, 0)
    if processes.is_main():
        for name in ("metrics.jsonl", "rollouts.jsonl"):
            keep_rows_until(folder / name, step)
        job.ledger = Ledger.open(folder, step)
        if isinstance(stage, GrpoStage) and job.recipe.hacking_meter.every and not job.is_control:
            job.meter = HackingMeter(folder, job.recipe, job.rows, job.rewards, step)
    run = job.recipe.run
    if job.recipe.policy.lora:
        add_lora(policy, job.recipe.policy.lora, run.seed)
    trainer = trainer_of(job)
    if job.on_trainer is not None:
        job.on_trainer(trainer)
    last_step = LastStep(trainer)
    trainer.add_callback(last_step)
    recorder = Recorder(job, trainer, view, stop)
    trainer.add_callback(recorder)
    dashboards = callbacks_of(run.report_to, view.note) if processes.is_main() else ()
    for dashboard in dashboards:
        trainer.add_callback(dashboard)
    trainer.add_callback(trainer.pop_callback(Sealing))  # behind what the others write
    trainer.remove_callback(PrinterCallback)  # metrics go to the recorder alone
    models = [policy.model, getattr(trainer, "ref_model", None)]
    with (
        ExitStack() as at_end,
        _faults(stop, last_step, checkpoints),
        _unmarked(policy.model),
        balanced(trainer, stage.freeze_router),
        in_fp8(job.placement.precision, run.fp8, job.placement.device, *models),
    ):
        for dashboard in dashboards:
            at_end.callback(dashboard.close)
        if checkpoint and not is_sharded(checkpoint):
            _load_weights(policy, checkpoint)
        recorder.make_up(step)
        trainer.checked = checkpoint
        if step < stage.steps:  # from its last step, trl would take one more
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        else:
            recorder.ended(step)
    if stop.asked:
        return
    _save(job, trainer)
    processes.wait()


def _save(job: Job, trainer: Any) -> None:
    """Write `policy/`, and the adapter beside it; the policy is plain and merged in all processes.

    A model that was sharded is opened anew: nobody held all of it.
    """
    policy, folder, lora = job.policy, job.folder, job.recipe.policy.lora
    shards = params_are_sharded(trainer)
    with gathered_params_of(trainer):
        if processes.is_main():
            policy.save(folder / ("adapter" if lora else "policy"))
    if shards:
        processes.wait()
        source = policy.source if lora else str(folder / "policy")
        with opened_whole():
            opened = open_policy(source, seed=job.recipe.run.seed, device=job.placement.device)
        merge_adapter(opened)
        policy.model = opened.model
        policy.source = str(folder / "policy")
        if lora:
            policy.model = PeftModel.from_pretrained(policy.model, folder / "adapter")
    if merge_adapter(policy) and processes.is_main():
        policy.save(folder / "policy")
    # the base of a later stage's adapter, wherever that is opened from
    policy.model.name_or_path = str((folder / "policy").absolute())


@contextmanager
def _faults(stop: Stop, last_step: LastStep, checkpoints: Path) -> Iterator[None]:
    """Signals and faults while a trainer trains: what ends a step early leaves a checkpoint."""
    stop.last_step = last_step
    try:
        try:
            yield
        except (RunStopped, StepGivenUp):
            stop.last_step = None  # from here on a signal stops at once
            give_up_all()  # a thread may be waiting for a reward
            last_step.save()
            raise
        finally:
            stop.last_step = None
    except Exception as error:
        if not disk_is_full(error):
            raise
        raise stopped_by_full_disk(checkpoints, error) from error


def _load_weights(policy: Policy, checkpoint: Path) -> None:
    """Put the weights of a checkpoint, an adapter's or a whole model's, into the policy's model."""
    if (checkpoint / "adapter_config.json").is_file():
        policy.model.load_adapter(str(checkpoint), "default", is_trainable=True)
    else:
        load_whole(checkpoint, policy.model)


@contextmanager
def _unmarked(model: Any) -> Iterator[None]:
    """Take off what trl leaves on a model; the next stage would wrap its own `forward` again."""
    try:
        yield
    finally:
        for module in model.modules():
            vars(module).pop("forward", None)
        without_router_logits(model)
