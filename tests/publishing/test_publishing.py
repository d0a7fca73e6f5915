"""A published run: it opens in plain transformers, its card says what the results say."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rl_reasoner.audit import audit_run
from rl_reasoner.files import sha256_of
from support.commands import Cli


def changed_in_place(file: Path, before: str, after: str) -> None:
    """Replace a text that stands once or more in a file."""
    text = file.read_text(encoding="utf-8")
    assert before in text
    file.write_text(text.replace(before, after), encoding="utf-8")


def card_rows(card: str) -> dict[tuple[str, str], list[str]]:
    """The cells of the card's tables, by (heading of the section, first cell)."""
    found: dict[tuple[str, str], list[str]] = {}
    heading = ""
    for line in card.splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("|"):
            first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            found[heading, first] = cells
    return found


def in_card(figures: dict[str, Any]) -> str:
    """Figures of a result as a card writes them."""
    low, high = figures["interval"]
    return f"{100 * figures['accuracy']:.1f}% [{100 * low:.1f}–{100 * high:.1f}%]"


def test_a_published_run_opens_says_its_figures_and_can_be_audited(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl_reasoner.publishing.folder.HfApi", None)  # a dry run asks nobody
    ended = cli("publish", "run", "out/tiny-reasoner", "--push", "me/tiny", "--dry-run", "--json")
    value = json.loads(ended.out)
    assert ended.code == 0 and value["pushed"] is None, ended.err
    folder = here / "out" / "tiny-reasoner"
    sizes = {row["file"]: row["bytes"] for row in value["files"]}
    assert sizes == {
        str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()
    }
    assert {"README.md", "audit.json", "report.html", "run/hashes.json"} <= sizes.keys()
    _opens_in_plain_transformers(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers" and "base_model" not in front
    assert "`scratch:dense-tiny`, 321k parameters, trained with" in card
    rows = card_rows(card)
    results = [json.loads((here / f"run/evals/{n}.json").read_text()) for n in ("before", "after")]
    _has_the_figures(rows, *(result["sets"] for result in results))
    for file in folder.glob("*.safetensors"):
        assert rows["Hashes and audit", file.name] == [f"`{sha256_of(file)}`"]
    of_run = rows["Hashes and audit", "run/hashes.json, which has all others"]
    assert of_run == [f"`{sha256_of(here / 'run/hashes.json')}`"]
    assert "No control arm was trained" in card
    metered = [*here.glob("run/stages/*/hacking.jsonl")]
    assert card.count("- hacking meter, stage ") == len(metered)
    assert "`rl-reasoner audit run --all`" in card, "the only replay without checkpoints"
    assert re.search(r"- \d+ of the [\d,]+ problems of modular_test are in the training", card)
    (here / "rewards.py").unlink()  # a stranger has the published folder alone
    audit = audit_run(folder / "run", replays=False)
    assert audit.holds and {"weights", "rewards"} <= {f.part for f in audit.of("unchecked")}
    assert {"ledger", "report", "recipe"} <= {finding.part for finding in audit.of("held")}
    for file in (folder / "report.html", folder / "run/report.html"):
        changed_in_place(file, "</title>", ", which learned more</title>")
        found = audit_run(folder / "run", replays=False).of("differs")
        assert {finding.part for finding in found} == {"report"}
        changed_in_place(file, ", which learned more</title>", "</title>")


def _has_the_figures(
    rows: dict[tuple[str, str], list[str]], before: dict[str, Any], after: dict[str, Any]
) -> None:
    """The card's results are the figures of every set and mode, strict and lenient, and no more."""
    wanted = {}
    for label in before:
        base, _, mode = label.partition("@")
        title = f"{base}, {(mode or 'greedy').replace('-', ' ').capitalize()}"
        wanted[title] = [in_card(sets[label]) for sets in (before, after)]
        assert rows["Results", title][0] == f"{before[label]['problems']:,}"
        if "lenient" in before[label]:
            lenient = [in_card(sets[label]["lenient"]) for sets in (before, after)]
            wanted[f"{title}, lenient"] = lenient
    heads = ("set", "---")
    shown = {name: cells[1:3] for (part, name), cells in rows.items() if part == "Results"}
    assert {name: cells for name, cells in shown.items() if name not in heads} == wanted


def _opens_in_plain_transformers(folder: Path) -> None:
    """In a process that cannot import rl_reasoner."""
    code = f"""
import sys
sys.modules["rl_reasoner"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(folder)!r})
tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})
ids = tokenizer("1+1=", return_tensors="pt")
print(model.generate(**ids, max_new_tokens=2).shape[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "1", done.stderr


def test_published_records_say_where_their_policy_is(here: Path, cli: Cli) -> None:
    assert cli("publish", "run", "out").code == 0
    says = "out/run has the records of a published run, and no weights: its policy is out"
    for argv in (
        ("publish", "out/run", "again"),
        ("eval", "out/run", "--sets", "modular_test"),
        ("train", "--resume", "out/run"),
        ("train", "tiny.yaml", "--policy", "out/run", "--run.folder", "new"),
    ):
        ended = cli(*argv)
        [line] = ended.err.splitlines()
        assert (ended.code, ended.out) == (2, "") and line.endswith(says)
    assert cli("report", "out/run").code == 0, "records are a run's for all else"


def test_a_run_that_is_not_what_it_says_it_is_is_not_published(here: Path, cli: Cli) -> None:
    changed_in_place(here / "run/report.html", "</title>", ", which learned more</title>")
    ended = cli("publish", "run", "out")
    assert ended.code == 1 and "report: report.html is not the page" in ended.err
    assert "not published" in ended.err and "stopped" not in ended.err
    assert not (here / "out").exists() and not [*here.glob(".out*")]


def test_a_run_whose_stage_is_trained_on_is_not_published_with_its_old_policy(
    here: Path, cli: Cli
) -> None:
    """As Ctrl-C leaves a finished run that goes on with more steps."""
    [*_, last] = sorted((here / "run/stages").iterdir())
    (last / "done.json").unlink()
    shutil.rmtree(last / "policy")
    (here / "run/hashes.json").unlink()
    ended = cli("publish", "run", "out")
    assert ended.code == 2 and "is not finished: rl-reasoner train --resume run" in ended.err
    assert not (here / "out").exists()


class Hub:
    """The hub's edge: what it was asked for; `fails` is raised in the upload."""

    asked: list[tuple[Any, ...]] = []  # noqa: RUF012
    fails: BaseException | None = None

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        self.asked.append(("create", repository, private, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        if self.fails is not None:
            raise self.fails
        self.asked.append(("upload", repo_id, sorted(p.name for p in folder_path.iterdir())))


def test_a_folder_is_pushed(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl_reasoner.publishing.folder.HfApi", Hub)
    monkeypatch.setattr(Hub, "asked", [])
    ended = cli("publish", "run", "out", "--push", "me/tiny", "--no-records", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["pushed"] == "https://huggingface.co/me/tiny"
    made, sent = Hub.asked
    assert made == ("create", "me/tiny", True, True) and sent[:2] == ("upload", "me/tiny")
    assert {"README.md", "config.json", "model.safetensors"} <= {*sent[2]} and "run" not in sent[2]
    card = Path("out/README.md").read_text(encoding="utf-8")
    named = ("run/recipe.yaml", "run/hashes.json", "audit run")
    assert not any(name in card for name in named), "it names no file that is not there"
    shutil.rmtree("out")
    monkeypatch.setattr(Hub, "fails", OSError("no route to host"))
    ended = cli("publish", "run", "out", "--push", "me/tiny")
    assert ended.code == 2 and "no route to host" in ended.err and Path("out/README.md").is_file()
    again = cli("publish", "run", "out", "--push", "me/tiny")
    assert again.code == 2 and "out exists already; give a new folder" in again.err
    assert "or upload this one: hf upload me/tiny out --private" in again.err
    again = cli("publish", "run", "out")
    assert "out exists already; give a new folder" in again.err and "hf upload" not in again.err
    shutil.rmtree("out")
    monkeypatch.setattr(Hub, "fails", RuntimeError("[Errno -2] Name or service not known"))
    ended = cli("publish", "run", "out", "--push", "me/tiny")
    assert ended.code == 2  # whatever its client raises
    assert "`hf upload me/tiny out --private`" in ended.err, "by hand it is no more public"
    shutil.rmtree("out")
    ended = cli("publish", "run", "out", "--push", "me/tiny", "--public")
    assert "`hf upload me/tiny out`" in ended.err


def test_an_upload_that_is_interrupted_tells_how_to_go_on(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl_reasoner.publishing.folder.HfApi", Hub)
    monkeypatch.setattr(Hub, "fails", KeyboardInterrupt())
    ended = cli("publish", "run", "out", "--push", "me/tiny")
    assert ended.code == 130 and Path("out/README.md").is_file()
    assert "out is written; push it with: hf upload me/tiny out --private" in ended.err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("rum", "out"), ("'run'",)),
        (("run", "run"), ("run",)),
        (("run", "out", "--push", "nobody"), ("OWNER/NAME",)),
        (("run", "out", "--dry-run"), ("--push",)),
    ],
)
def test_wrong_arguments_are_one_line(
    argv: tuple[str, ...], words: tuple[str, ...], here: Path, cli: Cli
) -> None:
    ended = cli("publish", *argv)
    assert ended.code == 2 and "Traceback" not in ended.err
    assert all(word in ended.err for word in words), ended.err
    assert not Path("out").exists()
