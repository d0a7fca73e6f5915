"""A pytest plugin for trl's own tests: our trainer under trl's names, and the hub's edge made here.

Read before trl's tests are imported. Two variables of the environment say what to do:
`CONFORMANCE_OURS` (1: `trl.GRPOTrainer` and `trl.GRPOConfig` are ours) and `CONFORMANCE_EDGE` (the
folder that hub.py made, or nothing where the hub itself is used).
"""

import inspect
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import trl
from hub import data_folder
from huggingface_hub import constants


def absent(name: str) -> Any:
    """A checkout of another version asks for packages that the installed trl knows nothing of."""
    if name.startswith("is_") and name.endswith("_available"):
        return lambda: False
    raise AttributeError(f"trl.import_utils has no {name}")


sys.modules["trl.import_utils"].__getattr__ = absent  # trl is a lazy module: no attribute

if os.environ["CONFORMANCE_OURS"] == "1":
    from rl_reasoner import GRPOConfig, GRPOTrainer

    trl.GRPOTrainer = GRPOTrainer
    trl.GRPOConfig = GRPOConfig

if edge := os.environ.get("CONFORMANCE_EDGE"):
    load = datasets.load_dataset

    def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
        """As datasets', with the data sets that hub.py made under their names on the hub."""
        folder = data_folder(Path(constants.HF_HUB_CACHE), path)
        return (
            load(path, name, **options)
            if folder is None
            else load(str(folder / str(name)), **options)
        )

    datasets.load_dataset = load_dataset


@pytest.fixture(autouse=True)
def numbers_of_tokens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models as wide as Qwen's where a test spells out the numbers of Qwen's tokens."""
    source = inspect.getsource(request.function)
    if edge and (
        "15164" in source or "all_masked" in source
    ):  # the latter: an end token is no chance
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(Path(edge) / "wide"))
