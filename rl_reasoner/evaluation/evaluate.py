"""Evaluation: a policy's completions on sets of problems, judged, with figures and their intervals.

A set may be evaluated in several modes, shown behind its name: greedy (no suffix), `@sampled`,
`@chain-forced`, `@direct-forced`; `@clean` is the part of a set that no training row overlaps.
Sampling is `rollout`, judging `judging`, figures are `metrics`; what a result was measured with is
in its `manifest`. Knows nothing of training; torch is imported when something is sampled, not
before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rl_reasoner.dataset.rows import load_rows
from rl_reasoner.dataset.sets import find_set, set_data
from rl_reasoner.dataset.templates import prompt_of, with_system
from rl_reasoner.distributed.threads import Threads
from rl_reasoner.environments.environment import OPENED
from rl_reasoner.errors import UserError, unknown
from rl_reasoner.evaluation.judging import Judge, as_given
from rl_reasoner.evaluation.labels import CLEAN, MODES, Mode, label_of, split_label
from rl_reasoner.evaluation.manifest import digest_of
from rl_reasoner.evaluation.metrics import compute_figures
from rl_reasoner.evaluation.result import EvalResult
from rl_reasoner.foreign import mapping
from rl_reasoner.recipe.data import FileData
from rl_reasoner.recipe.environment import EnvironmentSettings
from rl_reasoner.recipe.recipe import EvalOverrides, Evals, Recipe
from rl_reasoner.recipe.tools import ToolSettings
from rl_reasoner.rollout.cache import SampleCache
from rl_reasoner.rollout.episodes.environment_turns import Episodes
from rl_reasoner.rollout.episodes.opening import open_rows
from rl_reasoner.rollout.server import ServedPolicy
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.trust import untyped
from rl_reasoner.types import Prompt, Row

if TYPE_CHECKING:
    from rl_reasoner.policy.policy import Policy

Progress = Callable[[str, int, int], None]  # set, done, of
FORCES: Mapping[str, Literal["chain", "direct"] | None] = {
    "greedy": None,
    "sampled": None,
    "chain-forced": "chain",
    "direct-forced": "direct",
}


def evaluate(
    policy: "Policy | ServedPolicy | str | Path",
    sets: Sequence[str | Path | FileData] | str | Path,
    samples: int = 1,
    seed: int = 0,
    *,
    temperature: float | None = None,
    max_tokens: int = 256,
    template: str = "auto",
    system: str | None = None,
    asked: Mapping[str, EvalOverrides] | None = None,
    limit: int | None = None,
    reward: str | None = None,
    reward_options: Mapping[str, Any] | None = None,
    modes: Sequence[Mode] | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
    trained_on: Sequence[Row] | None = None,
    weights: str = "own",
    tools: ToolSettings | None = None,
    environment: EnvironmentSettings | None = None,
) -> EvalResult:
    """Sample and score completions of `policy` (or of the one its name opens) on `sets`, or on one.

    A set is the name of one that is here, a file or a hub id, or a `FileData` with its columns. One
    sample a problem is greedy, several are drawn at `temperature` (default 1.0). `asked` has the
    sets with a template or budget of their own; `system` is the system prompt of chats whose rows
    have none. `reward` judges; by default the one that each row says itself (`judging.judge_of`).
    `modes` asks for several passes, each with an entry of its own; with it, `samples` counts for
    the mode "sampled". `cache` is a folder that keeps what was drawn (see `rollout.cache`).
    `trained_on`: rows that the policy was trained on; overlaps are counted, the rest is `@clean`.
    `weights`: bfloat16 and int8 round them, auto may. `tools` may be called in it, an `environment`
    answers its turns and judges where no reward does. Raises `UserError`.
    """
    _check(samples, modes or (), temperature, limit)
    if tools and environment:
        raise UserError("tools and an environment in one evaluation are not there yet: no tools")
    wanted = _by_name([sets] if isinstance(sets, str | Path) else sets)
    check_judge(reward, reward_options)
    from rl_reasoner.policy.opening import open_policy

    opened = open_policy(policy) if isinstance(policy, str | Path) else policy
    if temperature is None:
        temperature = 1.0 if samples > 1 or modes else 0.0
    settings: dict[str, Any] = {"seed": seed, "temperature": temperature, "max_tokens": max_tokens}
    settings |= {"template": template, "reward": reward or "by the rows"}
    settings |= {"reward": "environment"} if environment and not reward else {}
    with _threads(opened):
        weights = _drawn_from(opened, weights)
        settings |= _optional_settings(system, reward_options, asked, weights, tools, environment)
        result = EvalResult(opened.source, settings=settings)
        session = _Session(opened, result, samples, temperature, modes or (), progress)
        session.keep(cache)
        for name, data in wanted.items():
            given = load_rows(data)[:limit]
            rows = with_system(open_rows(environment, given, seed), system)
            session.opened = [digest_of(row) for row in given] if environment else ()
            session.set(name, data, rows, trained_on)
        session.finish()
    return result


def _by_name(sets: Sequence[str | Path | FileData]) -> dict[str, FileData]:
    """Each set by the name that its figures have; raises `UserError` where two have the same."""
    found: dict[str, FileData] = {}
    for which in sets:
        if isinstance(which, FileData):
            name, data = which.path, which
        else:
            name, data = str(which), set_data(str(which))
        if found.setdefault(name, data) != data:
            raise UserError(
                f"two sets are called {name}, with other columns or splits: evaluate them apart"
            )
    return found


def _optional_settings(
    system: str | None,
    reward_options: Mapping[str, Any] | None,
    asked: Mapping[str, EvalOverrides] | None,
    weights: str,
    tools: ToolSettings | None,
    environment: EnvironmentSettings | None,
) -> dict[str, Any]:
    """The settings that a result names only where they are not the default."""
    return {
        **({"system": system} if system else {}),
        **({"reward_options": dict(reward_options)} if reward_options else {}),
        **({"asked": {k: v.model_dump() for k, v in asked.items()}} if asked else {}),
        **({"weights": weights} if weights != "own" else {}),
        **({"tools": tools.model_dump(mode="json")} if tools else {}),
        **({"environment": environment.model_dump(mode="json")} if environment else {}),
    }


def _drawn_from(policy: "Policy | ServedPolicy", wanted: str) -> str:
    """The weights that completions are drawn from where `wanted` are; a result names them."""
    from rl_reasoner.rollout.sampling_weights import sampled_weights

    if not isinstance(policy, ServedPolicy):
        return sampled_weights(policy.model, wanted, "weights")
    if wanted not in ("own", "auto"):
        raise UserError(f"weights is {wanted}, but a server has weights of its own: leave it out")
    return "own"


@contextmanager
def _threads(policy: "Policy | ServedPolicy") -> Iterator[None]:
    """Set the number of threads that suits the policy on this machine; a server has its own."""
    if isinstance(policy, ServedPolicy):
        yield
        return
    with Threads() as threads:
        threads.suit(policy.model)
        yield


def check_judge(reward: str | None, options: Mapping[str, Any] | None) -> None:
    """Raise `UserError` if the reward that is to judge cannot be loaded with `options`."""
    if reward is not None:
        load_reward(reward, options or {})
    elif options:
        given = ", ".join(options)
        raise UserError(
            f"options of a reward are given ({given}), but not the reward they are for: "
            "name it, too (reward; in a shell --reward math_answer)"
        )


def check_sets(
    sets: Sequence[str | Path | FileData],
    reward: str | None,
    options: Mapping[str, Any] | None,
    limit: int | None = None,
) -> None:
    """Raise `UserError` if rows of a set that is here lack what judges them; opens no policy.

    Left out are sets that are on a hub, and those whose bad rows are told when they are skipped.
    """
    for name, data in _by_name(sets).items():
        if data.on_bad_row == "stop" and find_set(data.path) is not None:
            _judge(name, load_rows(data)[:limit], reward, options)


def _judge(
    name: str, rows: Sequence[Row], reward: str | None, options: Mapping[str, Any] | None
) -> Judge:
    """The judge of the set's rows; a `UserError` names the set."""
    try:
        return Judge(rows, reward, options)
    except UserError as error:
        raise UserError(*(f"{name}: {message}" for message in error.messages)) from error


def _check(
    samples: int, modes: Sequence[Mode], temperature: float | None, limit: int | None
) -> None:
    for name, count in (("samples", samples), ("limit", limit)):
        if count is not None and count < 1:
            raise UserError(f"{name} is {count}; it must be at least 1")
    if samples > 1 and temperature == 0:
        raise UserError(f"at temperature 0 all {samples} samples would be the same: ask for 1")
    for mode in modes:
        if mode not in MODES:
            raise unknown("mode", mode, MODES)


@dataclass
class _Session:
    """One evaluation: takes a policy through its sets and fills the result."""

    policy: "Policy | ServedPolicy"
    result: EvalResult
    samples: int
    temperature: float
    modes: Sequence[Mode]  # those asked for; without any one pass, of all samples
    progress: Progress | None
    cache: SampleCache | None = None
    weights: str | None = None  # their hash, where it is known
    example: Prompt | None = None
    opened: Sequence[str] = ()  # which row each one was before an environment opened it
    sets: dict[str, Any] = field(default_factory=dict)

    def keep(self, folder: Path | None) -> None:
        """Keep in `folder` what is drawn, and draw nothing that is there; None: nowhere."""
        if folder is None:
            return
        if isinstance(self.policy, ServedPolicy):
            self.cache = SampleCache(folder, self.policy.source)
            return
        from rl_reasoner.rollout.sampler import weights_hash

        self.weights = weights_hash(self.policy)
        self.cache = SampleCache(folder, self.weights)

    def set(
        self, name: str, data: FileData, rows: Sequence[Row], trained_on: Sequence[Row] | None
    ) -> None:
        """Evaluate one set in all modes."""
        settings = self.result.settings
        reward = settings["reward"] if settings["reward"] != "by the rows" else None
        judge = _judge(name, rows, reward, settings.get("reward_options"))
        own = self.result.settings_of(name)
        template = own.get("template", settings["template"])
        longest = own.get("max_tokens") or data.max_tokens or settings["max_tokens"]
        if isinstance(self.policy, ServedPolicy) and template == "auto":
            template = "chat"
        prompts = [prompt_of(row, template, self.policy.tokenizer) for row in rows]
        self.example = self.example or prompts[0]
        self.sets[name] = (data, rows, judge.name, longest)
        for mode in self.modes or ("greedy",):
            label = label_of(name, mode)
            many = mode == "sampled" or not self.modes
            played = self._episodes(template, rows)
            outs = self._draw(prompts, label, longest, many, FORCES[mode], played)
            scored = self.result.rows[label] = judge.score(rows, outs)
            if self.opened:
                for row, digest in zip(scored, self.opened, strict=True):
                    row[OPENED] = digest
            temperature = self.temperature if many else 0.0
            shared = {"temperature": temperature, "reward": judge.name}
            self.result.sets[label] = {**compute_figures(scored), **shared}
            if trained_on is not None:
                _mark(self.result, label, trained_on)

    def _draw(
        self,
        prompts: Sequence[Prompt],
        label: str,
        longest: int,
        many: bool,
        force: Literal["chain", "direct"] | None,
        episodes: Episodes | None,
    ) -> Any:
        count = self.samples if many else 1
        options: dict[str, Any] = {
            "samples": count,
            "temperature": self.temperature if many else 0.0,
            "max_tokens": longest,
            "seed": self.result.settings["seed"],
            "force": force,
            "progress": _counter(self.progress, label, count * len(prompts)),
            "cache": self.cache,
        }
        weights = self.result.settings.get("weights", "own")
        if isinstance(self.policy, ServedPolicy):
            if weights != "own":
                raise UserError(f"weights is {weights}, but the server samples with its own")
            if "tools" in self.result.settings:
                raise UserError("tools are for policies that our engine samples: not a server's")
            if episodes is not None:
                raise UserError(
                    "an environment is for policies that our engine samples: not a server's"
                )
            return self.policy.sample(prompts, **options)
        from rl_reasoner.rollout.sampler import sample

        options |= {"tools": self.tools, "episodes": episodes}
        return sample(self.policy, prompts, weights=weights, **options)

    def _episodes(self, template: str, rows: Sequence[Row]) -> Episodes | None:
        """The episodes of a set's rows, where an environment answers."""
        settings = self.result.settings.get("environment")
        if settings is None:
            return None
        return Episodes(EnvironmentSettings(**settings), template, rows)

    @property
    def tools(self) -> ToolSettings | None:
        """What the policy may call."""
        settings = self.result.settings.get("tools")
        return ToolSettings(**settings) if settings else None

    def finish(self) -> None:
        """Write the manifest."""
        from rl_reasoner.evaluation.manifest import manifest, of_policy, of_set

        template = self.result.settings["template"]
        if isinstance(self.policy, ServedPolicy):
            facts: Row = {"server": self.policy.base, "model": self.policy.model}
            facts |= {"template": template, "prompt_example": {"prompt": self.example}}
        else:
            facts = of_policy(self.policy, self.weights, template, self.example or "", self.tools)
        sets = {name: of_set(*parts) for name, parts in self.sets.items()}
        self.result.manifest = manifest(facts, sets, self.result.settings["seed"])


def _counter(progress: Progress | None, label: str, of: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(label, done, of)

    return count


def _mark(result: EvalResult, label: str, trained_on: Sequence[Row]) -> None:
    """Note on each row what it shares with training rows; add the figures of the set `@clean`."""
    from rl_reasoner.dataset.contamination import find_overlap

    overlap = find_overlap(trained_on, result.rows[label])
    for row, hit in zip(result.rows[label], overlap.hits, strict=True):
        row["overlap"] = hit
    result.sets[label]["contamination"] = overlap.counts()
    _add_clean(result, label)


def _add_clean(result: EvalResult, label: str) -> None:
    """Add the figures of the rows that overlap with no training row."""
    rows = result.rows[label]
    clean = [row for row in rows if not (row["overlap"] or {}).get("contaminated")]
    if clean:
        same = {key: result.sets[label][key] for key in ("temperature", "reward")}
        result.sets[f"{label}{CLEAN}"] = {**compute_figures(clean), **same}


def replay(
    saved: EvalResult,
    reward: str | None = None,
    reward_options: Mapping[str, Any] | None = None,
    *,
    run_its_code: bool = False,
) -> EvalResult:
    """Judge saved completions again, by the same reward or another; no model is needed.

    The figures are computed again; settings and manifest stay, with this machine's verifier noted.
    What was judged as its rows ask is judged so again. A reward that only the result names, which
    may be anybody's, is asked where it is shipped, else with `run_its_code`. Raises `UserError`,
    also for results without rows.
    """
    from rl_reasoner.evaluation.manifest import judged_by, verifier_version

    if not saved.rows:
        raise UserError("the result has no rows that can be judged: is its .rows.jsonl next to it?")
    check_judge(reward, reward_options)
    options = reward_options if reward is not None else saved.settings.get("reward_options")
    made = EvalResult(saved.policy, saved.name, dict(saved.settings))
    made.manifest = {**saved.manifest, "replayed_with_verifier": verifier_version()}
    if reward is not None:
        made.settings = {**saved.settings, "reward": reward, "reward_options": dict(options or {})}
    facts = {name: dict(mapping(of)) for name, of in mapping(saved.manifest.get("sets")).items()}
    for label, rows in saved.rows.items():
        before = saved.sets[label]
        by_rows = saved.settings.get("reward") == "by the rows"
        given = [as_given(row) for row in rows]
        named = None if by_rows else before.get("reward")
        with nullcontext() if reward else untyped(code=run_its_code):
            judge = Judge(given, reward or named, options)
            made.rows[label] = judge.judge_again(rows)
        same = {"temperature": before.get("temperature"), "reward": judge.name}
        made.sets[label] = {**compute_figures(made.rows[label]), **same}
        if "contamination" in before:
            made.sets[label]["contamination"] = before["contamination"]
            _add_clean(made, label)
        if (of := facts.get(split_label(label)[0])) is not None:
            of.pop("reward_sha256", None)  # the code is that of now
            of |= judged_by(judge.name)
    if facts:
        made.manifest["sets"] = facts
    return made


def evaluate_recipe(
    policy: "Policy",
    evals: Evals,
    recipe: Recipe,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> EvalResult:
    """Run the evaluation `evals` of a recipe: all its sets in all its modes; `cache` as above."""
    modes: list[Mode] = ["greedy"]
    modes += ["sampled"] if evals.samples else []
    modes += ["chain-forced", "direct-forced"] if evals.forced else []
    return evaluate(
        policy,
        evals.sets,
        max(1, evals.samples),
        recipe.run.seed,
        temperature=evals.temperature,
        max_tokens=evals.longest,
        template=recipe.template,
        system=recipe.system,
        tools=recipe.tools,
        environment=recipe.environment,
        asked=evals.overrides,
        limit=evals.limit,
        reward=evals.reward,
        reward_options=evals.reward_options,
        modes=modes,
        progress=progress,
        cache=cache,
        weights=evals.weights,
    )


def load_set(name: str, limit: int | None = None) -> list[Row]:
    """The problems of a set; raises `UserError` when it is unknown or a row is bad."""
    return load_rows(set_data(name))[:limit]
