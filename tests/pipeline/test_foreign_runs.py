"""Run folders that others wrote: nothing is written outside them, each mistake is one message."""

import json
import os
import resource
import subprocess
import sys
import threading
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from rl_reasoner.foreign import json_value, yaml_value
from rl_reasoner.recipe.recipe import RecipeLoader
from rl_reasoner.report.server import serve_folder
from support.commands import Cli
from support.report_runs import make_run

STAGE = Path("run/stages/2-grpo")
DEEP = "[" * 50_000
HUGE = "9" * 4_300  # json and int() still take it, float() does not
BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
)
MERGED = "\n".join(
    ["a0: &a0 {k: x, l: x}"]
    + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 20)}]}}" for n in range(1, 9)]
)
WHEEL = "policy: &a [*a]\n"


# ---------------------------------------------------------------------------------------- links


@pytest.mark.parametrize(
    "link",
    ["ledger.jsonl", "metrics.jsonl", "rollouts.jsonl", ".metrics.jsonl.part", "folder"],
)
@pytest.mark.parametrize("verb", [("train", "--resume", "run"), ("report", "run")], ids=str)
def test_no_verb_follows_a_link_out_of_a_run(
    link: str, verb: tuple[str, ...], here: Path, cli: Cli
) -> None:
    outside = here / "outside"
    outside.mkdir()
    (outside / "kept").write_text("one\ntwo\n")
    place = here / STAGE / link
    if place.is_file():
        place.unlink()
    (here / "run/stages/2-grpo/done.json").unlink()
    place.symlink_to(outside if link == "folder" else outside / "kept")
    done = cli(*verb)
    assert done.code == 2 and done.err.count("\n") == 1 + (verb[0] == "train")
    assert f"{link} is a link" in done.err
    assert [file.read_text() for file in outside.iterdir()] == ["one\ntwo\n"]


@pytest.mark.parametrize("name", [".report.html.part", "report.html"])
def test_a_report_is_written_into_the_run(name: str, here: Path, cli: Cli) -> None:
    (here / "mine").write_text("mine")
    (here / "run" / name).unlink(missing_ok=True)
    (here / "run" / name).symlink_to(here / "mine")
    assert cli("report", "run").code == 2
    assert (here / "mine").read_text() == "mine"


def test_results_that_are_named_follow_no_link_that_lies_beside(here: Path, cli: Cli) -> None:
    (here / "mine").write_text("mine")
    (here / ".out.json.part").symlink_to(here / "mine")
    assert (
        cli("eval", "--replay", "run/evals/after.json", "--out", "out.json", "--run-its-code").code
        == 0
    )
    assert (here / "mine").read_text() == "mine" and json.loads((here / "out.json").read_text())
    for verb in (("copy", "quickstart"), ("export", "run")):
        (here / "new.py").symlink_to(here / "nowhere")
        done = cli(*verb, "new.py")
        assert done.code == 2 and "exists already" in done.err
        assert not (here / "nowhere").exists()
        (here / "new.py").unlink()


@pytest.mark.parametrize("name", [".lock", "stages/2-grpo/ledger.jsonl"])
def test_a_pipe_in_a_run_is_not_waited_for(name: str, here: Path, cli: Cli) -> None:
    (here / "run" / name).unlink(missing_ok=True)
    os.mkfifo(here / "run" / name)
    for verb in (("train", "--resume", "run"), ("report", "run")):
        done = cli(*verb)
        assert done.code == 2 and f"{name} is neither file nor folder" in done.err


def test_a_run_folder_may_be_a_link_itself(here: Path, cli: Cli) -> None:
    (here / "linked").symlink_to(here / "run")
    assert cli("report", "linked").code == 0


# --------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "aliases that unfold to more than 100,000 values"),
        (MERGED, "aliases that unfold to more than 100,000 values"),
        (WHEEL, "nested more than 64 deep"),
        (f"policy: {DEEP}", "nested more than 64 deep"),
        ("policy: " + "{a: " * 50_000, "nested more than 64 deep"),
        (f"name: x\nrun: {{seed: {HUGE}}}", "a number of 4,300 digits"),
        ("name: x\nrun: {seed: !!int x}", "an impossible value"),
        ("name: 2001-99-99", "an impossible value"),
        ("# " + "x" * 2_000_000, "more than 1,048,576 characters"),
    ],
    ids=["bomb", "merges", "wheel", "lists", "maps", "digits", "tag", "date", "long"],
)
def test_a_recipe_that_is_a_bomb_is_one_message_in_little_memory(
    text: str, says: str, tmp_path: Path
) -> None:
    """In two gigabytes of address space: aliases took three of memory, and more with every line."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(text)
    (tmp_path / "run" / ".lock").touch()
    limit = (2 << 30, 2 << 30)
    code = "import sys; from rl_reasoner.cli import main; print(*(main(a) for a in VERBS))"
    verbs = [["train", "run/recipe.yaml"], ["train", "--resume", "run"], ["report", "run"]]
    done = subprocess.run(
        [sys.executable, "-c", code.replace("VERBS", repr(verbs))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),
    )
    assert done.stdout.split() == ["run/report.html", "2", "2", "0"], done.stderr
    assert done.stderr.count("error: ") == done.stderr.count(says) == 2
    assert "Traceback" not in done.stderr
    assert "recipe.yaml" in (tmp_path / "run" / "report.html").read_text(), "named as not read"


def test_aliases_that_are_no_bomb_are_read() -> None:
    text = "a: &a {x: 1}\nb: [*a, *a]\nc: {<<: *a, y: 1e-6}\n"
    _, value = yaml_value(text, RecipeLoader)
    assert value == {"a": {"x": 1}, "b": [{"x": 1}] * 2, "c": {"x": 1, "y": 1e-6}}


def test_json_within_bounds_is_read_and_no_other() -> None:
    assert json_value('{"a": [1, "[[[[", -2.5e300]}') == {"a": [1, "[[[[", -2.5e300]}
    assert json_value(b"[" * 60 + b"]" * 60)
    for text in (DEEP, "[" * 70 + "]" * 70, HUGE, '{"a":' * 5000, "[" + "9" * 301 + "]", b"\xff"):
        with pytest.raises(ValueError, match=r"deep|digits|utf-8"):
            json_value(text)


LINE = '{"step": 1, "reward": %s, "loss": 1}\n'


def everywhere(folder: Path, value: str) -> None:
    """Put `value` where every file of a run has one."""
    stage = folder / "stages" / "2-grpo"
    for name in ("metrics", "rollouts", "ledger"):
        with (stage / f"{name}.jsonl").open("a") as file:
            file.write(LINE % value)
    for path in (folder / "evals").glob("*.json"):
        path.write_text(f'{{"sets": {{"a": {{"accuracy": {value}}}}}}}')
    for name in ("lock.json", "stages/2-grpo/lock.json", "stages/2-grpo/done.json"):
        (folder / name).write_text(f'{{"made": {value}, "threads": {value}}}')
    (stage / "best").mkdir(exist_ok=True)
    (stage / "best" / "evaluation.json").write_text(value)


@pytest.mark.parametrize("value", [DEEP, HUGE, "1e999", '"x"', "{}", "null"], ids=lambda v: v[:3])
@pytest.mark.parametrize(
    "verb",
    [
        ("report", "run"),
        ("why", "run", "--step", "1"),
        ("score", "rewards.py:fine", "--rescore", "run"),
        ("train", "--resume", "run"),
        ("train", "tiny.yaml", "--resume", "run"),
        ("compare", "run/evals/before.json", "run/evals/after.json"),
    ],
    ids=lambda verb: verb[0],
)
def test_no_value_in_a_run_is_a_traceback(
    verb: tuple[str, ...], value: str, here: Path, cli: Cli
) -> None:
    everywhere(here / "run", value)
    done = cli(*verb)  # which lets no exception through
    assert done.code in (0, 2) and "Traceback" not in done.err


def test_the_live_page_answers_whatever_it_is_asked(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, found = make_run(tmp_path, steps=4), threading.Event()
    url: list[str] = []

    def ready(address: str) -> None:
        url.append(address)
        found.set()

    threading.Thread(target=serve_folder, args=(folder, 0, ready), daemon=True).start()
    assert found.wait(20)
    where = urlsplit(url[0])

    def ask(query: str) -> int:
        connection = HTTPConnection(where.hostname or "", where.port, timeout=20)
        connection.request("GET", f"{where.path}state?ends={quote(query)}")
        return connection.getresponse().status

    asked = ["[" * 9_000, '{"a":' * 5_000, f'{{"stage-2-rollouts": {HUGE}}}', "NaN", "[]"]
    assert [ask(query) for query in asked] == [400] * 5
    assert ask('{"stage-2-rollouts": 1e999}') == ask('{"stage-2-rollouts": -5}') == 200
    (folder / "stages" / "3-x").symlink_to(tmp_path)
    connection = HTTPConnection(where.hostname or "", where.port, timeout=20)
    connection.request("GET", where.path)
    assert connection.getresponse().status == 503
    assert "Traceback" not in capfd.readouterr().err
