"""A run that goes on with other code or data says so, runs again, and still stands its audit."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import Recipe, train
from rl_reasoner.cli import main
from rl_reasoner.dataset.sets import find_set
from rl_reasoner.pipeline.lineage import hash_of
from rl_reasoner.recipe.recipe import Evals
from rl_reasoner.scoring.beside import hash_of_code
from support.tiny import REWARD, grpo, recipe

BODY = REWARD.replace("from rl_reasoner", "from share import SHARE\nfrom rl_reasoner").replace(
    "0.5 *", "SHARE *"
)


def with_rows(folder: Path, **changes: Any) -> Recipe:
    """One GRPO stage on the rows of a file."""
    rows = [{"problem": f"{n}+1=", "answer": str(n + 1)} for n in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return recipe(folder, grpo(data={"path": str(folder / "rows.jsonl")}), **changes)


def facts(run: Path, name: str = "lock.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / name).read_text())
    return found


def stands(run: Path) -> bool:
    """Whether an audit finds no difference."""
    try:
        return main(["audit", str(run), "--no-replay", "--run-its-code"]) == 0
    except SystemExit as ended:
        return ended.code == 0


def test_a_changed_helper_renews_the_lock_and_the_audit_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "share.py").write_text("SHARE = 0.5\n")
    wanted = with_rows(tmp_path, source=BODY)
    run = train(wanted, quiet=True).folder
    before = facts(run)
    train(wanted, resume=run, quiet=True)
    assert facts(run) == before
    (tmp_path / "share.py").write_text("SHARE = 0.25\n")
    assert not stands(run)
    capsys.readouterr()
    train(wanted, resume=run)
    said = "".join(capsys.readouterr().err.split())  # a long path is broken over lines
    assert f"runagain({tmp_path}/near.py:nearchanged)" in said
    after = facts(run)
    assert after["rewards"] != before["rewards"]
    assert after["command"] == before["command"]
    assert facts(run / "old" / "1") == before
    assert stands(run)


def test_overlaps_are_counted_again_when_a_file_has_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = with_rows(tmp_path)
    run = train(wanted, quiet=True).folder
    assert facts(run, "contamination.json")["modular_test"]["contaminated"] == 0
    tested = find_set("modular_test")
    assert tested is not None
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.writelines(tested.read_text().splitlines(keepends=True)[:3])
    capsys.readouterr()
    train(wanted, resume=run)
    assert "problems are in the training data" in " ".join(capsys.readouterr().err.split())
    assert facts(run, "contamination.json")["modular_test"]["contaminated"] >= 3
    assert stands(run)


def test_a_function_of_a_module_is_part_of_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "nearly.py"
    module.write_text(REWARD)
    wanted = with_rows(tmp_path, rewards={"nearly:near": 1.0})
    run = train(wanted, quiet=True).folder
    stage = run / "stages" / "1-grpo"
    before = (stage / "done.json").read_text()

    def gone_on() -> str:
        monkeypatch.delitem(sys.modules, "nearly", raising=False)
        importlib.invalidate_caches()
        train(wanted, resume=run, quiet=True)
        return (stage / "done.json").read_text()

    made = facts(stage)
    assert made["made_from"]["code"].keys() == {"nearly:near"}
    made["made_from"]["code"] = {}  # as an older version wrote it
    (stage / "lock.json").write_text(json.dumps(made))
    assert gone_on() == before
    module.write_text(REWARD.replace("0.5 *", "0.25 *"))
    (stage / "lock.json").write_text(
        json.dumps({**made, "made_from": {**made["made_from"], "code": {"nearly:near": "other"}}})
    )
    assert gone_on() != before
    assert (run / "old" / "1" / "stages" / "1-grpo").is_dir()


ASK = """
import json

from worth import WORTH

def ask(messages, seed):
    return json.dumps({"points": {"polite": WORTH + seed % 2}})
"""
RUBRIC = "items:\n- {name: polite, text: It is polite.}\npoints: "


def judged(folder: Path) -> Recipe:
    """A run that is paid and evaluated by a judge, whose function and rubric are files."""
    (folder / "worth.py").write_text("WORTH = 1\n")
    (folder / "ask.py").write_text(ASK)
    (folder / "rubric.yaml").write_text(f"{RUBRIC}4\n")
    options = {
        "function": f"{folder}/ask.py:ask",
        "rubric": f"{folder}/rubric.yaml",
        "cache": str(folder / "replies"),
    }
    return with_rows(
        folder,
        rewards={"judge": {"weight": 1.0, "options": options}},
        evals={"reward": "judge", "reward_options": options},
    )


def test_another_rubric_or_function_of_a_judge_is_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = judged(tmp_path)
    run = train(wanted, quiet=True).folder
    results = (Path("stages/1-grpo/lock.json"), Path("evals/before.json"))
    made = [(run / name).read_bytes() for name in results]
    train(wanted, resume=run, quiet=True)
    assert [(run / name).read_bytes() for name in results] == made and stands(run)
    for file, text in (("rubric.yaml", f"{RUBRIC}8\n"), ("worth.py", "WORTH = 2\n")):
        (tmp_path / file).write_text(text)
        assert not stands(run)
        capsys.readouterr()
        train(wanted, resume=run)
        said = "".join(capsys.readouterr().err.split())
        changed = {"rubric.yaml": "rubric.yaml", "worth.py": "ask.py:ask"}[file]
        assert f"runagain({tmp_path}/{changed}changed)" in said
        now = [(run / name).read_bytes() for name in results]
        assert all(one != other for one, other in zip(made, now, strict=True))
        assert stands(run)
        made = now


def test_a_run_that_did_not_keep_what_options_name_goes_on(tmp_path: Path) -> None:
    wanted = judged(tmp_path)
    run = train(wanted, quiet=True).folder
    named = {f"{tmp_path}/ask.py:ask", f"{tmp_path}/rubric.yaml"}
    stage, evaluated = run / "stages/1-grpo", run / "evals/before.json"
    begun, whole, result = facts(stage), facts(run), json.loads(evaluated.read_text())
    assert begun["made_from"].pop("named").keys() == whole.pop("named").keys() == named
    for name in named:
        del result["manifest"]["files"][name]
    for file, content in (
        (stage / "lock.json", begun),
        (run / "lock.json", whole),
        (evaluated, result),
    ):
        file.write_text(json.dumps(content))
    before = (stage / "done.json").read_bytes(), evaluated.read_bytes()
    train(wanted, resume=run, quiet=True)
    assert ((stage / "done.json").read_bytes(), evaluated.read_bytes()) == before
    assert not (run / "old").exists()


ADDS = '''
from rl_reasoner import tool

@tool
def adds(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: One.
        b: The other.
    """
    return a + b
'''


def test_code_that_is_edited_while_a_run_trains_is_kept_as_it_was_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reward of the first stage edits the files: the second goes on with what was read."""
    near, adds, edits = (tmp_path / name for name in ("near.py", "adds.py", "edits"))
    edits.mkdir()
    (edits / "near.py").write_text(REWARD.replace("0.5 *", "0.25 *"))
    adds.write_text(ADDS)
    (edits / "adds.py").write_text(ADDS.replace("a + b", "b + a"))
    copy = f"    import shutil; shutil.copytree({str(edits)!r}, {str(tmp_path)!r}, "
    source = REWARD.replace("    if answer", f"{copy}dirs_exist_ok=True)\n    if answer")
    rows = [{"problem": f"{n}+1=", "answer": str(n + 1)} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = grpo(data={"path": str(tmp_path / "rows.jsonl")}, steps=1)
    tools = {"use": [f"{adds}:adds"], "format": "tags"}
    stages = [{**stage, "name": "one"}, {**stage, "name": "two"}]
    wanted = recipe(tmp_path, *stages, source=source, tools=tools)
    read = [hash_of_code(file) for file in (near, adds)]
    run = train(wanted).folder

    def recorded(stage: str) -> list[str]:
        made = facts(run / "stages" / stage)["made_from"]
        return [made["code"][f"{near}:near"], made["tools"]["code"][f"{adds}:adds"]]

    assert "0.25" in near.read_text()
    assert recorded("1-one") == recorded("2-two") == read
    assert (run / "policy").is_dir() and (run / "evals" / "after.json").is_file(), "it has ended"
    said = "".join(capsys.readouterr().err.split())
    assert f"editedorremovedwhiletherunwenton:{near}:near,{adds}:adds." in said
    train(wanted, resume=run)
    assert recorded("1-one") == recorded("2-two") == [hash_of_code(file) for file in (near, adds)]
    assert "editedorremoved" not in "".join(capsys.readouterr().err.split())
    assert stands(run)


def test_a_rubric_that_is_removed_while_a_run_trains_leaves_the_run_its_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rubric, stages = tmp_path / "rubric.yaml", tmp_path / "run" / "stages"
    wanted = judged(tmp_path).model_copy(update={"evals": Evals(sets=[])})
    removes = (
        "    from pathlib import Path\n"
        f"    if Path({str(stages)!r}).is_dir():\n"
        f"        Path({str(rubric)!r}).unlink(missing_ok=True)\n"
    )
    (tmp_path / "ask.py").write_text(ASK.replace("    return", f"{removes}    return"))
    read = hash_of(rubric)
    run = train(wanted).folder
    assert not rubric.exists()
    assert (run / "policy").is_dir() and (run / "hashes.json").is_file(), "it has ended"
    assert facts(run / "stages/1-grpo")["made_from"]["named"][str(rubric)] == read
    said = "".join(capsys.readouterr().err.split())
    assert f"editedorremovedwhiletherunwenton:{rubric}." in said


def test_rows_beside_those_of_a_stage_that_are_edited_meanwhile_leave_the_run_its_policy(
    tmp_path: Path,
) -> None:
    """They are read when their stage begins, and it is recorded with what they were then."""
    file, folder = tmp_path / "rows.jsonl", tmp_path / "run" / "stages" / "2-two"
    edits = (
        "    from pathlib import Path\n"
        f"    if Path({str(folder)!r}).is_dir():\n"
        f"        with open({str(file)!r}, 'a') as rows:\n"
        "            rows.write(chr(10))\n"
    )
    near = tmp_path / "near.py"
    chosen = {"kind": "filter", "name": "one", "data": {"task": "modular", "count": 4}}
    chosen |= {"samples": 1, "keep": "0..1", "reward": f"{near}:near"}
    chosen |= {"sampling": {"max_tokens": 4}}
    mixed = grpo(name="two", steps=1, data=[{"stage": "one"}, {"path": str(file)}])
    source = REWARD.replace("    if answer", f"{edits}    if answer")
    wanted = recipe(tmp_path, chosen, mixed, source=source)
    file.write_text("".join(json.dumps({"problem": f"{n}+1=", "answer": "1"}) + "\n" for n in "23"))
    read = hash_of(file)
    run = train(wanted, quiet=True).folder
    assert facts(folder)["made_from"]["files"][str(file)] == read != hash_of(file)
    assert (run / "policy").is_dir() and (run / "evals" / "after.json").is_file(), "it has ended"
    near.write_text(REWARD)
    train(wanted, resume=run, quiet=True)
    assert facts(folder)["made_from"]["files"][str(file)] == hash_of(file)
    assert stands(run)


def test_a_filter_is_recorded_with_the_reward_that_it_began_with(tmp_path: Path) -> None:
    """It loads it then: an edit while an earlier stage trained is what judges."""
    judge, folder = tmp_path / "judge.py", tmp_path / "run" / "stages"
    before, after = (REWARD.replace("near", "judge").replace("0.5 *", f"{n} *") for n in (0.5, 0.4))
    judge.write_text(before)
    edits = (
        "    from pathlib import Path\n"
        f"    if Path({str(folder)!r}).is_dir():\n"
        f"        Path({str(judge)!r}).write_text({after!r})\n"
    )
    chosen = {"kind": "filter", "name": "two", "data": {"task": "modular", "count": 4}}
    chosen |= {"samples": 1, "keep": "0..1", "reward": f"{judge}:judge"}
    chosen |= {"sampling": {"max_tokens": 4}}
    stages = [grpo(name="one", steps=1), chosen, grpo(name="three", steps=1, data={"stage": "two"})]
    source = REWARD.replace("    if answer", f"{edits}    if answer")
    wanted = recipe(tmp_path, *stages, source=source, evals={"sets": []})
    run = train(wanted, quiet=True).folder
    assert judge.read_text() == after
    assert facts(folder / "2-two")["made_from"]["code"] == hash_of_code(judge)
    assert (run / "policy").is_dir(), "it has ended"
