"""reasoning-gym's tasks as environments of one turn; the package is an extra (`reasoning-gym`).

The row's `start` is the number of a task's entry; the question is the entry's, and the score is the
task's own, of the whole entry, with the partial credit that it gives. A row's `level`, from 0, is
that of the task's own curriculum: all that makes it hard at that level, or at its last.
"""

from collections.abc import Mapping
from typing import Any

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.types import Row
from rl_reasoner.version import install_extra


class ReasoningGym:
    """One entry of a task of reasoning-gym (https://github.com/open-thought/reasoning-gym)."""

    def __init__(self, task: str, seed: int = 0, config: Mapping[str, Any] | None = None) -> None:
        """The task as reasoning-gym calls it; `seed` and the entry's number decide the question.

        An answer is taken from the last `<answer>` tag, else it is all that was written. Raises
        `UserError` where the package or the task is not there.
        """
        try:
            from reasoning_gym.factory import (
                DATASETS,
                create_curriculum,
                create_dataset,
                has_curriculum,
            )
            from reasoning_gym.utils import extract_answer
        except ImportError as error:
            raise UserError(
                f"reasoning-gym is not installed: {install_extra('reasoning-gym')}"
            ) from error
        if task not in DATASETS:
            raise unknown("task of reasoning-gym", task, DATASETS)
        self._create, self._extract = create_dataset, extract_answer
        self._curriculum = create_curriculum if has_curriculum(task) else None
        self._task, self._seed, self._config = task, seed, dict(config or {})
        self._dataset: Any = None
        self._entry: Any = None

    def reset(self, row: Row) -> str:
        """The question of the entry that the row names."""
        number = int(row["start"])
        settings = {"size": number + 1, **self._config, "seed": self._seed}
        if row.get("level") is not None:
            settings = self._at_level(int(row["level"]), settings)
        self._dataset = self._create(self._task, **settings)
        self._entry = self._dataset[number]
        return str(self._entry["question"])

    def _at_level(self, level: int, settings: dict[str, Any]) -> dict[str, Any]:
        """`settings` as the task's curriculum has them at `level`."""
        if self._curriculum is None:
            raise UserError(f"task {self._task!r} of reasoning-gym has no levels")
        if level < 0:
            raise UserError(f"level {level} of task {self._task!r}: levels begin with 0")
        curriculum = self._curriculum(self._task)
        curriculum.set_global_level(level)
        return {**vars(curriculum.generate_configuration(settings))}

    def step(self, completion: str) -> tuple[str, float, bool]:
        """The score of the answer."""
        answer = self._extract(completion)
        text = completion.strip() if answer is None else answer
        return "", float(self._dataset.score_answer(text, self._entry)), True
