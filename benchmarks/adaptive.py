"""Adaptive levels against uniform ones: completions to the same held-out accuracy.

The task is the generator `tens` (a number times 1, 10, 100 or 1000, written down), at levels from 2
digits up. A tiny policy learns it at 2 to 9 digits from rows (supervised), then from rows in which
each digit is, with a chance of `--noise`, a random one: what it writes is right now and then where
it is short, and hardly ever where it is long. GRPO trains it on right answers alone, at levels up
to `--hardest`, from that one start with the same settings: once with every level as often as the
others (trl's sampler), once with `level_band`. A seed is one of GRPO: of its samples, and of the
order of its rows. Compared is the accuracy of samples at temperature 1 on a fixed held-out set with
all levels evenly, and the completions drawn until it first reaches a target (between evaluations: a
straight line).

    OMP_NUM_THREADS=1 python benchmarks/adaptive.py [--seeds 0 1 3] [--json FILE]
    python benchmarks/adaptive.py --tables FILE...       # of what was written by --json

Stopped, the same command with `--json` trains the arms that the file does not have in full.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise, product
from pathlib import Path
from statistics import median
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback

from rl_reasoner import GRPOConfig, GRPOTrainer, Recipe, evaluate, open_policy, train
from rl_reasoner.dataset.tasks.base import Problem, picker, sha256_int
from rl_reasoner.dataset.tasks.generate import TASKS
from rl_reasoner.files import write_json
from rl_reasoner.language.thinking import with_tags
from rl_reasoner.rewards.math_answer import math_answer

LEARNED = range(2, 10)  # levels of the supervised rows
TRAINED = 500  # problems of each level
SIZE, PROMPTS = 8, 16  # a step's completions
BAND = [0.3, 0.7]
ARMS: Mapping[str, list[float] | None] = {"uniform": None, "levels": BAND}
SETTINGS = ["hardest", "held_out", "max_tokens", "steps", "supervised", "noise", "every", "lr"]
TARGETS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
Curve = Sequence[tuple[int, float]]  # (completions, held-out accuracy)


def problems(level: int, held_out: bool) -> Iterator[Problem]:
    """Distinct problems of a level; the hash of the key decides which are held out, a fifth."""
    seen: set[str] = set()
    for number in range(100_000):
        problem = TASKS["tens"].make(level, picker(f"adaptive|{level}|{number}"))
        if problem is None or problem.key in seen:
            continue
        seen.add(problem.key)
        if held_out == (sha256_int(f"held out|{problem.key}") % 5 == 0):
            yield problem


def rows(
    levels: range, count: int = TRAINED, *, held_out: bool = False, noise: float = 0.0
) -> list[dict[str, Any]]:
    """`count` rows of each level, where there are; with completions that have no chain."""
    found, chance = [], random.Random(0)
    for level in levels:
        for problem in islice(problems(level, held_out), count):
            digits = [
                str(chance.randrange(10)) if chance.random() < noise else digit
                for digit in problem.answer
            ]
            found.append({**problem.row(), "completion": with_tags("", "".join(digits))})
    return found


def write(file: Path, given: Sequence[Mapping[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return str(file)


def start(folder: Path, steps: tuple[int, int], noise: float) -> Path:
    """The policy that all arms and seeds begin with."""
    made = folder / "start"
    if not made.exists():
        clean = write(folder / "clean.jsonl", rows(LEARNED))
        noisy = write(folder / "noisy.jsonl", rows(LEARNED, noise=noise))
        rate = {"lr": 5e-3, "schedule": "linear", "warmup": 30, "final_lr_share": 0.1}
        stages = [
            {"kind": "sft", "name": "clean", "data": clean, "steps": steps[0], "optim": rate},
            {"kind": "sft", "name": "noisy", "data": noisy, "steps": steps[1], "optim": rate},
        ]
        train(
            Recipe.model_validate(
                {
                    "policy": "scratch:dense-tiny",
                    "template": "plain",
                    "rewards": {"math_answer": 1.0},
                    "stages": [{**stage, "batch": 64} for stage in stages],
                    "run": {"folder": str(made), "device": "cpu"},
                }
            )
        )
    return made


class HeldOut(TrainerCallback):  # type: ignore[misc]
    """Evaluates every so many steps on the fixed set; `curve` is what was found."""

    def __init__(self, policy: Any, file: str, every: int, max_tokens: int) -> None:
        self.policy, self.file, self.every, self.max_tokens = policy, file, every, max_tokens
        self.curve: list[tuple[int, float]] = []
        self.by_level: list[list[float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.measure(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self.measure(state.global_step)

    def measure(self, step: int) -> None:
        """The accuracy now, of one sample a problem."""
        result = evaluate(
            self.policy,
            [self.file],
            temperature=1.0,
            max_tokens=self.max_tokens,
            template="plain",
        )
        [figures] = result.sets.values()
        self.curve.append((step * SIZE * PROMPTS, figures["accuracy"]))
        levels = figures["by"]["level"].values()
        self.by_level.append([round(level["accuracy"], 3) for level in levels])
        told = " ".join(f"{accuracy:.2f}" for accuracy in self.by_level[-1])
        print(f"step {step}: {figures['accuracy']:.1%} ({told})", flush=True)


def arm(name: str, begun: Path, held_out: str, seed: int, given: argparse.Namespace) -> HeldOut:
    """Train one arm; gives its evaluations."""
    policy = open_policy(str(begun), device="cpu")
    config = GRPOConfig(
        tempfile.mkdtemp(),
        max_steps=given.steps,
        per_device_train_batch_size=SIZE * PROMPTS,
        num_generations=SIZE,
        max_completion_length=given.max_tokens,
        learning_rate=given.lr,
        lr_scheduler_type="constant",
        adam_beta2=0.99,
        level_band=ARMS[name],
        isolate_rewards=False,
        seed=seed,
        use_cpu=True,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1000,
    )
    data = [{"prompt": row["problem"], **row} for row in rows(range(2, given.hardest + 1))]
    for row in data:
        del row["completion"]
    trainer = GRPOTrainer(
        policy.model,
        reward_funcs=math_answer,
        args=config,
        train_dataset=Dataset.from_list(data),
        processing_class=policy.tokenizer,
    )
    watch = HeldOut(policy, held_out, given.every, given.max_tokens)
    trainer.add_callback(watch)
    trainer.train()
    return watch


def completions_to(curve: Curve, target: float) -> float | None:
    """The completions at which the curve first reaches `target`; None where it never does."""
    if curve[0][1] >= target:
        return 0.0
    for (n, low), (m, high) in pairwise(curve):
        if high >= target:
            return n + (m - n) * (target - low) / (high - low)
    return None


def table(curves: Mapping[str, Mapping[str, Curve]]) -> str:
    """The completions to each target, by seed, and their ratios."""
    lines = ["| held-out accuracy | seed | uniform | levels | ratio |", "|---|---|---|---|---|"]
    for target in TARGETS:
        ratios = []
        for seed, arms in curves.items():
            uniform, levels = (completions_to(arms[name], target) for name in ARMS)
            ratio = levels / uniform if uniform and levels is not None else None
            ratios += [] if ratio is None else [ratio]
            cells = [f"{n:,.0f}" if n is not None else "not reached" for n in (uniform, levels)]
            shown = f"{ratio:.2f}" if ratio is not None else "–"
            lines.append(f"| {target:.0%} | {seed} | {cells[0]} | {cells[1]} | {shown} |")
        if len(ratios) > 1:
            span = f"{min(ratios):.2f} to {max(ratios):.2f}"
            lines.append(f"| {target:.0%} | all | | | median {median(ratios):.2f}, {span} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hardest", type=int, default=17, help="the highest level")
    parser.add_argument("--held-out", type=int, default=25, help="problems of each level")
    parser.add_argument("--max-tokens", type=int, default=36)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--supervised", type=int, nargs=2, default=[200, 60])
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=[*ARMS], choices=[*ARMS])
    parser.add_argument("--folder", type=Path, help="keep the starts there")
    parser.add_argument("--json", type=Path, help="write all curves to this file")
    parser.add_argument("--tables", type=Path, nargs="+", help="only print those files' table")
    given = parser.parse_args()
    settings = {name: getattr(given, name) for name in SETTINGS}
    curves: dict[str, dict[str, Curve]] = {}
    for file in given.tables or ([given.json] if given.json and given.json.is_file() else []):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if not given.tables and kept["settings"] != settings:
            parser.error(f"{file} has curves of other settings: {kept['settings']}")
        for seed, arms in kept["curves"].items():
            curves.setdefault(seed, {}).update(arms)
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        levels = range(2, given.hardest + 1)
        apart = rows(levels, given.held_out, held_out=True)
        held_out = write(folder / f"held-out-{given.hardest}.jsonl", apart)
        whole = given.steps // given.every * given.every * SIZE * PROMPTS  # where a curve ends
        for seed, one in product([] if given.tables else given.seeds, given.arms):
            if curves.get(str(seed), {}).get(one, [(0, 0.0)])[-1][0] == whole:
                continue
            begun = start(folder, tuple(given.supervised), given.noise)
            print(f"seed {seed}, {one}", flush=True)
            watch = arm(one, begun, held_out, seed, given)
            curves.setdefault(str(seed), {})[one] = watch.curve
            if given.json:
                write_json(given.json, {"settings": settings, "curves": curves})
    if all(len(arms) == len(ARMS) for arms in curves.values()):
        print(table(curves))


if __name__ == "__main__":
    main()
