"""Rejection sampling: right and readable completions of a policy, as a data set.

R1's third stage (arXiv 2501.12948): sample several completions a prompt, keep those that are right,
leave out what mixes languages or cannot be read, and train on the rest. Prompts are sampled in
chunks, each written whole, so that a killed run continues exactly with the next chunk. Knows
policies and rows; nothing of trainers.
"""

import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from rl_reasoner.dataset.templates import prompt_of
from rl_reasoner.errors import RunStopped
from rl_reasoner.evaluation.judging import Judge
from rl_reasoner.files import append_rows, json_lines, write_json, write_jsonl
from rl_reasoner.language.identification import language_share
from rl_reasoner.language.repetition import repeats_itself
from rl_reasoner.language.thinking import CLOSE_THINK, NO_CHAIN, TAGS, chain_of
from rl_reasoner.policy.policy import Policy
from rl_reasoner.recipe.stages import SampleStage
from rl_reasoner.recipe.tools import ToolSettings
from rl_reasoner.rollout.sampler import sample
from rl_reasoner.types import Row

_CHUNK = 256  # prompts that are sampled and judged together
_TAG = re.compile("|".join(TAGS))
_ANSWERS = ("", "".join(TAGS[2:]))  # without answer tags, and with them
# A chain that the prompt begins only ends in the completion.
_FORMS = {chain + answer for chain in ("", NO_CHAIN, CLOSE_THINK) for answer in _ANSWERS}
_FILTERS = ("keep", "min_score")  # fields that are applied after the sampling
_LEFT_OUT = ("completion", "chain", "solution")  # what rows have that is not the policy's own


class NothingKept(RunStopped):
    """Rejection sampling left nothing to train on."""

    title = "no samples"


def make_samples(
    stage: SampleStage,
    rows: Sequence[Row],
    policy: Policy,
    folder: Path,
    *,
    template: str,
    seed: int,
    tools: ToolSettings | None = None,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Sample, judge, filter; writes `data.jsonl` and `card.json` to `folder`, returns the card.

    `progress` hears how many prompts are done. What an earlier call has sampled is not sampled
    again. Raises `NothingKept` where all were left out, `UserError` when a reward cannot judge the
    rows.
    """
    started = time.monotonic()
    file = folder / "samples.jsonl"
    chunks = [rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK)]
    done = _read_samples(file, chunks)
    for number, chunk in enumerate(chunks[len(done) :], len(done) + 1):
        done.append(_sample_chunk(stage, chunk, policy, template, seed, tools))
        append_rows(file, [{"step": number, **row} for row in done[-1]])
        progress(min(number * _CHUNK, len(rows)))
    sampled = [row for chunk in done for row in chunk]
    counts: Counter[str] = Counter()
    kept = [row for i, row in enumerate(rows) for row in _kept(stage, row, sampled[i], counts)]
    write_jsonl(folder / "data.jsonl", kept)
    card = _card(stage, rows, kept, counts)
    card["seconds"] = round(time.monotonic() - started, 1)
    write_json(folder / "card.json", card)
    if not kept:
        why = ", ".join(f"{why} {count:,}" for why, count in card["left_out"].items())
        raise NothingKept(
            f"stage {stage.name} kept none of {card['sampled']:,} completions ({why}): "
            f"train longer before it, or loosen {stage.name}.keep; see {file}"
        )
    return card


def reuse_samples(
    old: Path, folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Copy what was sampled in the folder `old`, where only the filters have changed.

    `before` and `now` are the facts of the stage (see `lineage`).
    """
    sampling = [{k: v for k, v in facts.items() if k not in _FILTERS} for facts in (before, now)]
    if sampling[0] == sampling[1] and (old / "samples.jsonl").is_file():
        shutil.copyfile(old / "samples.jsonl", folder / "samples.jsonl")


def _sample_chunk(
    stage: SampleStage,
    rows: Sequence[Row],
    policy: Policy,
    template: str,
    seed: int,
    tools: ToolSettings | None,
) -> list[Mapping[str, Any]]:
    """For each row its completions with their scores."""
    prompts = [prompt_of(row, template, policy.tokenizer) for row in rows]
    outs = sample(
        policy,
        prompts,
        samples=stage.samples,
        **stage.sampling.shares,
        max_tokens=stage.sampling.longest,
        seed=seed,
        tools=tools,
    )
    judge = Judge(rows, stage.reward, stage.reward_options)
    fields = ("completions", "policy_texts", "tokens", "truncated", "scores", "reasons")
    return [{name: row[name] for name in fields if name in row} for row in judge.score(rows, outs)]


def _read_samples(file: Path, chunks: Sequence[Sequence[Row]]) -> list[Sequence[Mapping[str, Any]]]:
    """The chunks that are complete in `file`; what follows them is cut off."""
    if not file.is_file():
        return []
    lines = takewhile(lambda line: line.whole and line.row is not None, json_lines(file))
    done: list[Sequence[Mapping[str, Any]]] = []
    size = 0
    for chunk in chunks:
        own = [*islice(lines, len(chunk))]
        if len(own) < len(chunk):
            break
        done.append([line.value for line in own])
        size = own[-1].end
    os.truncate(file, size)
    return done


def _kept(
    stage: SampleStage, row: Row, sampled: Mapping[str, Any], counts: Counter[str]
) -> list[Row]:
    """The rows made of a prompt's completions that are kept, in the order they were sampled."""
    good: dict[str, str] = {}  # white space folded -> text
    own = sampled.get("policy_texts") or [None] * len(sampled["completions"])
    facts = ("completions", "tokens", "truncated", "scores")
    lists = [own, *(sampled[name] for name in facts)]
    for mine, text, tokens, cut, score in zip(*lists, strict=True):
        counts["sampled"] += 1
        why = _fault(stage, text if mine is None else mine, tokens, cut, score)
        folded = " ".join(text.split())
        if why is None and folded in good:
            why = "duplicate"
        if why is None and len(good) == stage.keep.per_prompt:
            why = "more than per_prompt"
        if why is None:
            good[folded] = text
        else:
            counts[why] += 1
    plain = {name: value for name, value in row.items() if name not in _LEFT_OUT}
    return [{**plain, "completion": text} for text in good.values()]


def _fault(
    stage: SampleStage, text: str, tokens: int, cut: bool, score: float | None
) -> str | None:
    """Why a completion is left out, or None."""
    keep = stage.keep
    if score is None or score < stage.min_score:
        return "not right"
    if keep.readable and (cut or repeats_itself(text) or "".join(_TAG.findall(text)) not in _FORMS):
        return "not readable"
    if not keep.min_tokens <= tokens <= (keep.max_tokens or tokens):
        return "length"
    if keep.language is not None:
        share = language_share(chain_of(text), keep.language).value
        if share is not None and share < keep.language_share:
            return "language"
    return None


def _card(
    stage: SampleStage, rows: Sequence[Row], kept: Sequence[Row], counts: Counter[str]
) -> dict[str, Any]:
    """What one should know of the data set: where it is from, what was left out and why."""
    sampled, solved = counts.pop("sampled"), {row["problem"] for row in kept}
    tasks = Counter(str(row.get("task", "all")) for row in kept)
    return {
        "rows": len(kept),
        "prompts": len(rows),
        "prompts_without_a_row": sum(row["problem"] not in solved for row in rows),
        "sampled": sampled,
        "left_out": {why: count for why, count in counts.most_common() if count},
        "rows_by_task": dict(sorted(tasks.items())),
        "samples_a_prompt": stage.samples,
        **stage.sampling.shares,
        "judged_by": stage.reward or "what the rows ask for",
        "keep": stage.keep.model_dump(mode="json"),
    }
