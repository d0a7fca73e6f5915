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
        return main(["audit", str(run), "--no-replay"]) == 0
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
