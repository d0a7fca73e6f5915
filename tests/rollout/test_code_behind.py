"""What is drawn with tools or an environment is kept by their code: helpers are part of that."""

import json
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner.policy.scratch import byte_tokenizer
from rl_reasoner.rollout.episodes.environment_turns import EnvironmentUse
from rl_reasoner.rollout.tool_turns import ToolUse

PAYS = """
import worth

class Pays:
    def reset(self, row): ...
    def step(self, completion): return "", worth.WORTH, True
"""
LOOKS = '''
import worth

def look(word: str) -> int:
    """Looks a word up.

    Args:
        word: What is looked up.
    """
    return worth.WORTH
'''


def identity_of(kind: str, folder: Path) -> dict[str, Any]:
    """What completions are kept by, of a tool or an environment in `folder`."""
    tokenizer = byte_tokenizer()
    if kind == "tool":
        return ToolUse(tokenizer, [f"{folder}/looks.py:look"], call_format="tags").identity()
    pays = f"{folder}/pays.py:Pays"
    if kind == "environment":
        return EnvironmentUse(tokenizer, pays, template="plain").identity()
    factory = {"factory": pays}  # only its text is looked at
    return EnvironmentUse(tokenizer, "trl", options=factory, template="plain").identity()


@pytest.mark.parametrize("kind", ["tool", "environment", "class for trl"])
def test_an_edited_helper_is_other_code(kind: str, tmp_path: Path) -> None:
    (tmp_path / "pays.py").write_text(PAYS)
    (tmp_path / "looks.py").write_text(LOOKS)
    (tmp_path / "worth.py").write_text("WORTH = 1\n")
    (tmp_path / "beside.py").write_text("A = 1\n")
    before = json.dumps(identity_of(kind, tmp_path))
    (tmp_path / "beside.py").write_text("A = 22\n")  # nothing imports it
    assert json.dumps(identity_of(kind, tmp_path)) == before
    (tmp_path / "worth.py").write_text("WORTH = 22\n")
    assert json.dumps(identity_of(kind, tmp_path)) != before


def test_an_edited_class_for_trl_is_other_code(tmp_path: Path) -> None:
    (tmp_path / "pays.py").write_text("A = 1\n")
    before = identity_of("class for trl", tmp_path)
    (tmp_path / "pays.py").write_text("A = 22\n")
    assert identity_of("class for trl", tmp_path) != before
