"""The verb `why`: one training step explained, or seen under another reward."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.text import Text
from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import (
    Count,
    Json,
    Options,
    RunsItsCode,
    StageName,
    reward_options_of,
)
from rl_reasoner.distributed.loading import load_for_good
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.formatting import short_number
from rl_reasoner.report.console import emit, err, new_table, wrapped

_LEGEND = """* the row that --row chose, or the one with the largest advantage
advantage: above 0, training made this completion likelier; below 0, less likely"""
_TELLING = (
    "reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "loss", "grad_norm",
    "completions/mean_length", "completions/clipped_ratio", "tokens_per_second",
)  # fmt: skip
"""The metrics of a step that are shown; there are some fifty."""
_CHANGED = 8  # rows shown under another reward


@dataclass
class WhyVerb:
    """Explain a training step: a prompt, its group's completions, scores and advantages.

    With --reward, what its advantages and its gradient would have been under another reward.
    """

    run_folder: Positional[Annotated[Path, arg(metavar="RUN")]]
    """the run's folder"""
    step: Count = None
    """the step, from 1 (default: the most telling one, with the largest advantages)"""
    row: Count = None
    """a completion of the step, from 1 (default: the one with the largest advantage)"""
    stage: StageName = None
    """the stage (default: the last one that sampled)"""
    reward: Annotated[str | None, arg(metavar="REWARD", help_behavior_hint="")] = None
    """another reward: a name, MODULE:FUNCTION or FILE.py:FUNCTION"""
    reward_options: Options = ""
    """options of that reward (default: the recipe's, where it names the reward)"""
    run_its_code: RunsItsCode = False
    json: Json = False

    def run(self) -> None:
        """Print the row's group and the step's figures."""
        from rl_reasoner.pipeline.why import most_telling, read_step, scores_in_words

        if self.reward_options and self.reward is None:
            raise UserError("--reward-options belongs to --reward REWARD")
        number = self.step
        if number is None:
            number = most_telling(self.run_folder, self.stage)
        step = read_step(self.run_folder, number, self.stage)
        if self.reward is not None:
            self._under(self.reward, number)
            return
        index = step.row(self.row)
        group = step.group(index)
        chosen = step.rollouts[index]
        value = {
            "stage": step.stage,
            "step": step.number,
            "row": index + 1,
            "prompt": chosen["prompt"],
            "answer": chosen.get("answer"),
            "group": [{"number": number, **rollout} for number, rollout in group],
            "batch": step.metrics,
            "seconds": step.seconds,
        }
        table = new_table("row", "reward", "advantage", "scores", "completion")
        for number, rollout in group:
            mark = f"{number} *" if number == index + 1 else str(number)
            out = ", ".join(rollout.get("left_out_by", ()))
            reward = f"{rollout['reward']:g}" if rollout["reward"] is not None else "none"
            reward = f"out: {out}" if out else reward
            scores = "\n".join(f"{name}: {score}" for name, score in scores_in_words(rollout))
            cells = (Text(scores), _completion_text(rollout))
            table.add_row(mark, reward, f"{rollout['advantage']:+.3g}", *cells)
        told = (
            ""
            if self.step is not None
            else ", the most telling one: its advantages are the largest"
        )
        head = f"stage {step.stage}, step {step.number}{told}\nprompt: {chosen['prompt']}\n"
        head += f"answer: {chosen.get('answer')}\n"
        table.title, table.title_justify, table.title_style = Text(head), "left", ""
        table.caption, table.caption_justify = Text(f"\n{_LEGEND}\n{_metrics_text(step)}"), "left"
        emit(self.json, value, table)

    def _under(self, reward: str, number: int) -> None:
        """Print the step under another reward."""
        if self.row is not None:
            raise UserError("--reward shows the rows that change most: leave out --row")
        options = reward_options_of(self.reward_options, reward, self.run_folder)
        err.print("loading torch and transformers, and making the step again", style="dim")
        load_for_good("rl_reasoner.audit.counterfactual")
        from rl_reasoner.audit.counterfactual import ask_counterfactual

        found = ask_counterfactual(
            self.run_folder, number, reward, self.stage, options=options, quiet=True
        )
        table = new_table("row", "reward", f"by {reward}", "advantage", "would be", "completion")
        for row in found.most_changed(_CHANGED):
            values = row["reward"].values()
            rewards = ("none" if value is None else f"{value:g}" for value in values)
            advantages = (f"{row[key]:+.3g}" for key in ("then", "now"))
            table.add_row(str(row["number"]), *rewards, *advantages, Text(row["completion"]))
        then, now = found.norms
        cosine = "none: one of them is 0" if found.cosine is None else f"{found.cosine:.6g}"
        head = f"stage {found.stage}, step {number} under {reward}\n"
        head += f"cosine of the gradients: {cosine}; norms: {then:.4g} in the run, {now:.4g}\n"
        head += f"{found.turned} of {len(found.rows)} rows would be pushed the other way\n"
        table.title, table.title_justify, table.title_style = Text(head), "left", ""
        emit(self.json, found.to_json(), table)


def _completion_text(rollout: Mapping[str, Any]) -> Text:
    """The completion, in which what tools gave stands on lines of its own."""
    from rl_reasoner.pipeline.why import pieces_of

    shown = Text()
    for piece, told in pieces_of(rollout):
        if told:
            shown.append(f"\n┌ {told}\n", style="cyan")
            shown.append("".join(f"│ {line}\n" for line in piece.strip().splitlines()), style="dim")
        else:
            shown.append(piece)
    if rollout["truncated"]:
        shown.append(" (cut off)")
    return shown


def _metrics_text(step: Any) -> str:
    """The batch's telling numbers in a few lines; the JSON has all of them."""
    kept = [
        f"{name} {short_number(step.metrics[name])}" for name in _TELLING if name in step.metrics
    ]
    kept += [f"seconds of {name} {short_number(seconds)}" for name, seconds in step.seconds.items()]
    rest = len(step.metrics) + len(step.seconds) - len(kept)
    more = f"; {rest} more with --json" if rest else ""
    return "\n" + wrapped(f"the step: {', '.join(kept)}{more}") if kept else ""
