"""What is published beside the code: one version, workflows that call what is there, a citation."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rl_reasoner.version import __version__
from support.places import ROOT

FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"))


def read(file: str) -> Any:
    return yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))


def test_the_version_is_said_once_and_repeated_rightly() -> None:
    assert read("CITATION.cff")["version"] == __version__
    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in project
    assert not re.search(r"^version = \"", project, re.M)


def test_the_citation_has_what_its_format_asks_for() -> None:
    """Citation File Format 1.2.0: these four, and authors that are persons or entities."""
    found = read("CITATION.cff")
    assert found["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(found)
    assert [set(author) for author in found["authors"]] == [{"name"}]  # the project, no person
    assert found["license"] in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_workflows_run_what_is_there_on_machines_that_anyone_has() -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for command in commands:
        program, name = command.split()
        assert (ROOT / name).is_file() if program == "bash" else name in targets, command
    assert "bash .ci/run" in commands
    assert not re.search(r"/(home|root|work|opt|tmp)/", text)
    assert all(job["runs-on"] == "ubuntu-latest" for job in jobs.values())


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_issue_forms_have_what_a_form_needs(form: Path) -> None:
    found = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(found)
    fields = [part for part in found["body"] if part["type"] != "markdown"]
    assert all(part["id"] and part["attributes"]["label"] for part in fields)
    assert len({part["id"] for part in fields}) == len(fields)


def test_the_release_check_is_a_script_that_can_be_read() -> None:
    assert subprocess.run(["bash", "-n", ".ci/release"], cwd=ROOT).returncode == 0
