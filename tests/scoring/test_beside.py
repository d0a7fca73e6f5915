"""A user's file imports what lies beside it: here, in its worker, and not what lies elsewhere."""

import importlib
import os
import signal
import sys
import textwrap
import time
import warnings
from pathlib import Path

import pytest

import rl_reasoner
from rl_reasoner.environments.runner import EnvironmentRunner
from rl_reasoner.scoring.batch import score_batch
from rl_reasoner.scoring.beside import hash_of_code, helpers_of
from rl_reasoner.scoring.registry import import_module_of, load_reward
from rl_reasoner.scoring.runner import runs_apart
from rl_reasoner.tools import load_tool
from rl_reasoner.types import Score
from support.outcomes import QUICK, shown

HEAD = "import os\nfrom rl_reasoner import reward\n"


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return folder


def paid(reference: str) -> list[object]:
    fn = load_reward(reference)
    found = shown(score_batch(fn, ["a"], {}, QUICK))
    assert runs_apart(fn)
    return found


def test_each_reward_has_the_helper_of_its_own_folder(tmp_path: Path) -> None:
    body = HEAD + "from besides import worth\n@reward\ndef f(completion): return worth()\n"
    before = [*sys.path], [*sys.meta_path]
    for worth in (1.0, 2.0):
        folder = write(tmp_path / str(worth), r=body, besides=f"def worth(): return {worth}\n")
        assert paid(f"{folder}/r.py:f") == [worth]
    assert ([*sys.path], [*sys.meta_path]) == before


def test_inside_a_function_and_as_the_function_itself(tmp_path: Path) -> None:
    helper = HEAD + "@reward\ndef of_helper(completion): return 3.0\n"
    lazy = "@reward\ndef lazy(completion):\n    import late\n    return late.WORTH\n"
    body = f"{HEAD}from early import of_helper\n{lazy}"
    folder = write(tmp_path, r=body, early=helper, late="WORTH = 4.0\n")
    assert paid(f"{folder}/r.py:of_helper") == [3.0]
    assert paid(f"{folder}/r.py:lazy") == [4.0]


def test_a_helper_called_like_a_standard_module_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    body = (
        HEAD + "import colorsys\n@reward\ndef f(completion): return colorsys.rgb_to_hsv(1,1,1)[2]"
    )
    folder = write(tmp_path, r=body, colorsys="raise RuntimeError('not the standard one')\n")
    assert paid(f"{folder}/r.py:f") == [1.0]


def test_a_helper_called_like_an_installed_package_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = write(tmp_path / "site-packages", installed_name="WORTH = 7.0\n")
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.delitem(sys.modules, "installed_name", raising=False)
    body = HEAD + "import installed_name\n@reward\ndef f(completion): return installed_name.WORTH\n"
    mine = write(tmp_path / "mine", r=body, installed_name="raise RuntimeError('not this')\n")
    assert load_reward(f"{mine}/r.py:f")("a") == Score(7.0)
    used = HEAD + "from datasets import Dataset\n@reward\ndef f(completion): return 8.0\n"
    write(tmp_path / "mine", r=used, datasets="raise RuntimeError('not this')\n")
    assert paid(f"{mine}/r.py:f") == [8.0]


def test_a_helper_of_the_working_folder_comes_after_that_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("at_the_top", "inside")
    here = write(tmp_path / "here", **dict.fromkeys(names, "WORTH = -1.0\n"))
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend("")
    monkeypatch.setenv("PYTHONPATH", str(here), prepend=os.pathsep)
    body = "import at_the_top\n@reward\ndef f(completion):\n    import inside\n"
    body += "    return at_the_top.WORTH + inside.WORTH\n"
    mine = write(tmp_path / "mine", r=HEAD + body, **dict.fromkeys(names, "WORTH = 2.0\n"))
    assert paid(f"{mine}/r.py:f") == [4.0]


def test_a_folder_of_the_same_name_is_no_helper_where_there_is_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(write(tmp_path / "theirs", kept_apart="WORTH = 3.0\n")))
    body = HEAD + "import kept_apart\n@reward\ndef f(completion): return kept_apart.WORTH\n"
    mine = write(tmp_path / "mine", r=body)
    (mine / "kept_apart").mkdir()
    assert load_reward(f"{mine}/r.py:f")("a") == Score(3.0)


def test_tools_and_the_functions_of_judges_too(tmp_path: Path) -> None:
    tool = (
        "from plus_one import plus\ndef more(n: int) -> int:\n    'One more.'\n    return plus(n)\n"
    )
    folder = write(tmp_path, t=tool, plus_one="def plus(n): return n + 1\n")
    assert load_tool(f"{folder}/t.py:more").fn(2) == 3
    assert import_module_of(f"{folder}/t.py", "t", "judge").more(2) == 3


LATE = """
import json

class Pays:
    def reset(self, row): ...
    def step(self, completion):
        from late_worth import WORTH
        return "x", WORTH, True

class OfTrl:
    def reset(self, **row): ...
    def get_reward(self):
        from late_worth import WORTH
        return WORTH

def ask(messages, seed):
    from late_worth import POINTS
    return json.dumps({"points": POINTS})
"""


def test_an_import_inside_a_function_of_an_environment_or_a_judge(tmp_path: Path) -> None:
    points = {"correct": 4, "sound": 4}
    folder = write(tmp_path, late=LATE, late_worth=f"WORTH = 4.0\nPOINTS = {points}\n")
    factory = {"factory": f"{folder}/late.py:OfTrl"}
    for use, options in ((f"{folder}/late.py:Pays", {}), ("trl", factory)):
        with EnvironmentRunner(use, options) as runner:
            episode = runner.episode({"problem": "p"})
            assert runner.step(episode, "done").result().reward == 4.0
    judging = {"function": f"{folder}/late.py:ask", "cache": str(tmp_path / "replies")}
    [judged] = score_batch(load_reward("judge", judging), ["a"], {"prompts": ["p"]})
    assert isinstance(judged, Score) and judged.value == 1.0


def test_what_the_program_has_imported_under_the_same_name_stays_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = write(tmp_path / "theirs", shared_name="WORTH = 5.0\n")
    monkeypatch.syspath_prepend(str(theirs))
    monkeypatch.delitem(sys.modules, "shared_name", raising=False)
    shared_name = importlib.import_module("shared_name")
    body = HEAD + "from shared_name import WORTH\n@reward\ndef f(completion): return WORTH\n"
    mine = write(tmp_path / "mine", r=body, shared_name="WORTH = 6.0\n")
    assert load_reward(f"{mine}/r.py:f")("a") == Score(6.0)
    assert paid(f"{mine}/r.py:f") == [6.0]
    assert sys.modules["shared_name"] is shared_name
    assert shared_name.WORTH == 5.0


def test_helpers_are_what_the_file_and_they_import_of_its_folder(tmp_path: Path) -> None:
    body = "import json, torch, first\ndef f():\n    from pack.inner import deep\n"
    files = {
        "first": "import second",
        "second": "import first",
        "other": "",
        "json": "",
        "torch": "",
    }
    folder = write(tmp_path, r=body, **files)
    pack = write(folder / "pack", __init__="", near="", apart="", inner="from . import near")
    assert [one.relative_to(tmp_path).as_posix() for one in helpers_of(folder / "r.py")] == [
        "first.py",
        "pack/__init__.py",
        "pack/inner.py",
        "pack/near.py",
        "second.py",
    ]
    (pack / "apart.py").write_text("def broken(")
    (folder / "first.py").write_text("import pack.apart\nfrom .. import second\n")
    found = {one.stem for one in helpers_of(folder / "r.py")}
    assert found == {"first", "__init__", "inner", "near", "apart"}


def test_a_file_is_other_code_when_its_helper_is(tmp_path: Path) -> None:
    folder = write(tmp_path, r="import aid\n", aid="import deeper\n", deeper="WORTH = 1\n", x="")
    before = hash_of_code(folder / "r.py")
    (folder / "x.py").write_text("nobody imports it")
    assert hash_of_code(folder / "r.py") == before
    (folder / "deeper.py").write_text("WORTH = 2.0\n")
    assert hash_of_code(folder / "r.py") != before


def test_an_installed_package_beside_it_is_no_helper(tmp_path: Path) -> None:
    body = 'import rl_reasoner, dist\nPATTERN = "\\d"\n'  # an escape that Python warns of
    folder = write(tmp_path, r=body, dist="")
    (folder / "rl_reasoner").symlink_to(Path(rl_reasoner.__file__).parent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [one.name for one in helpers_of(folder / "r.py")] == ["dist.py"]


def test_a_file_that_changes_the_working_folder_changes_it_for_its_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    go = "os.chdir(os.path.dirname(__file__))\nWORTH = float(open('worth.txt').read())\n"
    body = "@reward\ndef f(completion): return WORTH + float(open('worth.txt').read())\n"
    folder = write(tmp_path / "own", r=f"{HEAD}{go}{body}")
    (folder / "worth.txt").write_text("2")
    assert paid("own/r.py:f") == [4.0]
    assert Path.cwd() == tmp_path


def test_an_edited_file_or_helper_is_told_where_its_process_is_started_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = "@reward\ndef f(completion): return os.getpid() if completion == 'pid' else WORTH\n"
    folder = write(tmp_path, r=f"{HEAD}from besides import WORTH\n{body}", besides="WORTH = 1.0")
    fn = load_reward(f"{folder}/r.py:f")
    for edited in (False, True):
        [pid] = shown(score_batch(fn, ["pid"], {}, QUICK))
        if edited:
            write(folder, besides="WORTH = 2.0  # edited")
            assert shown(score_batch(fn, ["a"], {}, QUICK)) == [1.0], "its process has it already"
        assert isinstance(pid, float)
        os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.1)
        assert shown(score_batch(fn, ["a"], {}, QUICK)) == [2.0 if edited else 1.0]
        assert ("reward 'f': its file, or a helper beside it, was edited" in caplog.text) == edited
