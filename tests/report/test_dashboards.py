"""Dashboards: which ones, under which names, and that none of them can harm a run."""

import json
import sqlite3
from pathlib import Path

import pytest

from rl_reasoner.errors import UserError
from rl_reasoner.recipe.dashboards import dashboards_of, project_of
from rl_reasoner.report.dashboards import Dashboard
from support.commands import Cli, stock


def test_which_dashboards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RL_REASONER_REPORT_TO")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name != "wandb" or None)
    assert dashboards_of("auto") == ["trackio"]
    assert dashboards_of("none") == []
    assert dashboards_of("tensorboard, trackio") == ["tensorboard", "trackio"]
    with pytest.raises(UserError, match="pip install wandb"):
        dashboards_of("wandb")
    with pytest.raises(UserError, match="Did you mean 'tensorboard'"):
        dashboards_of("tensorbord")
    monkeypatch.setenv("RL_REASONER_REPORT_TO", "tensorboard")
    assert dashboards_of("auto") == ["tensorboard"]
    monkeypatch.delenv("RL_REASONER_REPORT_TO")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert dashboards_of("auto") == []


def test_a_project_is_named_as_dashboards_take_it() -> None:
    assert project_of("my recipe/v2 (new)") == "my-recipe-v2-new"
    assert project_of("///") == "rl-reasoner"


def test_a_mistake_is_found_before_anything_is_loaded(tmp_path: Path, cli: Cli) -> None:
    stock(tmp_path)
    ended = cli("train", "tiny.yaml", "--run.report_to", "trakio")
    assert ended.code == 2
    assert "unknown dashboard 'trakio'. Did you mean 'trackio'?" in ended.err
    assert not (tmp_path / "run").exists()


def test_a_dashboard_that_fails_is_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        asked = 0

        def on_log(self, *_: object, **__: object) -> None:
            self.asked += 1
            print("noise")
            raise OSError("no room")

    pytest.importorskip("tensorboard")
    notes: list[str] = []
    dashboard = Dashboard("tensorboard", notes.append)
    dashboard._inner = broken = Broken()
    for _ in range(3):
        dashboard.on_log(None, None, None, logs={"reward": 1.0})
    assert broken.asked == 1
    assert notes == ["dashboard tensorboard: OSError: no room; the run continues without it"]
    assert capsys.readouterr().out == ""


def test_training_that_was_stopped_ends_its_dashboards(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Else they end with the process, and say so on standard output."""

    class Open:
        ended = 0

        def on_train_begin(self, *_: object, **__: object) -> None:
            """Nothing to see."""

        def on_train_end(self, *_: object, **__: object) -> None:
            self.ended += 1
            print("uploading")

    pytest.importorskip("tensorboard")
    dashboard = Dashboard("tensorboard", lambda text: None)
    dashboard._inner = inner = Open()
    dashboard.close()
    assert inner.ended == 0  # nothing was begun
    dashboard.on_train_begin(None, None, None)
    dashboard.close()
    dashboard.close()
    assert inner.ended == 1 and capsys.readouterr().out == ""


def test_trackio_and_tensorboard_get_trls_names(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    stock(tmp_path)
    ended = cli("train", "tiny.yaml", "--run.report_to", "trackio,tensorboard", "--json")
    assert ended.code == 0, ended.err
    assert set(json.loads(ended.out)) >= {"run", "policy"}  # and nothing of the dashboards' own
    assert "continues without it" not in ended.err
    [file] = (tmp_path / "trackio").glob("tiny*.db")
    rows = sqlite3.connect(file).execute("select run_name, metrics from metrics").fetchall()
    logged: dict[str, set[str]] = {}
    for name, metrics in rows:
        logged.setdefault(name, set()).update(json.loads(metrics))
    assert set(logged) == {"run/1-sft", "run/2-grpo"}
    names = {"reward", "rewards/fine/mean", "completions/mean_length", "tokens_per_second", "loss"}
    assert {f"train/{name}" for name in names} <= logged["run/2-grpo"]
    [events] = (tmp_path / "run").glob("stages/2-grpo/**/events.out*")
    tags = EventAccumulator(str(events)).Reload().Tags()["scalars"]
    assert {f"train/{name}" for name in names} <= set(tags)
