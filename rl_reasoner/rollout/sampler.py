"""Sampling outside the training step: for evaluation, chat and checks.

Sampling is the training step's engine (`rl_reasoner.rollout.engine`) where it can run the model,
else transformers' `generate` in batches of similar prompts; both within the engine's budgets. A
completion follows from the seed, its prompt (and row, where an environment plays it) and its index
among the prompt's samples, so that asking for more of them adds to those before; the global
generators are not touched, so that evaluating in the middle of training changes no training number.
Knows nothing of rewards.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from rl_reasoner.distributed import processes
from rl_reasoner.errors import UserError, first_line
from rl_reasoner.kernels.causal_lm import base_of
from rl_reasoner.kernels.packed_linear import ROUNDED
from rl_reasoner.language.thinking import CLOSE_THINK, NO_CHAIN, OPEN_THINK
from rl_reasoner.policy.policy import Policy
from rl_reasoner.recipe.tools import ToolSettings
from rl_reasoner.rollout import engine
from rl_reasoner.rollout.admission import LIVE_ROWS
from rl_reasoner.rollout.agreement import engine_runs, in_mode
from rl_reasoner.rollout.answering import turn_taker
from rl_reasoner.rollout.cache import SampleCache, SampleJob, Take, sample_through
from rl_reasoner.rollout.completions import OnToken
from rl_reasoner.rollout.drawing import generate_by_transformers
from rl_reasoner.rollout.episodes.environment_turns import (
    EnvironmentUse,
    Episodes,
    EpisodeTurns,
)
from rl_reasoner.rollout.long_prompts import declared_places, named_rows, places_of, too_long
from rl_reasoner.rollout.sampling_params import SamplingParams
from rl_reasoner.rollout.sampling_weights import sampled_weights
from rl_reasoner.rollout.tool_turns import ToolTurns, ToolUse
from rl_reasoner.rollout.turns import Given, policy_text
from rl_reasoner.types import Prompt, Rollout, Row

__all__ = ["Force", "eos_ids", "help_to_sample", "prompt_ids", "sample", "weights_hash"]

Force = Literal["chain", "direct"]
_PART = 256  # completions that a process draws, before what several drew is kept
_KEEP_S = 0.5  # between writes to the cache: each waits for the disk
_PLACES = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")
_PREFIXES = {"chain": OPEN_THINK, "direct": NO_CHAIN, None: ""}


def prompt_ids(
    policy: Policy, prompt: Prompt, prefix: str = "", schemas: list[dict[str, Any]] | None = None
) -> list[int]:
    """The token ids of a prompt followed by `prefix`, the start of the completion.

    `schemas` are those of tools, which the chat template tells the policy. Raises `UserError` for a
    chat that the policy's tokenizer has no template for, or that its template refuses.
    """
    tokenizer = policy.tokenizer
    if isinstance(prompt, str):
        return list(tokenizer(prompt + prefix)["input_ids"])
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {policy.source} has no chat template: "
            "choose the prompt template plain, r1 or a text with {problem} in it"
        )
    try:
        text = tokenizer.apply_chat_template(
            prompt, tools=schemas, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # a template may raise anything, and some know no system prompt
        roles = ", ".join(message["role"] for message in prompt)
        raise UserError(
            f"the chat template of {policy.source} refuses a chat of {roles} "
            f"({prompt[-1]['content']!r:.60}): {first_line(error)}"
        ) from error
    return list(tokenizer(text + prefix, add_special_tokens=False)["input_ids"])


def refused_prompt(
    prompts: Sequence[Prompt], policy: Policy, tools: ToolSettings | None = None
) -> tuple[int, str] | None:
    """The index of the first prompt whose chat the policy's template refuses, and why; else None.

    Templates look at roles: some know no system prompt, or want user and assistant in turn. So one
    chat of each order of roles is tried.
    """
    tried: set[tuple[str, ...]] = set()
    for index, prompt in enumerate(prompts):
        roles = () if isinstance(prompt, str) else tuple(message["role"] for message in prompt)
        if roles and roles not in tried:
            tried.add(roles)
            try:
                prompt_ids(policy, prompt, schemas=ToolUse.told(tools, policy.tokenizer))
            except UserError as error:
                return index, str(error)
    return None


def eos_ids(policy: Policy) -> list[int]:
    """Every token id that ends a completion: the tokenizer's, and the model's own ones."""
    declared = policy.model.generation_config.eos_token_id
    others = [] if declared is None else [declared] if isinstance(declared, int) else declared
    return list(dict.fromkeys([policy.tokenizer.eos_token_id, *others]))


def weights_hash(policy: Policy) -> str:
    """SHA-256 over weights, config and tokenizer: all that a completion depends on but its prompt.

    The settings of an adapter (its scale, say) count as config.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(policy.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(memoryview(flat.numpy()))
    for name, adapter in sorted(getattr(policy.model, "peft_config", {}).items()):
        settings = {
            key: str(value) for key, value in adapter.to_dict().items() if key not in _PLACES
        }
        digest.update(f"{name} {json.dumps(settings, sort_keys=True)}\n".encode())
    config = policy.model.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "dtype", "use_cache"):
        config.pop(name, None)
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(policy.tokenizer.backend_tokenizer.to_str().encode())
    return digest.hexdigest()


def sample(
    policy: Policy,
    prompts: Sequence[Prompt],
    *,
    samples: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_tokens: int = 256,
    seed: int = 0,
    force: Force | None = None,
    weights: str = "own",
    progress: Callable[[int], None] | None = None,
    cache: SampleCache | None = None,
    on_token: OnToken | None = None,
    tools: ToolSettings | None = None,
    episodes: Episodes | None = None,
) -> list[list[Rollout]]:
    """Sample `samples` completions for each prompt; greedy (all the same one) at temperature 0.

    `top_p` and `top_k` (0: none) cut off unlikely tokens, as in transformers. `force` "chain"
    begins each completion with an open `<think>` that may not close at once; "direct" begins it
    with an empty one. What was forced is part of the returned text. `weights`: those that are
    sampled from (`rl_reasoner.rollout.sampling_weights`). `progress` is called with the number of
    completions done since the last call. What `cache` holds is not drawn again, what is drawn is
    kept in it as it gets done. The other processes of a job draw, too, where the policy is shared
    with them (`distributed.processes`). `on_token` is called with (number of the completion in
    this call, token id) as each token is drawn. `tools` may be called in the middle of a
    completion, `episodes` say which environment answers it; then the engine has to run the policy.
    Raises `UserError`.
    """
    cuts = (top_p, top_k) if temperature else (1.0, 0)
    asked = _Asked(temperature, cuts, max_tokens, seed, force, weights, tools, episodes)
    drawer = _Drawer(policy, asked)
    schemas = drawer.use.schemas if drawer.use else None
    ids = [prompt_ids(policy, prompt, _PREFIXES[force], schemas) for prompt in prompts]
    _check_places(policy, prompts, ids, max_tokens)

    def draw(jobs: Sequence[SampleJob], take: Take) -> None:
        jobs = sorted(jobs, key=lambda job: len(ids[job[0]]))
        if on_token is None and processes.is_shared(policy):
            _draw_together(drawer, jobs, ids, take)
        else:
            drawer.draw(jobs, dict(enumerate(ids)), take, on_token)

    with in_mode(policy.model, training=False), torch.no_grad():
        return sample_through(
            cache,
            len(ids),
            samples,
            not temperature,
            lambda cache, job: drawer.key(cache, ids[job[0]], job),
            draw,
            progress,
        )


def _check_places(
    policy: Policy, prompts: Sequence[Prompt], ids: Sequence[list[int]], longest: int
) -> None:
    """Raise `UserError` for prompts that do not fit into a policy's table of positions."""
    places = places_of(policy.model)
    long = [(i, len(row)) for i, row in enumerate(ids) if len(row) + longest > (places or math.inf)]
    if long:
        raise UserError(
            f"{named_rows(long, 'prompt', prompts)}; with a completion of up to {longest} that is "
            f"more than the {places} positions of {policy.source}: use a smaller "
            "max_tokens, or shorter prompts"
        )


def long_rows(
    prompts: Sequence[Prompt],
    rows: Sequence[Row],
    longest: int,
    policy: Policy,
    tools: ToolSettings | None = None,
) -> list[tuple[int, int]]:
    """(index, tokens) of the prompts that do not fit, with their completions, into a policy.

    `rows` may have a shorter completion of their own (`max_tokens`). Prompts may tell of `tools`.
    """
    places = declared_places(policy.model)
    if places is None:
        return []
    budgets = [places - min(row.get("max_tokens") or longest, longest) for row in rows]
    schemas = ToolUse.told(tools, policy.tokenizer)

    def count(some: list[Prompt]) -> list[int]:
        return [len(prompt_ids(policy, prompt, schemas=schemas)) for prompt in some]

    return [*too_long(prompts, count, budgets)]


def without_long(
    prompts: Sequence[Prompt],
    rows: Sequence[Row],
    longest: int,
    policy: Policy,
    tools: ToolSettings | None = None,
) -> list[Row]:
    """The rows that fit; see `long_rows`."""
    left = {index for index, _ in long_rows(prompts, rows, longest, policy, tools)}
    return [row for index, row in enumerate(rows) if index not in left]


@dataclass(frozen=True)
class _Episodes:
    """The environment that answers, and the row of each prompt."""

    use: EnvironmentUse
    rows: Sequence[Row]

    @classmethod
    def of(cls, episodes: Episodes, policy: Policy) -> "_Episodes":
        use = EnvironmentUse.of(episodes.settings, policy.tokenizer, episodes.template)
        return cls(use, episodes.rows)


@dataclass(frozen=True)
class _Asked:
    """How completions are drawn, in any process: arguments of `sample`."""

    temperature: float
    cuts: tuple[float, int]
    max_tokens: int
    seed: int
    force: Force | None
    weights: str
    tools: ToolSettings | None
    episodes: Episodes | None


_Request = tuple[_Asked, dict[int, list[int]]]  # how, and the prompts' token ids by number


def _draw_together(
    drawer: "_Drawer", jobs: Sequence[SampleJob], ids: Sequence[list[int]], take: Take
) -> None:
    """Draw `jobs` with the other processes of the job.

    `take` gets what this one draws as it ends, each other process's part when that is done.
    """

    def own(request: _Request, part: Sequence[SampleJob]) -> dict[SampleJob, Rollout]:
        drawer.draw(part, request[1], take)
        return {}

    at_once = _PART * processes.world_size()
    for first in range(0, len(jobs), at_once):
        some = jobs[first : first + at_once]
        request = drawer.asked, {index: ids[index] for index, _ in some}
        for drawn in processes.share(request, some, own):
            take(drawn)


def help_to_sample(policy: Policy) -> None:
    """Draw this process's part of what the main one samples from `policy`, which it has shared."""

    def draw(request: _Request, part: Sequence[SampleJob]) -> dict[SampleJob, Rollout]:
        found: dict[SampleJob, Rollout] = {}
        _Drawer(policy, request[0]).draw(part, request[1], found.update)
        return found

    with in_mode(policy.model, training=False), torch.no_grad():
        processes.help_with(draw)


class _Drawer:
    """Draws completions of one policy with one set of sampling parameters."""

    def __init__(self, policy: Policy, asked: _Asked) -> None:
        self.policy, self.asked = policy, asked
        tools, episodes, temperature = asked.tools, asked.episodes, asked.temperature
        self.played = _Episodes.of(episodes, policy) if episodes else None
        self.use = ToolUse.of(tools, policy.tokenizer) if tools else None
        self.model = base_of(policy.model)  # an adapter lies in the layers of its base
        self.seed = asked.seed
        self.prefix = _PREFIXES[asked.force]
        closing = policy.tokenizer(CLOSE_THINK, add_special_tokens=False)["input_ids"][:1]
        self.sampling = SamplingParams(
            max_tokens=asked.max_tokens,
            ends=tuple(eos_ids(policy)),
            temperature=temperature,
            top_p=asked.cuts[0],
            top_k=asked.cuts[1],
            begin_suppress=tuple(closing) if asked.force == "chain" else (),
            weights=ROUNDED.get(sampled_weights(self.model, asked.weights, "weights")),
        )
        self.by_engine = engine_runs(self.model)
        if (self.use or self.played) and not self.by_engine:
            what = "tools are" if self.use else "an environment is"
            raise UserError(f"{what} for policies that our engine samples: not {policy.source}")

    def key(self, cache: SampleCache, ids: Sequence[int], job: SampleJob) -> str:
        """The key of a completion in the cache. Greedy ones have no seed."""
        settings = {
            "temperature": self.sampling.temperature,
            "max_tokens": self.sampling.max_tokens,
            "ends": self.sampling.ends,
            "prefix": self.prefix,
            "begin_suppress": self.sampling.begin_suppress,
            "sampler": "engine" if self.by_engine else "generate",
        }
        if self.sampling.top_p < 1:
            settings["top_p"] = self.sampling.top_p
        if self.sampling.top_k:
            settings["top_k"] = self.sampling.top_k
        if self.sampling.weights is not None:
            settings["weights"] = str(self.sampling.weights)
        if self.use is not None:
            settings["tools"] = self.use.identity()
        if self.played is not None:
            settings["environment"] = self.played.use.identity()
            settings["row"] = self._row(job[0])
            settings["drawn"] = "by row"  # what was kept before was drawn by the prompt alone
        if self.use or self.played:  # what was kept before does not say what the policy wrote
            settings["policy_text"] = True
        seed = self.seed if self.sampling.temperature else None
        return cache.key([*ids], settings, seed, job[1])

    def draw(
        self,
        jobs: Sequence[SampleJob],
        ids: Mapping[int, list[int]],
        take: Take,
        on_token: OnToken | None = None,
    ) -> None:
        """Draw the completions of `jobs`, sorted by prompt length; `take` gets them as they end."""
        if not jobs:
            return
        kept = _Kept(take)
        if self.by_engine:

            def finished(rows: list[tuple[int, list[int]]]) -> None:
                done = {}
                for row, tokens in rows:
                    found = self._rollout(jobs[row], tokens)
                    done[jobs[row]] = self._with_turns(found, turns, row, tokens)
                kept.add(done)

            prompts, keys = [ids[index] for index, _ in jobs], self._keys(jobs, ids)
            with self._turns(jobs) as turns:
                engine.generate(
                    self.model,
                    prompts,
                    keys,
                    self.sampling,
                    on_finished=finished,
                    on_token=on_token,
                    turns=turns,
                )
        else:
            for batch in self._batches(jobs, ids):
                drawn = generate_by_transformers(
                    self.policy.model,
                    [ids[index] for index, _ in batch],
                    self._keys(batch, ids),
                    self.sampling,
                    self.policy.tokenizer.pad_token_id,
                    on_token,
                )
                done = zip(batch, drawn, strict=True)
                kept.add({job: self._rollout(job, one.ids) for job, one in done})
        kept.write()

    def _turns(
        self, jobs: Sequence[SampleJob]
    ) -> AbstractContextManager[ToolTurns | EpisodeTurns | None]:
        """What answers the completions of `jobs` in their turns."""
        played = self.played
        rows = [] if played is None else [played.rows[index] for index, _ in jobs]
        by = self.use if played is None else played.use
        return turn_taker(by, rows, len(jobs), self.sampling.ends)

    def _with_turns(
        self, rollout: Rollout, turns: ToolTurns | EpisodeTurns | None, row: int, ids: list[int]
    ) -> Rollout:
        """A completion with what tools or an environment made of it."""
        if turns is None:
            return rollout
        given: Sequence[Given]
        if isinstance(turns, EpisodeTurns):
            record = turns.record(row, ids)  # cut off is what is not done
            rollout = replace(rollout, truncated=record.truncated, episode=record.told())
            given = record.turns
        else:
            given = turns.events(row, ids)
        own = self.prefix + policy_text(self.policy.tokenizer, ids, given)
        return rollout if own == rollout.text else replace(rollout, policy_text=own)

    def _keys(
        self, jobs: Sequence[SampleJob], ids: Mapping[int, list[int]]
    ) -> list[tuple[int, ...]]:
        """The seed, the number of the sample, its prompt, and its row where that is played."""
        keys = [(self.seed, number, *_numbers(ids[index])) for index, number in jobs]
        if self.played is None:
            return keys
        # an environment may ask the same of all its rows, which are problems of their own
        pairs = zip(keys, jobs, strict=True)
        return [(*key, *_numbers(self._row(index).encode())) for key, (index, _) in pairs]

    def _row(self, index: int) -> str:
        """The row that a prompt's episodes are played with, as text."""
        assert self.played is not None
        return json.dumps(self.played.rows[index], sort_keys=True, default=str)

    def _batches(
        self, jobs: Sequence[SampleJob], ids: Mapping[int, list[int]]
    ) -> Iterator[Sequence[SampleJob]]:
        """`jobs`, sorted by prompt length, in batches within the engine's budgets."""
        budget, first = engine.cache_budget(self.model), 0
        while first < len(jobs):
            last = first + 1
            while last < len(jobs) and last - first < LIVE_ROWS:
                width = len(ids[jobs[last][0]]) + self.sampling.max_tokens
                if (last + 1 - first) * width > budget:
                    break
                last += 1
            yield jobs[first:last]
            first = last

    def _rollout(self, job: SampleJob, ids: list[int]) -> Rollout:
        text = self.policy.tokenizer.decode(ids, skip_special_tokens=True)
        full = self.use is not None or len(ids) == self.sampling.max_tokens
        truncated = full and ids[-1] not in self.sampling.ends
        return Rollout(self.prefix + text, len(ids), truncated)


class _Kept:
    """Completions on their way to the cache, which is written to from time to time."""

    def __init__(self, take: Take) -> None:
        self.take = take
        self.waiting: dict[SampleJob, Rollout] = {}
        self.written = time.monotonic()

    def add(self, drawn: Mapping[SampleJob, Rollout]) -> None:
        self.waiting.update(drawn)
        if time.monotonic() - self.written > _KEEP_S:
            self.write()

    def write(self) -> None:
        if self.waiting:
            self.take(self.waiting)
        self.waiting, self.written = {}, time.monotonic()


def _numbers(ids: Sequence[int]) -> tuple[int, ...]:
    """Hash a sequence to two numbers below 2^32."""
    digest = hashlib.sha256(json.dumps([*ids]).encode()).digest()
    return int.from_bytes(digest[:4]), int.from_bytes(digest[4:8])
