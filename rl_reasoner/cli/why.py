"""The verb `why`: one training step explained."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.text import Text
from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import Count, Json, StageName, cell
from rl_reasoner.report.console import emit, new_table

_LEGEND = """* the row that --row chose, or the one with the largest advantage
advantage: above 0, training made this completion likelier; below 0, less likely"""


@dataclass
class WhyVerb:
    """Explain a training step: a prompt, its group's completions, scores and advantages."""

    run_folder: Positional[Annotated[Path, arg(metavar="RUN")]]
    """the run's folder"""
    step: Count = None
    """the step, from 1 (default: the most telling one, with the largest advantages)"""
    row: Count = None
    """a completion of the step, from 1 (default: the one with the largest advantage)"""
    stage: StageName = None
    """the stage (default: the last one that sampled)"""
    json: Json = False

    def run(self) -> None:
        """Print the row's group and the step's figures."""
        from rl_reasoner.pipeline.why import most_telling, read_step, scores_in_words

        number = self.step
        if number is None:
            number = most_telling(self.run_folder, self.stage)
        step = read_step(self.run_folder, number, self.stage)
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
    """The batch's numbers, a line each."""
    kept = [(k, v) for k, v in step.metrics.items() if isinstance(v, (int, float))]
    kept += [(f"seconds of {name}", seconds) for name, seconds in step.seconds.items()]
    return "\n" + "\n".join(f"{name}: {cell(value)}" for name, value in kept)
