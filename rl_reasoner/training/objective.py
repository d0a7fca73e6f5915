"""The objective: what a named algorithm changes between the rewards and the loss.

`ObjectiveConfig` has the fields; `Objective` is the part of the trainer that reads them. trl's own
code computes the loss, and the advantages too wherever it has the algorithm. Ours are the
advantages of RLOO and REINFORCE++, the KL in the reward, the estimators of it besides k3, and the
soft overlong punishment, which is one reward more. The mathematics is in
rl_reasoner.training.advantages.
"""

import copy
import logging
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import torch
import trl
from torch import Tensor, nn
from trl.rewards import get_soft_overlong_punishment

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.recipe.algorithms import describe_algorithm, settings
from rl_reasoner.training import advantages as maths
from rl_reasoner.training.packed_forward import PASS

logger = logging.getLogger(__name__)


@dataclass
class ObjectiveConfig(trl.GRPOConfig):  # type: ignore[misc]
    """trl's `GRPOConfig` with algorithms by name, and what trl lacks of them."""

    algorithm: str | None = field(
        default=None,
        metadata={
            "help": "Sets the fields that make a named algorithm: grpo, dr_grpo, dapo, gspo, "
            "cispo, rloo, reinforce++, reinforce++-baseline."
        },
    )
    kl_estimator: str = field(
        default="k3",
        metadata={"help": "Estimator of the KL that beta weighs: k1, k2 or k3 (trl's)."},
    )
    kl_in: str = field(
        default="loss",
        metadata={"help": "Where beta times the KL stands: 'loss' (trl's) or 'reward'."},
    )
    overlong_share: float = field(
        default=0.0,
        metadata={
            "help": "Soft overlong punishment over this last share of max_completion_length "
            "(DAPO, equation 13: 0.2); 0 is off."
        },
    )
    dynamic_sampling: int = field(
        default=0,
        metadata={
            "help": "In at most this many rounds per batch, groups of equal rewards are replaced "
            "by those of other prompts (DAPO, equation 11); 0 is off."
        },
    )
    prompt_schedule: bool = field(
        default=False,
        metadata={"help": "Draw the prompts that are neither too easy nor too hard more often."},
    )

    def __new__(cls, *args: Any, **kwargs: Any) -> "ObjectiveConfig":
        """Remember what was said: `beta=0.0` is the default, but not a slip when it is written."""
        config: ObjectiveConfig = super().__new__(cls)
        names = [f.name for f in fields(cls) if f.init]
        said = {**dict(zip(names, args, strict=False)), **kwargs}
        if len(said) == len(names):  # from a parser, which passes every default too
            said = {name: value for name, value in said.items() if value != _default(cls, name)}
        config.__dict__["_said"] = said  # no field: a config is compared and saved without it
        return config

    def __post_init__(self) -> None:
        if self.algorithm is not None:
            scale = {True: "group", False: "none"}
            said = dict(self.__dict__["_said"])
            if "scale_rewards" in said:
                said["scale_rewards"] = scale.get(said["scale_rewards"], said["scale_rewards"])
            for name, value in settings(self.algorithm, said).items():
                setattr(self, name, value)
        _check(self)
        super().__post_init__()


def _default(kind: type[ObjectiveConfig], name: str) -> Any:
    found = next(f for f in fields(kind) if f.name == name)
    return found.default_factory() if found.default_factory is not MISSING else found.default


def _check(config: ObjectiveConfig) -> None:
    """Raises `UserError` for settings that do not go together, whoever set them."""
    if config.kl_estimator not in maths.ESTIMATORS:
        raise unknown("kl_estimator", str(config.kl_estimator), maths.ESTIMATORS)
    if config.kl_in not in ("loss", "reward"):
        raise unknown("kl_in", str(config.kl_in), ("loss", "reward"))
    if not 0.0 <= config.overlong_share <= 1.0:
        raise UserError(f"overlong_share is {config.overlong_share}; it is a share, from 0 to 1")
    if config.dynamic_sampling < 0:
        raise UserError(f"dynamic_sampling is {config.dynamic_sampling}; it is a number of rounds")
    k1_alone = config.kl_estimator == "k1" and not config.use_bias_correction_kl
    if config.beta and config.kl_in == "loss" and k1_alone:
        raise UserError(
            "kl_estimator 'k1' in the loss, without use_bias_correction_kl, has an expected "
            "gradient of zero: set use_bias_correction_kl=True, kl_in='reward' or another estimator"
        )
    apart = config.multi_objective_aggregation != "sum_then_normalize"
    if config.beta and config.kl_in == "reward" and apart:
        raise UserError(
            "kl_in='reward' takes the KL from the sum of the rewards: it cannot be combined with "
            f"multi_objective_aggregation={config.multi_objective_aggregation!r}"
        )


class Objective(trl.GRPOTrainer):  # type: ignore[misc]
    """trl's trainer with the fields of `ObjectiveConfig`; see the module's docstring."""

    beta: float

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: Any = None, *others: Any, **named: Any
    ) -> None:
        self._punishes = bool(getattr(args, "overlong_share", 0.0))
        if self._punishes:
            reward_funcs, args = _with_punishment(reward_funcs, args)
            if isinstance(processing := named.get("reward_processing_classes"), list):
                named["reward_processing_classes"] = [*processing, None]
        super().__init__(model, reward_funcs, args, *others, **named)
        self._algorithm: str | None = getattr(args, "algorithm", None)
        self._estimator: maths.Estimator = getattr(args, "kl_estimator", "k3")
        self._penalises = self.beta != 0.0 and getattr(args, "kl_in", "loss") == "reward"
        self._weighs = self.beta != 0.0 and not self._penalises
        self._rewards: Tensor  # (rows of all processes, reward functions) of the last batch
        self._logps: Tensor | None = None  # (B, T) of the loss that is being computed
        if self._algorithm:
            logger.info("%s", describe_algorithm(self._algorithm))

    # ----------------------------------------------------------------------------- the rewards

    def _kept_rewards(self, rewards: Tensor) -> Tensor:
        """The gathered rewards, kept; no row is scored by its length alone."""
        if self._punishes:
            rewards[:, -1] = rewards[:, -1].masked_fill(
                rewards[:, :-1].isnan().all(dim=1), torch.nan
            )
        self._rewards = rewards
        return rewards

    # -------------------------------------------------------------------------- the advantages

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        found = self._own_advantages(output)
        if found is not None:
            output["advantages"] = found
            shown = row_means(found, trained_tokens(output))
            everywhere = self.accelerator.gather(shown).tolist()
            logged = self._logs["advantages"]
            for _ in everywhere:
                logged.pop()
            logged.extend(everywhere)
        return output

    def _own_advantages(self, output: Mapping[str, Any]) -> Tensor | None:
        """(B,) or (B, T) advantages where trl's are not those of the algorithm, else None."""
        token_wise = self._algorithm in ("reinforce++", "reinforce++-baseline")
        if not (token_wise or self._penalises or self._algorithm == "rloo"):
            return None
        train = self.model.training
        size = self.num_generations if train else self.num_generations_eval
        rewards = maths.total_rewards(self._rewards, self.reward_weights.to(self._rewards.device))
        mask = trained_tokens(output)
        rows = mask.shape[0]
        here = slice(*(rows * (self.accelerator.process_index + i) for i in (0, 1)))
        penalty = self.beta * self._kl(output, mask) if self._penalises else torch.zeros_like(mask)
        if self._algorithm == "reinforce++":
            values = maths.returns_to_go(rewards[here], penalty, mask)
            return maths.whitened(values, mask, self._total)
        if token_wise:
            values = maths.group_centred(rewards, size)[here, None].expand_as(mask)
            return maths.whitened(values, mask, self._total)
        rewards = rewards - self.accelerator.gather((penalty * mask).sum(1))
        if self._algorithm == "rloo":
            return maths.leave_one_out(rewards, size)[here]
        return maths.group_relative(rewards, size, self.scale_rewards)[here]

    def _kl(self, output: Mapping[str, Any], mask: Tensor) -> Tensor:
        """(B, T) the KL estimate of each token under the policy that sampled it; logged."""
        old = output.get("old_per_token_logps")
        if old is None:
            ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
            attended = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
            with torch.no_grad():
                old, _, _ = self._get_per_token_logps_and_entropies(
                    self.model, ids, attended, mask.shape[1], self.args.per_device_train_batch_size
                )
        apart = (old - output["ref_per_token_logps"]).nan_to_num(
            nan=0.0
        )  # of a row to be taken out
        found = maths.kl_estimate(apart * mask, self._estimator)
        added, count = self._total(torch.stack([(found * mask).sum(), mask.sum()]))
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["kl"].append((added / count.clamp(min=1.0)).item())
        return found

    def _total(self, value: Tensor) -> Tensor:
        """`value` added up over the processes."""
        found: Tensor = self.accelerator.reduce(value, reduction="sum")
        return found

    # -------------------------------------------------------------------------------- the loss

    @property
    def _kl_in_loss(self) -> bool:
        """Whether a row without advantage has a loss all the same."""
        return self._weighs

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._logps = found[0] if self._weighs and self._estimator != "k3" else None
        return found

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """trl's loss; its KL term is ours where it is not k3 in the loss."""
        beta = self.beta
        if self._penalises or self._estimator != "k3":
            self.beta = 0.0  # no KL of trl's
        try:
            loss: Tensor = super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
        logps, self._logps = self._logps, None
        if logps is None and self._weighs and self._estimator != "k3":
            raise UserError(
                f"kl_estimator={self._estimator!r} is computed from the log-probabilities of "
                f"GRPOTrainer.{PASS}: call super() in {type(self).__name__}'s, or take 'k3'"
            )
        return loss if logps is None else loss + beta * self._kl_loss(logps, inputs)

    def _kl_loss(self, logps: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The KL term for log-probs (B, T), weighted as trl weighs its own."""
        mask = trained_tokens(inputs)
        kl = maths.kl_estimate(logps - inputs["ref_per_token_logps"], self._estimator)
        if self.args.use_bias_correction_kl:
            old = inputs.get("old_per_token_logps")
            log_ratio = logps - (logps.detach() if old is None else old)
            if self.importance_sampling_level == "sequence":
                log_ratio = (log_ratio * mask).sum(1, keepdim=True)
                log_ratio = log_ratio / mask.sum(1, keepdim=True).clamp(min=1.0)
            kl = kl * log_ratio.exp()
        added, count = self._total(torch.stack([(kl.detach() * mask).sum(), mask.sum()]))
        train = self.model.training
        self._metrics["train" if train else "eval"]["kl"].append(
            (added / count.clamp(min=1.0)).item()
        )
        accumulated = self.current_gradient_accumulation_steps if train else 1
        if self.loss_type == "dr_grpo":
            constant = self.max_completion_length
        else:  # of one optimizer step: `num_items_in_batch` spans the generation batch
            constant = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
            constant = constant / (self.args.steps_per_generation if train else 1)
        weights = maths.token_weights(self.loss_type, mask, constant)
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


def _with_punishment(reward_funcs: Any, args: ObjectiveConfig) -> tuple[list[Any], ObjectiveConfig]:
    """The reward functions and a config with the soft overlong punishment (DAPO, equation 13)."""
    longest = args.max_completion_length
    punishment = get_soft_overlong_punishment(longest, round(args.overlong_share * longest))
    punishment.__dict__["of_every_row"] = True  # whatever rewards the rows name
    given = [] if reward_funcs is None else reward_funcs
    functions = [*given] if isinstance(given, list) else [given]
    args = copy.copy(args)
    if args.reward_weights is not None:
        args.reward_weights = [*args.reward_weights, 1.0]
    return [*functions, punishment], args
