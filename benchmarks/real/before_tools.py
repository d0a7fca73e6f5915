"""What a policy can do with Python before training, and without: five prompts.

    python benchmarks/real/before_tools.py programs MODEL --sets gsm8k_test.jsonl --out with.json
    python benchmarks/real/before_tools.py prose MODEL --sets gsm8k_test.jsonl --out without.json
    rl-reasoner compare without.json with.json

Runs `rl-reasoner eval` with what follows the prompt's name. `programs` and `prose` are a chat, in
Qwen's form, with the same eight examples as turns. An example has the same thoughts in both: as
comments of a program, whose output the sandbox gives, or as sentences with the sums done. No
example is from a public set. `recipe` is the prompt of the recipe tool_qwen_coder, and `unrun` the
same without the tool, so that the policy says itself what its program would print. `own` asks for
nothing but the answer's box. What came of it: docs/real-models.md.
"""

import argparse
import os
import re
import sys
from dataclasses import dataclass

from rl_reasoner.recipe.load import load_recipe


@dataclass(frozen=True)
class Step:
    """A thought; the name that its value gets, the expression of it, and the value as printed."""

    thought: str
    name: str
    expression: str
    value: str


@dataclass(frozen=True)
class Example:
    """A problem and its solution; the last step has the answer."""

    problem: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> str:
        """How both completions end."""
        return rf"The answer is \boxed{{{plain(self.steps[-1].value)}}}."

    def in_numbers(self, step: Step) -> str:
        """A step's expression, with values in place of names."""
        values = {step.name: plain(step.value) for step in self.steps}
        return re.sub(r"[a-z_]+", lambda name: values[name[0]], step.expression)


HEADS = {
    "programs": "Each problem is solved with a short Python program. Its output gives the answer.",
    "prose": "Each problem is solved in a few short sentences. The last one gives the answer.",
}
EXAMPLES = (
    Example(
        "A bakery sells 4 trays of 18 rolls in the morning and half as many rolls in the "
        "afternoon. Each roll costs $2. How much money does it take in that day?",
        (
            Step("rolls of the morning: 4 trays of 18", "rolls_morning", "4 * 18", "72"),
            Step(
                "the afternoon sells half as many", "rolls_afternoon", "rolls_morning / 2", "36.0"
            ),
            Step(
                "each roll of both costs $2",
                "money",
                "(rolls_morning + rolls_afternoon) * 2",
                "216.0",
            ),
        ),
    ),
    Example(
        "Omar has 15 more stamps than Lena. Lena has three times as many stamps as Ben, "
        "who has 14. How many stamps do the three have together?",
        (
            Step("Ben's stamps are given", "ben", "14", "14"),
            Step("Lena has three times as many as Ben", "lena", "3 * ben", "42"),
            Step("Omar has 15 more than Lena", "omar", "lena + 15", "57"),
            Step("all three together", "together", "ben + lena + omar", "113"),
        ),
    ),
    Example(
        "A coat costs $80. It is sold at 25% off, and a member pays 10% less than that. "
        "How much does a member save in all?",
        (
            Step("the price after 25% off", "sale", "80 * (1 - 25 / 100)", "60.0"),
            Step(
                "a member pays 10% less than the sale price",
                "member",
                "sale * (1 - 10 / 100)",
                "54.0",
            ),
            Step(
                "what is saved is the old price less what is paid", "saved", "80 - member", "26.0"
            ),
        ),
    ),
    Example(
        "Rita reads 12 pages every weekday and 30 pages on each day of the weekend. Her "
        "book has 480 pages. How many weeks does she need for it?",
        (
            Step(
                "a week has 5 weekdays and 2 days of the weekend",
                "pages_per_week",
                "5 * 12 + 2 * 30",
                "120",
            ),
            Step("weeks to read all the pages", "weeks", "480 / pages_per_week", "4.0"),
        ),
    ),
    Example(
        "A tank holds 200 liters. It is three quarters full when a tap begins to let out "
        "6 liters a minute. How many liters are left after 15 minutes?",
        (
            Step("the tank is three quarters full", "start", "200 * 3 / 4", "150.0"),
            Step("the tap lets out 6 liters in each of 15 minutes", "let_out", "6 * 15", "90"),
            Step("what is left", "left", "start - let_out", "60.0"),
        ),
    ),
    Example(
        "In a class of 36 children, a third play football. Of the others, 5 less than "
        "half play chess. How many children play neither?",
        (
            Step("a third play football", "football", "36 / 3", "12.0"),
            Step("the others", "others", "36 - football", "24.0"),
            Step("5 less than half of the others play chess", "chess", "others / 2 - 5", "7.0"),
            Step(
                "the others who do not play chess play neither", "neither", "others - chess", "17.0"
            ),
        ),
    ),
    Example(
        "Sam earns $14 an hour for the first 40 hours of a week and one and a half times "
        "as much for each hour after that. Last week he worked 46 hours. What did he "
        "earn?",
        (
            Step("the first 40 hours are paid $14 each", "regular", "40 * 14", "560"),
            Step("hours after the first 40", "extra_hours", "46 - 40", "6"),
            Step(
                "they are paid one and a half times as much",
                "extra",
                "extra_hours * 14 * 1.5",
                "126.0",
            ),
            Step("both together", "earned", "regular + extra", "686.0"),
        ),
    ),
    Example(
        "After giving 8 marbles to each of her 3 cousins and losing 5, Mia has twice as "
        "many marbles as Tom, who has 19. How many did she have at first?",
        (
            Step("Mia now has twice as many as Tom", "now", "2 * 19", "38"),
            Step("she gave 8 to each of 3 cousins", "given", "3 * 8", "24"),
            Step(
                "at first she had what she has now, what she gave and what she lost",
                "first",
                "now + given + 5",
                "67",
            ),
        ),
    ),
)


def plain(value: str) -> str:
    """A value as a person writes it: 216.0 is 216."""
    return value.removesuffix(".0")


def program(example: Example) -> str:
    """The completion that runs a program, with what the sandbox gives in between."""
    last = example.steps[-1]
    lines = [f"# {step.thought}\n{step.name} = {step.expression}" for step in example.steps]
    code = "\n".join([*lines, f"print({last.name})"])
    return f"```python\n{code}\n```\n```output\n{last.value}\n```\n{example.answer}"


def prose(example: Example) -> str:
    """The completion that does its sums itself."""
    sentences = []
    for step in example.steps:
        thought, value = step.thought[0].upper() + step.thought[1:], plain(step.value)
        numbers = example.in_numbers(step)
        sums = value if numbers == value else f"{numbers} = {value}"
        sentences.append(f"{thought}: {sums}.")
    return " ".join([*sentences, example.answer])


def template(kind: str) -> str:
    """The prompt template; `{problem}` alone is replaced in it."""
    if kind == "own":
        return "boxed"
    if kind not in HEADS:
        return load_recipe("tool_qwen_coder").template
    write = program if kind == "programs" else prose
    turns = [
        f"<|im_start|>user\n{example.problem}<|im_end|>\n"
        f"<|im_start|>assistant\n{write(example)}<|im_end|>\n"
        for example in EXAMPLES
    ]
    head = f"<|im_start|>system\n{HEADS[kind]}<|im_end|>\n"
    asked = "<|im_start|>user\n{problem}<|im_end|>\n<|im_start|>assistant\n"
    return head + "".join(turns) + asked


def main() -> None:
    """Become the evaluation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("kind", choices=(*HEADS, "recipe", "unrun", "own"))
    parser.add_argument("--max-tokens", "--max_tokens", type=int, default=400)
    asked, others = parser.parse_known_args()
    run = asked.kind in ("programs", "recipe")
    tools = ["python", "--tool-format", "fences"] if run else ["none"]
    judged = ["--reward", "math_answer", "--reward-options", "value_only=true"]
    limits = ["--max-tokens", str(asked.max_tokens)]
    settings = [*limits, "--template", template(asked.kind), "--tools", *tools]
    command = [sys.executable, "-m", "rl_reasoner.cli", "eval", *others, *judged, *settings]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main()
