"""Dashboards beside the run folder's own files: trackio where it is installed, others by name.

`run.report_to` names them: trackio (kept on this machine, nothing is sent), tensorboard, wandb.
They get trl's metrics under trl's names, by transformers' own callbacks, and what the recorder adds
(accuracy on the validation set, tokens a second). A dashboard that fails is left, the run goes on.
`RL_REASONER_REPORT_TO` stands in for "auto".
"""

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from rl_reasoner.recipe.dashboards import dashboards_of

_CALLBACKS = {
    "trackio": TrackioCallback,
    "tensorboard": TensorBoardCallback,
    "wandb": WandbCallback,
}


def callbacks_of(report_to: str, note: Callable[[str], None]) -> Sequence["Dashboard"]:
    """A callback for each dashboard; `note` hears of one that fails."""
    return [Dashboard(name, note) for name in dashboards_of(report_to)]


class Dashboard(TrainerCallback):  # type: ignore[misc]
    """transformers' callback of one dashboard: silent, and given up at its first error."""

    def __init__(self, name: str, note: Callable[[str], None]) -> None:
        self.name = name
        self.note = note
        self._inner: Any = None
        self._ending: Callable[[], None] | None = None
        self._ask(lambda: setattr(self, "_inner", _CALLBACKS[name]()))

    def _ask(self, work: Callable[[], Any]) -> None:
        try:
            with redirect_stdout(io.StringIO()):  # results alone go to standard output
                work()
        except Exception as error:  # of any kind: code and services of others
            self._inner = None
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            self.note(f"dashboard {self.name}: {reason}; the run continues without it")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._inner is not None:
            self._ending = lambda: self.on_train_end(args, state, control, **kwargs)
            self._ask(lambda: self._inner.on_train_begin(args, state, control, **kwargs))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self._inner is not None:
            numbers = {k: v for k, v in (logs or {}).items() if isinstance(v, int | float)}
            self._ask(lambda: self._inner.on_log(args, state, control, logs=numbers, **kwargs))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._ending = None
        if self._inner is not None:
            self._ask(lambda: self._inner.on_train_end(args, state, control, **kwargs))

    def close(self) -> None:
        """End what training began, where it did not come to its end: silently, as all else."""
        if self._ending is not None:
            self._ending()
