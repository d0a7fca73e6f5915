"""The reward test kit: it finds planted defects and passes what is sound."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner.answers import verify
from rl_reasoner.errors import UserError
from rl_reasoner.scoring.registry import load_reward, shipped_rewards
from rl_reasoner.scoring.reward import Reward, reward
from rl_reasoner.testing.kit import check_reward, examine
from support import bad_rewards
from support.commands import Cli

CODE = [
    {
        "problem": f"double {i}",
        "answer": f"def f(x):\n    return x * {i}",
        "completion": f"```python\ndef f(x):\n    return x * {i}\n```",
        "tests": [{"call": "f", "args": [3], "expected": 3 * i}],
        "generator": "def generate(seed):\n"
        f"    return [{{'call': 'f', 'args': [seed % 9], 'expected': seed % 9 * {i}}}]",
    }
    for i in range(2, 8)
]


@pytest.mark.slow
@pytest.mark.parametrize("name", bad_rewards.EXPECTED)
def test_a_planted_defect_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)  # else `hashes` would repeat itself
    report = examine(getattr(bad_rewards, name), timeout_s=1.0)
    check = bad_rewards.EXPECTED[name]
    found = {finding.check: finding for finding in [*report.failed, *report.warned]}
    assert check in found, str(report)
    if found[check].status == "failed":
        monkeypatch.setattr("rl_reasoner.testing.kit.examine", lambda *_, **__: report)  # not again
        with pytest.raises(AssertionError, match=f"failed +{check}"):
            check_reward(getattr(bad_rewards, name), timeout_s=1.0)


def test_what_fails_is_raised() -> None:
    with pytest.raises(AssertionError, match=f"failed +{bad_rewards.EXPECTED['any_box']}"):
        check_reward(bad_rewards.any_box, timeout_s=1.0)


@pytest.mark.slow
def test_it_fails_a_reward_that_judges_nothing_and_warns_of_one_that_cannot_tell() -> None:
    found = {f.check: f for f in examine(reward(lambda completion: None)).findings}
    assert found["distinguishes"].status == "failed"
    assert re.search(r"abstained on (\d+) of \1;", found["distinguishes"].message)

    def abstains(completions: list[str], **columns: Any) -> list[float | None]:
        return [None] * len(completions)

    assert {f.check: f for f in examine(abstains).findings}["distinguishes"].status == "failed"

    @reward
    def short(completion: str) -> float:
        return float(len(completion) < 100)

    found = {f.check: f for f in examine(short).findings}
    assert found["distinguishes"].status == "warned"
    assert "does not distinguish right from wrong" in found["distinguishes"].message


JUDGES = {"judge", "judge_ranking"}  # which need a model: tests/judging
PLAYED = {"environment"}  # which needs an episode: tests/environments
OF_TEXTS = sorted({*shipped_rewards()} - {"code_tests", "no_hardcode"} - JUDGES - PLAYED)


@pytest.mark.parametrize("name", OF_TEXTS)
def test_shipped_rewards_pass(name: str) -> None:
    report = check_reward(load_reward(name))
    assert "failed" not in str(report)


@pytest.mark.parametrize("name", ["code_tests", "no_hardcode"])
def test_shipped_rewards_for_programs_pass(name: str) -> None:
    report = check_reward(load_reward(name), CODE)
    [tells] = [f for f in report.findings if f.check == "distinguishes"]
    if name == "code_tests":
        assert tells.message == "right 1, wrong 0 on average"


def test_a_sum_left_to_the_verifier_is_told() -> None:
    rows = [{"problem": f"{i} + 17 =", "answer": str(i + 17)} for i in range(8)]

    def found(**options: Any) -> str:
        report = examine(load_reward("math_answer", options), rows)
        assert not report.failed
        [finding] = [f for f in report.findings if f.check == "sum left undone"]
        assert finding.status == "passed" or "34 - 17" in finding.completion
        return finding.status

    assert found() == "warned"
    assert found(value_only=True) == "passed"


def test_functions_of_trls_form_for_chats() -> None:
    def chats(completions: Any, answer: Any, trainer_state: Any, **kwargs: Any) -> list[float]:
        assert trainer_state.global_step >= 0
        texts = [completion[0]["content"] for completion in completions]
        return [
            float(f"<answer>{a}</answer>" in t and t.count("<answer>") == 1)
            for t, a in zip(texts, answer, strict=True)
        ]

    report = examine(chats)
    [tells] = [f for f in report.findings if f.check == "distinguishes"]
    assert tells.status == "passed" and tells.message.startswith("right 1")


def test_rows_that_cannot_be_had() -> None:
    with pytest.raises(UserError, match=r"needs the column '.*', which no built-in task has"):
        examine(load_reward("no_hardcode"))
    with pytest.raises(UserError, match="three rows"):
        examine(load_reward("math_answer"), [{"problem": "1+1=", "answer": "2"}])


def test_the_command(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "r.py").write_text(
        "from rl_reasoner import reward\n\n@reward\ndef loose(completion: str, answer: str):\n"
        "    return float(answer in completion)\n"
    )
    ended = cli("check", "r.py:loose", "--json")
    assert ended.code == 2 and "fails: answer stuffing" in ended.err
    found = {row["check"]: row for row in json.loads(ended.out)["findings"]}
    assert found["prompt echoed"]["status"] == "failed" and found["types"]["status"] == "passed"
    ended = cli("check", "boxed")
    assert ended.code == 0 and "hostile" in ended.out


@reward
def never(completion: str) -> float:
    time.sleep(600)
    return 1.0


def test_a_reward_that_hangs_is_found_by_its_first_call() -> None:
    """Each of the other checks would wait for it again."""
    [finding] = examine(never, timeout_s=0.5).findings
    assert finding.status == "failed" and "no other check was made" in finding.message


@reward
def words(completion: str) -> str:
    return "good"


@reward
def nothing(completion: str) -> float:
    return float("nan")


@pytest.mark.parametrize("fails", [words, nothing])
def test_what_fails_on_every_row_is_charged_with_nothing_else(fails: Reward) -> None:
    found = {finding.check: finding for finding in examine(fails).findings}
    assert found["distinguishes"].status == "failed"
    assert found["threads"].status == found["leaves data unchanged"].status == "skipped"


@reward
def raises(completion: str) -> float:
    raise LookupError("the list is empty")


@reward
def unsure(completion: str) -> None:
    return None


def test_what_was_never_judged_is_not_called_passed() -> None:
    found = {finding.check: finding.status for finding in examine(raises).findings}
    assert {check for check, status in found.items() if status == "passed"} == {"process"}
    assert found["types"] == found["numbers"] == found["latency"] == "skipped"
    assert found["distinguishes"] == found["ordinary"] == "failed"
    found = {finding.check: finding.status for finding in examine(unsure).findings}
    assert found["types"] == found["repeats"] == "passed"
    assert found["injection"] == found["length"] == "skipped"


@reward(group=True)
def best_of_group(completions: list[str], answer: str) -> list[float]:
    return [float(verify(text, answer).value or 0.0) for text in completions]


@reward(group=True)
def longest_of_group(completions: list[str], answer: str) -> list[float]:
    longest = max(len(text) for text in completions)
    return [len(text) / max(1, longest) for text in completions]


def test_rewards_of_groups() -> None:
    found = {finding.check: finding for finding in check_reward(best_of_group).findings}
    assert found["distinguishes"].message == "right 1, wrong 0 on average"
    assert "length" in [finding.check for finding in examine(longest_of_group).warned]
