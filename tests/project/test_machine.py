"""Choices by measurement: made once a machine, and the same again where a run is resumed."""

import json
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner.errors import UserError
from rl_reasoner.machine import VARIABLE, Choices, choices_file, raced


@pytest.fixture(autouse=True)
def nothing_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RL_REASONER_CACHE", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)


def never() -> Any:
    raise AssertionError("measured again")


def test_a_choice_is_measured_once_and_kept_for_later_processes() -> None:
    assert Choices().get("products", lambda: ["mkl"]) == ["mkl"]
    assert Choices().get("products", never) == ["mkl"]
    assert json.loads(choices_file().read_text())["choices"] == {"products": ["mkl"]}


def test_a_resumed_run_takes_what_it_recorded_not_what_the_cache_says() -> None:
    one, other = Choices(), Choices()
    one.get("products", lambda: "mkl")
    recorded = one.taken()
    choices_file().unlink()
    other.get("products", lambda: "onednn")
    with other.during(recorded):
        assert other.get("products", never) == "mkl"
    assert other.get("products", never) == "onednn"


def test_a_run_is_told_of_each_new_choice() -> None:
    kept: list[dict[str, Any]] = []
    made = Choices()
    with made.during(keep=kept.append):
        made.get("products", lambda: "mkl")
        made.get("threads", lambda: 1)
        made.get("products", never)
    assert kept == [{"products": "mkl"}, {"products": "mkl", "threads": 1}]


def test_what_a_run_chose_before_it_was_resumed_stays_with_it() -> None:
    kept: list[dict[str, Any]] = []
    made = Choices()
    with made.during({"products": "mkl"}, keep=kept.append):
        made.get("threads", lambda: 1)
    assert kept == [{"products": "mkl", "threads": 1}]


def test_the_environment_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, '{"products": "onednn"}')
    made = Choices()
    with made.during({"products": "mkl"}):
        assert made.get("products", never) == "onednn"
    assert not choices_file().exists()
    monkeypatch.setenv(VARIABLE, "onednn")
    with pytest.raises(UserError, match="expected a JSON object of choices by name"):
        made.get("products", never)


def test_what_this_machine_cannot_do_is_measured_anew(caplog: pytest.LogCaptureFixture) -> None:
    made = Choices()
    with made.during({"products": "of another machine"}):
        assert made.get("products", lambda: "mkl", lambda value: value == "mkl") == "mkl"
    assert "of another machine" in caplog.text


def test_a_new_way_is_measured_by_new_runs_alone() -> None:
    """What the cache kept from before there was one is measured anew; what a run took stays."""
    old: dict[str, Any] = {"best": "mkl", "of": ["mkl"]}
    new: dict[str, Any] = {"best": "onednn", "of": ["mkl", "onednn"]}

    def knows_both(value: dict[str, Any]) -> bool:
        return "onednn" in value["of"]

    Choices().get("products", lambda: old)
    with (resumed := Choices()).during({"products": old}):
        assert resumed.get("products", never, complete=knows_both) == old
    assert Choices().get("products", lambda: new, complete=knows_both) == new
    assert Choices().get("products", never, complete=knows_both) == new


def test_a_damaged_file_or_a_folder_that_cannot_be_written_costs_only_the_measurement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = choices_file()
    file.parent.mkdir(parents=True)
    file.write_text("{")
    assert Choices().get("products", lambda: "mkl") == "mkl"
    monkeypatch.setenv("RL_REASONER_CACHE", "/proc/nowhere")
    assert Choices().get("products", lambda: "mkl") == "mkl"


def test_ways_take_turns_and_the_best_go_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy moment, which the slower way alone would have missed, meets both."""
    clock, order = [0.0], []
    monkeypatch.setattr("rl_reasoner.machine.time.perf_counter", lambda: clock[0])

    def way(name: str, seconds: float) -> None:
        busy = len(order) < 6
        order.append(name)
        clock[0] += seconds * (10 if busy else 1)

    found = raced({"fast": lambda: way("fast", 1), "slow": lambda: way("slow", 2)}, goes=3)
    assert found == {"fast": 1, "slow": 2}
    assert order == ["fast", "fast", "slow", "slow"] * 3
