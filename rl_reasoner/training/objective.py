"""The objective: what a named algorithm changes between the rewards and the loss.

`Objective` is the part of the trainer that reads the fields of `GRPOConfig` for it. trl's own code
computes the loss, and the advantages too wherever it has the algorithm. Ours are the advantages of
RLOO, REINFORCE++, MaxRL, W-REINFORCE and ScaleRL, the weight of positive advantages, the KL in the
reward, the estimators of it besides k3, and the soft overlong punishment, which is one reward more.
The mathematics is in rl_reasoner.training.advantages.
"""

import copy
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from trl.rewards import get_soft_overlong_punishment

from rl_reasoner.errors import UserError
from rl_reasoner.recipe.algorithms import OWN_ADVANTAGES, REWARD_RANGES, describe_algorithm
from rl_reasoner.training import advantages as maths
from rl_reasoner.training.trl_internals import OLD_LOGPS, PASS, put_on

logger = logging.getLogger(__name__)
_ROUNDING = 1e-4  # of a total reward, a sum of float32


class Objective:
    """What of a trainer's objective trl lacks; see the module's docstring.

    `punishes`: whether the last reward is the one for length; `kl_in_reward`, `kl_in_loss`: where
    beta times the KL stands, if beta is not 0. With one in the loss, a row without advantage has a
    loss all the same.
    """

    estimator: maths.Estimator

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        args = trainer.args
        self.punishes = bool(getattr(args, "overlong_share", 0.0))
        self.estimator = getattr(args, "kl_estimator", "k3")
        self.kl_in_reward = trainer.beta != 0.0 and getattr(args, "kl_in", "loss") == "reward"
        self.kl_in_loss = trainer.beta != 0.0 and not self.kl_in_reward
        self._algorithm: str | None = getattr(args, "algorithm", None)
        self._positive: float = getattr(args, "positive_advantage_weight", 1.0)
        self._logps: Tensor | None = None  # (B, T) of the loss that is being computed
        if self._algorithm:
            logger.info("%s", describe_algorithm(self._algorithm))

    # ----------------------------------------------------------------------------- the rewards

    def not_by_length_alone(self, rewards: Tensor) -> Tensor:
        """The gathered rewards; no row is scored by its length alone."""
        if self.punishes:
            rewards[rewards[:, :-1].isnan().all(dim=1), -1] = torch.nan
        return rewards

    # -------------------------------------------------------------------------- the advantages

    def replace_advantages(self, output: dict[str, Any], rewards: Tensor) -> None:
        """Put the algorithm's advantages in the place of trl's, where they are not the same.

        `rewards` (rows of all processes, reward functions).
        """
        own = self._own_advantages(output, rewards)
        if self._positive != 1.0:
            own = maths.positive_weighed(
                output["advantages"] if own is None else own, self._positive
            )
        if own is None:
            return
        output["advantages"] = own
        shown = row_means(own, trained_tokens(output))
        everywhere = self.trainer.accelerator.gather(shown).tolist()
        self.trainer.internals.replace_logged_advantages(everywhere)

    def _own_advantages(self, output: dict[str, Any], rewards: Tensor) -> Tensor | None:
        """(B,) or (B, T) advantages where trl's are not those of the algorithm, else None."""
        token_wise = self._algorithm in ("reinforce++", "reinforce++-baseline")
        if not (self.kl_in_reward or self._algorithm in OWN_ADVANTAGES):
            return None
        trainer, accelerator = self.trainer, self.trainer.accelerator
        train = trainer.model.training
        size = trainer.num_generations if train else trainer.num_generations_eval
        rewards = maths.total_rewards(rewards, trainer.reward_weights.to(rewards.device))
        self._check_range(rewards)
        mask = trained_tokens(output)
        rows = mask.shape[0]
        here = slice(*(rows * (accelerator.process_index + i) for i in (0, 1)))
        penalty = torch.zeros_like(mask)
        if self.kl_in_reward:
            penalty = trainer.beta * self._kl(output, mask)
        if self._algorithm == "reinforce++":
            values = maths.returns_to_go(rewards[here], penalty, mask)
            return maths.whitened(values, mask, accelerator.reduce)
        if token_wise:
            values = maths.group_centred(rewards, size)[here, None].expand_as(mask)
            return maths.whitened(values, mask, accelerator.reduce)
        rewards = rewards - accelerator.gather((penalty * mask).sum(1))
        if self._algorithm == "rloo":
            return maths.leave_one_out(rewards, size)[here]
        if self._algorithm == "max_rl":
            return maths.over_group_mean(rewards, size)[here]
        if self._algorithm == "scalerl":
            return maths.prompt_averaged(rewards, accelerator.gather(mask.sum(1)), size)[here]
        if self._algorithm == "w_reinforce":
            return maths.without_baseline(rewards)[here]
        return maths.group_relative(rewards, size, trainer.scale_rewards)[here]

    def _check_range(self, rewards: Tensor) -> None:
        """Raise `UserError` for total rewards (N,) that the algorithm has no advantage for."""
        low, high = REWARD_RANGES.get(self._algorithm or "", (-torch.inf, torch.inf))
        # weights that come to 1 may sum to a little more: float32 rounds
        beyond = rewards[(rewards < low - _ROUNDING) | (rewards > high + _ROUNDING)].tolist()
        if beyond:
            most = "" if high == torch.inf else f" and at most {high:g}"
            raise UserError(
                f"algorithm {self._algorithm!r} takes rewards of at least {low:g}{most}, and a "
                f"completion has {beyond[0]:g}: change the rewards or their weights, or take "
                "another algorithm"
            )

    def _kl(self, output: dict[str, Any], mask: Tensor) -> Tensor:
        """(B, T) the KL estimate of each token under the policy that sampled it; logged."""
        trainer = self.trainer
        old = output.get(OLD_LOGPS)
        if old is None:
            ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
            attended = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
            size = trainer.args.per_device_train_batch_size
            with (
                torch.no_grad(),
                trainer.router_replay.routes_of(output),
                trainer.sampling_mask.of(output),
            ):
                one_pass = getattr(trainer, PASS)  # which may be the user's
                old = one_pass(trainer.model, ids, attended, mask.shape[1], size)[0]
        apart = old - output["ref_per_token_logps"]
        apart = apart.nan_to_num(nan=0.0)  # of a row to be taken out
        kl = maths.kl_estimate(apart * mask, self.estimator)
        self._log_kl(kl, mask)
        return kl

    def _log_kl(self, kl: Tensor, mask: Tensor) -> None:
        sums = torch.stack([(kl.detach() * mask).sum(), mask.sum()])
        added, count = self.trainer.accelerator.reduce(sums)  # over the processes
        self.trainer.internals.metrics["kl"].append((added / count.clamp(min=1.0)).item())

    # -------------------------------------------------------------------------------- the loss

    @property
    def _estimates(self) -> bool:
        """Whether the loss has a KL term that trl does not have."""
        return self.kl_in_loss and self.estimator != "k3"

    def saw(self, logps: Tensor) -> None:
        """The log-probs (B, T) of a pass."""
        self._logps = logps if self._estimates else None

    def without_trls_kl(self) -> AbstractContextManager[None]:
        """Inside, trl's loss has no KL term where it is ours, or in the reward."""
        ours = self.kl_in_reward or self.estimator != "k3"
        return put_on(self.trainer, "beta", 0.0) if ours else nullcontext()

    def added(self, loss: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """trl's loss with the KL term that is ours; logged."""
        logps, self._logps = self._logps, None
        if logps is not None:
            beta: float = self.trainer.beta
            return loss + beta * self._kl_loss(logps, inputs)
        if self._estimates:
            raise UserError(
                f"kl_estimator={self.estimator!r} is computed from the log-probabilities of "
                f"GRPOTrainer.{PASS}: call super() in {type(self.trainer).__name__}'s, or take 'k3'"
            )
        return loss

    def _kl_loss(self, logps: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The KL term for log-probs (B, T), weighted as trl weighs its own."""
        trainer = self.trainer
        mask = trained_tokens(inputs)
        kl = maths.kl_estimate(logps - inputs["ref_per_token_logps"], self.estimator)
        if trainer.args.use_bias_correction_kl:
            old = inputs.get(OLD_LOGPS)
            log_ratio = logps - (logps.detach() if old is None else old)
            if trainer.importance_sampling_level == "sequence":
                log_ratio = (log_ratio * mask).sum(1, keepdim=True)
                log_ratio = log_ratio / mask.sum(1, keepdim=True).clamp(min=1.0)
            kl = kl * log_ratio.exp()
        self._log_kl(kl, mask)
        train = trainer.model.training
        accumulated = trainer.current_gradient_accumulation_steps if train else 1
        if trainer.loss_type == "dr_grpo":
            constant = trainer.max_completion_length
        else:  # of one optimizer step: `num_items_in_batch` spans the generation batch
            items = inputs["num_items_in_batch"].clamp(min=1.0)
            constant = items / trainer.accelerator.num_processes
            constant = constant / (trainer.args.steps_per_generation if train else 1)
        weights = maths.token_weights(trainer.loss_type, mask, constant)
        return (kl * weights).sum() / accumulated


def trained_tokens(batch: Mapping[str, Any]) -> Tensor:
    """(B, T) float: the tokens that the policy is trained on."""
    mask: Tensor = batch["completion_mask"]
    return (mask * batch["tool_mask"] if "tool_mask" in batch else mask).float()


def row_means(values: Tensor, mask: Tensor) -> Tensor:
    """(B,) from (B,), or from (B, T) the means over `mask`."""
    if values.dim() == 1:
        return values
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1.0)


def with_punishment(
    reward_funcs: Any, args: Any, named: dict[str, Any]
) -> tuple[Any, Any, dict[str, Any]]:
    """A trainer's rewards, config and other arguments with the soft overlong punishment, if asked.

    DAPO (arXiv 2503.14476), equation 13.
    """
    if not getattr(args, "overlong_share", 0.0):
        return reward_funcs, args, named
    longest = args.max_completion_length
    punishment = get_soft_overlong_punishment(longest, round(args.overlong_share * longest))
    punishment.__dict__["of_every_row"] = True  # whatever rewards the rows name
    given = [] if reward_funcs is None else reward_funcs
    functions = [*given] if isinstance(given, list) else [given]
    args = copy.copy(args)
    if args.reward_weights is not None:
        args.reward_weights = [*args.reward_weights, 1.0]
    if isinstance(processing := named.get("reward_processing_classes"), list):
        named = {**named, "reward_processing_classes": [*processing, None]}
    return [*functions, punishment], args, named
