"""Hints in errors: the nearest name where one is near, silence where none is."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner.dataset.sets import check_set
from rl_reasoner.errors import UserError, did_you_mean, unknown
from rl_reasoner.paths import room
from rl_reasoner.recipe.load import find_recipe

NAMES = ["temperature", "max_tokens", "micro_batch", "on_bad_row", "scale_rewards"]


@given(st.sampled_from(NAMES), st.data())
def test_one_wrong_key_still_finds_the_name(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(name) - 1))
    typed = data.draw(
        st.sampled_from([name[:at] + name[at + 1 :], name[:at] + "x" + name[at:], name.upper()[:0]])
    )
    hint = did_you_mean(typed, NAMES)
    assert hint == (f" Did you mean {name!r}?" if typed else "")


def test_dashes_of_flags_make_nothing_near() -> None:
    assert did_you_mean("--colums", ["--out", "--json"]) == ""
    assert did_you_mean("--colums", ["--out", "--columns"]) == " Did you mean '--columns'?"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("data.cvs", "data.csv"),
        ("data.csvl", "data.csv"),
        ("dta.jsonl", "data.jsonl"),
        ("a73.jsnol", "a37.jsonl"),
        ("sub/data.cvs", "sub/data.csv"),
        ("nope.jsonl", ""),
        ("b.jsnol", ""),
    ],
)
def test_a_file_is_meant_by_what_stands_before_its_ending(
    given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("data.csv", "data.jsonl", "data.txt", "a37.jsonl", "a.jsonl", "sub/data.csv"):
        (tmp_path / name).touch()
    hint = f" Did you mean {meant!r}?" if meant else ""
    with pytest.raises(UserError) as told:
        check_set(given)
    assert str(told.value) == f"there is no data file or set {given!r}.{hint}"


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("quikstart.yaml", " Did you mean 'quickstart'?"),
        ("gsm8k.yaml", " Did you mean 'gsm8k'?"),
        ("zz.yaml", ""),
        ("mine.ymal", " Did you mean 'mine.yaml'?"),
    ],
)
def test_a_recipe_is_meant_by_what_stands_before_its_ending(
    given: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("r.yaml", "tm.yaml", "mine.yaml", "quick.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UserError) as told:
        find_recipe(given)
    assert str(told.value) == f"there is no recipe file {given}.{hint}"


def test_nothing_near_means_no_hint() -> None:
    assert did_you_mean("zzzzz", NAMES) == ""
    assert did_you_mean("temperature", []) == ""


def test_unknown_names_what_there_is_in_order() -> None:
    error = unknown("reward", "lenght", ["length", "boxed"])
    assert str(error) == "unknown reward 'lenght'. Did you mean 'length'? There are: boxed, length."


def test_a_long_list_of_names_is_not_printed() -> None:
    names = [f"argument_{n}" for n in range(41)]
    assert str(unknown("argument", "argument_x", names)).startswith("unknown argument 'argument_x'")
    assert "There are" not in str(unknown("argument", "argument_x", names))
    assert "There are" in str(unknown("argument", "argument_x", names[:40]))


def test_unknown_names_who_should_have_it() -> None:
    error = unknown("option", "tmie", ["time"], owner="reward slow")
    assert str(error) == "reward slow has no option 'tmie'. Did you mean 'time'? There are: time."
    assert str(unknown("option", "x", [], owner="reward slow")) == "reward slow has no option 'x'."


def test_every_message_is_kept_apart() -> None:
    error = UserError("one", "two")
    assert error.messages == ("one", "two")
    assert str(error) == "one\ntwo"


def test_rooms_are_found_and_a_missing_one_is_named() -> None:
    assert (room("data") / "modular_test.jsonl").is_file()
    assert (room("recipes") / "quickstart.py").is_file()
    assert (room("rewards") / "length.py").is_file()
    with pytest.raises(FileNotFoundError, match="'cellar'"):
        room("cellar")
