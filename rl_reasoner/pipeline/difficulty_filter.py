"""Filtering by difficulty: rows that a policy sometimes gets right, and no others.

A group of completions that are all right or all wrong teaches GRPO nothing. So each row is sampled
several times and judged; its pass rate is the share of judged completions that pass, and rows whose
rate lies in a range are kept. Every row's rate is written down, with what became of it. Completions
go through a cache (`rollout.cache`): what was drawn before a kill is not drawn again. Knows
policies and rows; nothing of trainers.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_reasoner.dataset.templates import prompt_of, with_system
from rl_reasoner.errors import RunStopped, UserError
from rl_reasoner.evaluation.judging import Judge
from rl_reasoner.files import as_jsonl, copy_folder, write_jsonl, write_together
from rl_reasoner.pipeline.rejection_sampling import NothingKept
from rl_reasoner.policy.policy import Policy
from rl_reasoner.recipe.stages import FilterStage, rate_range
from rl_reasoner.recipe.tools import ToolSettings
from rl_reasoner.rollout.cache import SampleCache
from rl_reasoner.rollout.long_prompts import named_rows
from rl_reasoner.rollout.sampler import long_rows, sample, weights_hash
from rl_reasoner.scoring.circuit_breaker import RewardsFailed
from rl_reasoner.types import Prompt, Row

_CHUNK = 256  # rows that are sampled and judged together
_BARS = 16  # of a histogram, at most
KEPT, HARD, EASY, UNJUDGED = "kept", "too hard", "too easy", "unjudged"
DROPPED = (HARD, EASY, UNJUDGED)
"""What becomes of a row that is not kept; unjudged: its reward abstained or failed each time."""


@dataclass(frozen=True)
class FilterFiles:
    """Where a filter writes: the rows that are kept, every row's rate; where completions lie."""

    kept: Path
    rates: Path
    samples: Path | None


def filter_rows(
    stage: FilterStage,
    rows: Sequence[Row],
    policy: Policy,
    files: FilterFiles,
    *,
    template: str,
    seed: int,
    system: str | None = None,
    weights: str = "own",
    tools: ToolSettings | None = None,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Sample and judge `rows`, write those that are kept and the rates of all; returns the card.

    A kept row is as it was, with `pass_rate` and `pass_samples` (the completions that were judged).
    `system` is the system prompt of chats whose rows have none; `progress` hears how many
    completions there are. Raises `NothingKept` where no row is kept (the rates are written),
    `RewardsFailed` where the reward failed on every completion, `UserError` for rows that cannot be
    sampled, judged or written.
    """
    started = time.monotonic()
    _check_json(rows)
    asked = with_system(rows, system)
    prompts = [prompt_of(row, template, policy.tokenizer) for row in asked]
    _check_lengths(stage, prompts, asked, policy, tools)
    cache = SampleCache(files.samples, weights_hash(policy)) if files.samples else None
    rates: list[Row] = []
    texts: Counter[str] = Counter()
    for first in range(0, len(rows), _CHUNK):
        some = asked[first : first + _CHUNK]
        done = first * stage.samples

        def count(more: int) -> None:
            nonlocal done
            done += more
            progress(done)

        drawn = sample(
            policy,
            prompts[first : first + _CHUNK],
            samples=stage.samples,
            **stage.sampling.shares,
            max_tokens=stage.sampling.longest,
            seed=seed,
            weights=weights,
            tools=tools,
            progress=count,
            cache=cache,
        )
        judged = Judge(some, stage.reward, stage.reward_options).score(some, drawn)
        for number, scored in enumerate(judged, first + 1):
            rates.append(_rate(stage, number, scored))
            texts.update(_failures(scored))
    card = _card(stage, rates, texts) | {"seconds": round(time.monotonic() - started, 1)}
    _write(stage, files, card, rates, _kept(rows, rates))
    return card


def _write(
    stage: FilterStage,
    files: FilterFiles,
    card: Mapping[str, Any],
    rates: Sequence[Row],
    kept: Sequence[Row],
) -> None:
    """Write both files; raises what there is to say where no row is kept: the rates are written."""
    if not kept:
        write_jsonl(files.rates, rates)
        raise _nothing_kept(stage, card, files.rates)
    write_together({files.rates: as_jsonl(rates), files.kept: as_jsonl(kept)})


def reuse_completions(old: Path, folder: Path) -> None:
    """Copy the completions that a stage drew in the folder `old`: a changed setting misses them."""
    if (old / "samples").is_dir():
        copy_folder(old / "samples", folder / "samples")


def _check_json(rows: Sequence[Row]) -> None:
    """Raise `UserError` for a row that could not be written again."""
    for number, row in enumerate(rows, 1):
        try:
            json.dumps(row)
        except (TypeError, ValueError) as error:
            raise UserError(f"row {number} cannot be written as JSON: {error}") from error


def _check_lengths(
    stage: FilterStage,
    prompts: Sequence[Prompt],
    rows: Sequence[Row],
    policy: Policy,
    tools: ToolSettings | None,
) -> None:
    """Raise `UserError` for rows that do not fit into the policy: before hours of sampling."""
    longest = stage.sampling.longest
    if too_long := long_rows(prompts, [{} for _ in rows], longest, policy, tools):
        raise UserError(
            f"{len(too_long)} of {len(rows)} prompts do not fit, with completions up to {longest}, "
            f"into the positions of {policy.source}: {named_rows(too_long, 'row', prompts)}: use a "
            "smaller max_tokens, or shorter rows"
        )


def _rate(stage: FilterStage, number: int, scored: Row) -> Row:
    """One row's line of the rates, from its judged completions."""
    scores = [score for score in scored["scores"] if score is not None]
    passed = sum(score >= stage.min_score for score in scores)
    rate = passed / len(scores) if scores else None
    outcomes: Counter[str] = Counter(scored["outcomes"])
    return {
        "row": number,
        **({"id": scored["id"]} if "id" in scored else {}),
        "problem": scored["problem"],
        "pass_rate": rate,
        "passed": passed,
        "pass_samples": len(scores),
        "abstained": outcomes["abstain"],
        "faults": outcomes["fault"],
        "truncated": sum(scored["truncated"]),
        "mean_tokens": round(sum(scored["tokens"]) / len(scored["tokens"]), 1),
        "became": _became(stage, rate),
    }


def _became(stage: FilterStage, rate: float | None) -> str:
    low, high = rate_range(stage.keep)
    if rate is None:
        return UNJUDGED
    return HARD if rate < low else EASY if rate > high else KEPT


def _failures(scored: Row) -> list[str]:
    """Why completions of a row were not judged."""
    pairs = zip(scored["outcomes"], scored["reasons"], strict=True)
    return [f"{outcome}: {reason}" for outcome, reason in pairs if outcome != "score"]


def _kept(rows: Sequence[Row], rates: Sequence[Row]) -> list[Row]:
    marks = ("pass_rate", "pass_samples")
    return [
        {**row, **{name: rate[name] for name in marks}}
        for row, rate in zip(rows, rates, strict=True)
        if rate["became"] == KEPT
    ]


def _card(stage: FilterStage, rates: Sequence[Row], failures: Counter[str]) -> dict[str, Any]:
    """What one should know of the filtered rows: how many were dropped and why, and their rates."""
    became = Counter(rate["became"] for rate in rates)
    known = [rate["pass_rate"] for rate in rates if rate["pass_rate"] is not None]
    kept = [rate["pass_rate"] for rate in rates if rate["became"] == KEPT]
    sampled = len(rates) * stage.samples
    return {
        "rows": became[KEPT],
        "of": len(rates),
        "dropped": {why: became[why] for why in DROPPED},
        "keep": stage.keep,
        "mean_rate": sum(known) / len(known) if known else None,
        "mean_rate_kept": sum(kept) / len(kept) if kept else None,
        "histogram": histogram(rates, stage.samples),
        "sampled": sampled,
        "samples_a_row": stage.samples,
        "truncated": sum(rate["truncated"] for rate in rates) / sampled,
        "abstained": sum(rate["abstained"] for rate in rates),
        "faults": sum(rate["faults"] for rate in rates),
        "commonest_failure": failures.most_common(1)[0][0] if failures else "",
        "temperature": stage.sampling.temperature,
        "max_tokens": stage.sampling.longest,
        "judged_by": stage.reward or "what the rows ask for",
        "min_score": stage.min_score,
    }


def histogram(rates: Sequence[Row], samples: int) -> list[dict[str, Any]]:
    """Rows by pass rate, from 0 to 1: {"rate", "rows", "kept"} for each rate, or the nearest ones.

    With up to 16 samples there is a bar for each possible rate, else 17 bars.
    """
    parts = min(samples, _BARS)
    bars = [{"rate": part / parts, "rows": 0, "kept": 0} for part in range(parts + 1)]
    for rate in rates:
        if rate["pass_rate"] is not None:
            bar = bars[int(rate["pass_rate"] * parts + 0.5)]
            bar["rows"] += 1
            bar["kept"] += rate["became"] == KEPT
    return bars


def dropped_words(card: Mapping[str, Any]) -> str:
    """How many rows were kept and dropped, and why, in a sentence."""
    parts = ", ".join(f"{count:,} {why}" for why, count in card["dropped"].items())
    return f"kept {card['rows']:,} of {card['of']:,} rows with pass rates {card['keep']}: {parts}"


def _nothing_kept(stage: FilterStage, card: Mapping[str, Any], file: Path) -> RunStopped:
    """`NothingKept`, or `RewardsFailed`: why nothing is left, with what the rates were."""
    why = card["commonest_failure"]
    if card["faults"] == card["sampled"]:
        return RewardsFailed(f"the reward failed on all {card['sampled']:,} completions: {why}")
    bars = [f"{bar['rate']:.3g}: {bar['rows']:,}" for bar in card["histogram"] if bar["rows"]]
    silent = card["dropped"][UNJUDGED]
    bars += [f"unjudged: {silent:,} ({why})"] if silent else []
    return NothingKept(
        f"{stage.name} kept none of {card['of']:,} rows: no pass rate is in {stage.keep}. "
        f"Rows by pass rate: {', '.join(bars)}. {_advice(card)} See {file}"
    )


def _advice(card: Mapping[str, Any]) -> str:
    """What to do where nothing was kept."""
    most = max(DROPPED, key=lambda why: card["dropped"][why])
    cut = f" {card['truncated']:.0%} of the completions were cut off at max_tokens."
    cut = cut if card["truncated"] > 0.1 else ""
    advice = {
        HARD: "Give easier rows, train on right answers first (sft), or widen keep.",
        EASY: "Give harder rows, or widen keep.",
        UNJUDGED: "The reward gave no score: give one that judges these rows.",
    }
    return f"{advice[most]}{cut}"
