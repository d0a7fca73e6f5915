"""Evaluation: sampling, scoring and the statistics of a policy on sets of problems.

Every accuracy comes with a 95% interval: Wilson's for one completion a problem, clustered by
problem for several. A set may be evaluated in several modes, shown behind its name: greedy (no
suffix), `@sampled`, `@chain-forced`, `@direct-forced`. Knows nothing of training; torch is imported
when something is sampled, not before.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rl_reasoner.code_rows import continued
from rl_reasoner.errors import UserError, unknown
from rl_reasoner.prompts import Row, load_rows, read_rows, render
from rl_reasoner.recipe import Evals
from rl_reasoner.reward import described, load_reward, score_batch
from rl_reasoner.runs import write_text
from rl_reasoner.sets import set_data

if TYPE_CHECKING:
    from rl_reasoner.policy import Policy
    from rl_reasoner.rollouts import Rollout

Mode = Literal["greedy", "sampled", "chain-forced", "direct-forced"]
Progress = Callable[[str, int, int], None]  # set, done, of
_Z = 1.959963984540054  # the 97.5% point of the normal distribution
_SHOWN = 8  # rows of each set kept in the result's JSON, to look at
_FORCES: Mapping[str, Literal["chain", "direct"] | None] = {
    "greedy": None,
    "sampled": None,
    "chain-forced": "chain",
    "direct-forced": "direct",
}
_EMPTY_CHAIN = "<think></think>"


# -------------------------------------------------------------------------------- statistics


def wilson(right: float, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval for `right` successes in `n` trials (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = right / n, _Z * _Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered(shares: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean of per-problem shares, problems being the independent units.

    Normal, with the standard error sd / sqrt(problems); where all shares are equal there is no
    spread to go by, and Wilson's interval over the problems is given.
    """
    n = len(shares)
    mean = sum(shares) / n if n else 0.0
    variance = sum((share - mean) ** 2 for share in shares) / (n - 1) if n > 1 else 0.0
    if variance == 0.0:
        return wilson(mean * n, n)
    half = _Z * math.sqrt(variance / n)
    return max(0.0, mean - half), min(1.0, mean + half)


def pass_at_k(n: int, right: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, from `right` of `n`.

    1 - C(n - right, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1).
    """
    if not 0 < k <= n:
        raise ValueError(f"pass@{k} cannot be estimated from {n} samples")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value of McNemar's test: problems that only one of the two has right."""
    n = only_a + only_b
    tail: float = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1)) / 2**n
    return min(1.0, 2 * tail)


# ------------------------------------------------------------------------------------ result


@dataclass
class EvalResult:
    """Figures of one policy on several sets.

    `sets`: set (with mode suffix) -> problems, samples, accuracy, interval, truncated, …; `rows`:
    set -> every row with its completions, scores and reasons.
    """

    policy: str
    name: str = "eval"
    settings: dict[str, Any] = field(default_factory=dict)
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values, with the first few rows of each set."""
        shown = {name: rows[:_SHOWN] for name, rows in self.rows.items()}
        return {**self.__dict__, "rows": shown}

    def save(self, path: Path | str) -> Path:
        """Write the result to `path`, and every row to the file of the same name `.rows.jsonl`."""
        path = Path(path)
        rows = [{"set": name, **row} for name, rows in self.rows.items() for row in rows]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(path.with_suffix(".rows.jsonl"), text)
        write_text(path, json.dumps(self.to_json(), indent=1, ensure_ascii=False))
        return path

    @classmethod
    def load(cls, path: Path | str) -> "EvalResult":
        """Read a saved result, with every row. Raises `UserError` when it is none."""
        path = Path(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            result = cls(**{**data, "rows": {}})
            every = path.with_suffix(".rows.jsonl")
            if every.is_file():
                for row in read_rows(str(every)):
                    result.rows.setdefault(row.pop("set"), []).append(row)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} is no evaluation result: {error}") from error
        return result

    def table(self) -> str:
        """The figures as a text table, one line a set."""
        lines = [
            f"{'set':32} {'problems':>8} {'samples':>7} {'accuracy':>8}  95% interval   cut off"
        ]
        for name, s in self.sets.items():
            low, high = s["interval"]
            lines.append(
                f"{name:32} {s['problems']:8d} {s['samples']:7d} {s['accuracy']:8.1%}"
                f"  [{low:.1%}, {high:.1%}]  {s['truncated']:.1%}"
            )
        return "\n".join(lines)


def compare(a: EvalResult, b: EvalResult) -> dict[str, dict[str, Any]]:
    """b against a, paired by problem, for every set that both have.

    A set's entry: `problems`, `difference` (b - a), its 95% `interval` (paired), `only_a`, `only_b`
    and McNemar's exact `p` (sets with one completion a problem). Raises `UserError` when no set is
    in both, or a common set has other problems in the one than in the other.
    """
    common = [name for name in a.rows if name in b.rows]
    if not common:
        raise UserError("the two results have no set in common")
    return {name: _paired(name, a.rows[name], b.rows[name]) for name in common}


def _paired(name: str, a: Sequence[Row], b: Sequence[Row]) -> dict[str, Any]:
    if [row["problem"] for row in a] != [row["problem"] for row in b]:
        raise UserError(f"set {name!r} holds other problems in the one result than in the other")
    pairs = [(_share(x), _share(y)) for x, y in zip(a, b, strict=True)]
    differences = [y - x for x, y in pairs]
    n = len(pairs)
    mean = sum(differences) / n
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / max(1, n - 1) / n)
    entry: dict[str, Any] = {
        "problems": n,
        "difference": mean,
        "interval": [max(-1.0, mean - _Z * spread), min(1.0, mean + _Z * spread)],
    }
    if all(len(row["scores"]) == 1 for row in [*a, *b]):
        only_a = sum(x > y for x, y in pairs)
        only_b = sum(y > x for x, y in pairs)
        entry |= {"only_a": only_a, "only_b": only_b, "p": mcnemar(only_a, only_b)}
    return entry


def _share(row: Row) -> float:
    right: int = sum(score == 1.0 for score in row["scores"])
    return right / len(row["scores"])


# ---------------------------------------------------------------------------------- sampling


def evaluate(
    policy: "Policy | str",
    sets: Sequence[str],
    samples: int = 1,
    seed: int = 0,
    *,
    temperature: float | None = None,
    max_tokens: int = 256,
    template: str = "auto",
    limit: int | None = None,
    reward: str = "math_answer",
    reward_options: Mapping[str, Any] | None = None,
    modes: Sequence[Mode] | None = None,
    progress: Progress | None = None,
) -> EvalResult:
    """Sample and score completions of `policy` (or of the one its name opens) on `sets`.

    A set is the name of one that is here, a file or a hub id. One sample a problem is greedy,
    several are drawn at `temperature` (default 1.0). `modes` asks for several passes, each with an
    entry of its own; with it, `samples` counts for the mode "sampled". Raises `UserError`.
    """
    from rl_reasoner.policy import open_policy
    from rl_reasoner.rollouts import sample

    judge = _judge(reward, reward_options, samples, modes or ())
    opened = open_policy(policy) if isinstance(policy, str) else policy
    drawn = samples > 1 or bool(modes)
    heat = temperature if temperature is not None else 1.0 if drawn else 0.0
    result = EvalResult(
        opened.source,
        settings={
            "seed": seed,
            "temperature": heat,
            "max_tokens": max_tokens,
            "template": template,
            "reward": reward,
            **({"reward_options": dict(reward_options)} if reward_options else {}),
        },
    )
    for name in sets:
        rows = set_rows(name, limit)
        prompts = [render(row["problem"], template, opened.tokenizer) for row in rows]
        for mode in modes or ["greedy"]:
            label = name if mode == "greedy" else f"{name}@{mode}"
            many = mode == "sampled" or not modes
            count = samples if many else 1
            outs = sample(
                opened,
                prompts,
                samples=count,
                temperature=heat if many else 0.0,
                max_tokens=max_tokens,
                seed=seed,
                force=_FORCES[mode],
                progress=_counter(progress, label, count * len(rows)),
            )
            figures, result.rows[label] = _scored(rows, outs, judge)
            result.sets[label] = {**figures, "temperature": heat if many else 0.0}
    return result


def _judge(
    reward: str, options: Mapping[str, Any] | None, samples: int, modes: Sequence[Mode]
) -> Callable[..., Any]:
    """The reward that judges; every mistake in what was asked, before a policy is opened."""
    if samples < 1:
        raise UserError(f"samples is {samples}; it must be at least 1")
    for mode in modes:
        if mode not in _FORCES:
            raise unknown("mode", mode, _FORCES)
    return load_reward(reward, options)


def _counter(progress: Progress | None, label: str, of: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(label, done, of)

    return count


def evaluate_recipe(
    policy: "Policy", evals: Evals, template: str, seed: int, progress: Progress | None = None
) -> EvalResult:
    """The evaluation that a recipe asks for, all its sets in all its modes."""
    modes: list[Mode] = ["greedy"]
    modes += ["sampled"] if evals.samples else []
    modes += ["chain-forced", "direct-forced"] if evals.forced else []
    return evaluate(
        policy,
        evals.sets,
        max(1, evals.samples),
        seed,
        temperature=evals.temperature,
        max_tokens=evals.max_tokens,
        template=template,
        limit=evals.limit,
        reward=evals.reward,
        reward_options=evals.reward_options,
        modes=modes,
        progress=progress,
    )


def set_rows(name: str, limit: int | None = None) -> list[Row]:
    """The problems of a set; raises `UserError` when it is unknown or a row is bad."""
    return load_rows(set_data(name))[:limit]


def _scored(
    rows: Sequence[Row], outs: "Sequence[Sequence[Rollout]]", judge: Callable[..., Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    flat = [out for group in outs for out in group]
    spread = [row for row, group in zip(rows, outs, strict=True) for _ in group]
    columns = {key: [row.get(key) for row in spread] for key in rows[0]}
    columns["prompts"] = columns["problem"]
    texts = [continued(row, out.text) for row, out in zip(spread, flat, strict=True)]
    verdicts = iter(score_batch(judge, texts, columns))
    scored = []
    for row, group in zip(rows, outs, strict=True):
        marks = [described(next(verdicts)) for _ in group]
        scored.append(
            {
                "problem": row["problem"],
                "answer": row.get("answer", ""),
                "completions": [out.text for out in group],
                "scores": [mark["value"] for mark in marks],
                "reasons": [mark["reason"] for mark in marks],
            }
        )
    return _figures(scored, flat), scored


def _figures(scored: Sequence[Row], flat: "Sequence[Rollout]") -> dict[str, Any]:
    shares = [_share(row) for row in scored]
    samples = len(scored[0]["scores"])
    n = len(shares)
    interval = wilson(sum(shares), n) if samples == 1 else clustered(shares)
    texts = [out.text for out in flat]
    figures: dict[str, Any] = {
        "problems": n,
        "samples": samples,
        "accuracy": sum(shares) / n,
        "interval": list(interval),
        "truncated": sum(out.truncated for out in flat) / len(flat),
        "mean_length": sum(out.tokens for out in flat) / len(flat),
        "judged": sum(s is not None for row in scored for s in row["scores"]) / len(flat),
    }
    if any("<think>" in text for text in texts):
        chains = sum("<think>" in text and _EMPTY_CHAIN not in text for text in texts)
        figures["thinking"] = chains / len(texts)
    if samples > 1:
        counts = [round(share * samples) for share in shares]
        ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= samples]
        figures["pass_at"] = {
            str(k): sum(pass_at_k(samples, right, k) for right in counts) / n for k in ks
        }
    return figures
