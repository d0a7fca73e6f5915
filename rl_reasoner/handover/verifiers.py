"""verifiers: a taskset of its v1, that evaluations and prime-rl load, and an evaluation's TOML.

Names and meanings are those of verifiers 0.4.0 (https://github.com/PrimeIntellect-ai/verifiers).
It has environments and rewards, and trains nothing itself: a recipe's algorithm, rates and schedule
belong to the trainer that plays the taskset, and have no place here.
"""

import json

from rl_reasoner.handover.common import START, data_field, longest_field, policy_field
from rl_reasoner.handover.engine import Engine, Written
from rl_reasoner.handover.fields import OURS, UNSET, Field, nested, same, settings
from rl_reasoner.handover.subject import PromptedRow, Subject

_GIVEN: tuple[Field, ...] = (
    Field("name", {"run.name": lambda s: s.slug}, "also the taskset's module: NAME_taskset"),
    policy_field("model"),
    START,
    data_field({"env.taskset.id": lambda s: f"{s.slug}_taskset"}),
    Field(
        "template",
        note="prompts are written out; a text is sent as a user's message",
        lost=lambda s: not s.chats,
        else_does="prompts are texts here; its servers put them into the policy's chat template",
    ),
    Field("system", note="in the prompts"),
    Field("rewards", note="with weights, options and rules, by the taskset's one reward"),
    Field("tools", note="refused: `--to` hands over recipes of one turn"),
    Field("environment", note="refused: `--to` hands over recipes of one turn"),
    Field("evals", note="`vf-eval` on the taskset, or `rl-reasoner eval`"),
    Field("group.size", {"num_rollouts": same("group.size")}),
    Field("sampling.temperature", {"sampling.temperature": same("sampling.temperature")}),
    longest_field("sampling.max_tokens"),
    Field("sampling.top_p", {"sampling.top_p": same("sampling.top_p")}),
    Field(
        "sampling.top_k",
        {"sampling.top_k": lambda s: s.stage.sampling.top_k or UNSET},
        "passed on to the server",
    ),
)
_THERE = {one.ours: one for one in _GIVEN}
_FIELDS = tuple(_THERE.get(name, Field(name)) for name in OURS)

_TASKSET = '''"""The rows and rewards of the recipe {name!r} as a taskset of verifiers (v1).

Each reward runs in rl-reasoner, in a process of its own, under its limits; programs run in its
sandbox. Of the three outcomes of a reward

- a score is the recipe's weighted sum;
- an abstention and a fault raise, so that the trace has an error (`task_error`) and no reward: it
  is not taken for a low score, as in rl-reasoner, where such a row leaves its group.
"""

import asyncio
import json
from pathlib import Path

import verifiers.v1 as vf

from rl_reasoner import RecipeRewards

_HERE = Path(__file__).parent
REWARDS = RecipeRewards(_HERE.parent / "recipe.yaml")


class Unjudged(Exception):
    """A reward abstained, or failed."""


class RecipeData(vf.TaskData):
    answer: str
    task: str


class RecipeTask(vf.Task[RecipeData]):
    @vf.reward
    async def recipe(self, task, trace) -> float:
        made = await asyncio.to_thread(REWARDS.score_task, trace.last_reply, self.data.task)
        if made.value is None:
            raise Unjudged(f"{{made.outcome}}: {{made.reason}}")
        return made.value


class RecipeTaskset(vf.Taskset[RecipeTask]):
    def load(self):
        with (_HERE / "tasks.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                yield RecipeTask(RecipeData(**json.loads(line)), self.config.task)


__all__ = ["RecipeTaskset"]
'''


def _data(task: PromptedRow) -> dict[str, object]:
    """The task as verifiers' `TaskData`: a system prompt apart, other turns as messages."""
    asked = task.prompt
    turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    system = [turn["content"] for turn in turns if turn["role"] == "system"]
    others = [turn for turn in turns if turn["role"] != "system"]
    return {
        "prompt": others[0]["content"] if len(others) == 1 else others,
        "system_prompt": "\n".join(system) or None,
        "answer": task.answer,
        "task": task.text,
    }


def _files(subject: Subject, folder: str) -> Written:
    package = f"{subject.slug}_taskset"
    tree = nested(settings(_FIELDS, subject))
    tree["env"]["agent"] = {"harness": {"id": "null"}, "runtime": {"type": "subprocess"}}
    lines = [json.dumps(_data(task), ensure_ascii=False) for task in subject.tasks]
    return {
        f"{package}/__init__.py": _TASKSET.format(name=subject.slug),
        f"{package}/tasks.jsonl": "\n".join(lines) + "\n",
        "eval.json": json.dumps(tree, indent=1, ensure_ascii=False) + "\n",
    }


VERIFIERS = Engine(
    name="verifiers",
    title="verifiers",
    version="0.4.0",
    fields=_FIELDS,
    files=_files,
    start=(
        "pip install 'rl-reasoner[verifiers]'",
        "export PYTHONPATH={folder}",
        "vf-eval @ {folder}/eval.json --client.base-url http://HOST:PORT/v1 --no-push",
    ),
    outcomes="abstentions and faults are errors of their trace, which then has no reward",
)
