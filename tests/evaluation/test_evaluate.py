"""Evaluation: a tiny policy taken through sets and modes, saved, compared and judged again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner import EvalResult, Policy, compare, evaluate, open_policy
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.evaluate import replay
from rl_reasoner.evaluation.labels import Mode
from rl_reasoner.evaluation.metrics import compute_figures
from rl_reasoner.evaluation.statistics import mcnemar, tango, wilson
from rl_reasoner.recipe.data import FileData
from rl_reasoner.types import Rollout
from support.tiny import reward_file

# ----------------------------------------------------------------------------------- a policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    return open_policy("scratch:moe-tiny", seed=1, device="cpu")


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> str:
    return reward_file(tmp_path_factory.mktemp("reward"))


def looked_over(result: EvalResult, name: str) -> dict[str, Any]:
    """A set's figures, held against its rows."""
    figures, rows = result.sets[name], result.rows[name]
    assert figures["problems"] == len(rows)
    shares = [sum(s == 1.0 for s in row["scores"]) / figures["samples"] for row in rows]
    assert figures["accuracy"] == pytest.approx(sum(shares) / len(shares))
    low, high = figures["interval"]
    assert 0 <= low <= figures["accuracy"] <= high <= 1
    for row in rows:
        assert len(row["completions"]) == len(row["scores"]) == len(row["reasons"])
        assert len(row["scores"]) == figures["samples"]
        for text, score in zip(row["completions"], row["scores"], strict=True):
            assert (row["answer"] in text) == (score == 1.0), "scored with its own answer"
    return figures


def test_greedy_is_one_completion_and_repeats(policy: Policy, near: str) -> None:
    found = [
        evaluate(policy, ["modular_test"], max_tokens=6, limit=20, reward=near, seed=seed)
        for seed in (0, 1)
    ]
    figures = looked_over(found[0], "modular_test")
    assert found[0].rows == found[1].rows
    assert (figures["samples"], figures["temperature"], figures["judged"]) == (1, 0.0, 1.0)
    right = round(figures["accuracy"] * 20)
    assert tuple(figures["interval"]) == wilson(right, 20)
    assert "pass_at" not in figures


def test_samples_differ_by_seed_and_repeat_by_seed(policy: Policy, near: str) -> None:
    one, again, other = (
        evaluate(policy, ["modular_test"], 4, seed, max_tokens=6, limit=6, reward=near)
        for seed in (3, 3, 4)
    )
    assert one.rows == again.rows and one.rows != other.rows
    figures = looked_over(one, "modular_test")
    assert figures["temperature"] == 1.0
    assert figures["pass_at"].keys() == {"1", "2", "4"}
    assert figures["pass_at"]["1"] == pytest.approx(figures["accuracy"])
    texts = {text for row in one.rows["modular_test"] for text in row["completions"]}
    assert len(texts) > 20


def test_modes_have_entries_of_their_own(policy: Policy, near: str) -> None:
    modes: tuple[Mode, ...] = ("greedy", "sampled", "chain-forced", "direct-forced")
    sets = ["modular_test", "modular_ood"]
    done: list[tuple[str, int, int]] = []
    result = evaluate(
        policy,
        sets,
        2,
        max_tokens=6,
        limit=5,
        reward=near,
        modes=modes,
        progress=lambda *of: done.append(of),
    )
    names = [s if mode == "greedy" else f"{s}@{mode}" for s in sets for mode in modes]
    assert list(result.sets) == names
    for name in names:
        figures = looked_over(result, name)
        assert figures["samples"] == (2 if name.endswith("@sampled") else 1)
        assert figures["temperature"] == (1.0 if name.endswith("@sampled") else 0.0)
        assert (name, 5 * figures["samples"], 5 * figures["samples"]) in done
    chained = result.rows["modular_test@chain-forced"]
    assert all(r["completions"][0].startswith("<think>") for r in chained)
    assert not any(r["completions"][0].startswith("<think></think>") for r in chained)
    direct = result.rows["modular_test@direct-forced"]
    assert all(r["completions"][0].startswith("<think></think>") for r in direct)
    assert result.sets["modular_test@chain-forced"]["thinking"] == 1.0
    assert result.sets["modular_test@direct-forced"]["thinking"] == 0.0


def test_the_mode_sampled_samples_also_with_one_sample(policy: Policy, near: str) -> None:
    result = evaluate(
        policy, ["modular_test"], max_tokens=6, limit=8, reward=near, modes=["greedy", "sampled"]
    )
    assert result.sets["modular_test@sampled"]["temperature"] == 1.0
    assert result.rows["modular_test"] != result.rows["modular_test@sampled"]


def test_a_file_may_be_given_as_a_path_and_alone(policy: Policy, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"problem": "1+1=", "answer": "2"}\n')
    policy.save(str(tmp_path / "saved"))
    for sets in (str(file), file, [file]):
        found = evaluate(tmp_path / "saved", sets, max_tokens=2)
        assert [*found.sets] == [str(file)]


def test_the_same_whatever_else_was_evaluated_before(policy: Policy, near: str) -> None:
    alone = evaluate(policy, ["modular_ood"], 2, max_tokens=6, limit=4, reward=near)
    both = evaluate(policy, ["modular_test", "modular_ood"], 2, max_tokens=6, limit=4, reward=near)
    assert alone.rows["modular_ood"] == both.rows["modular_ood"]


def test_outcomes_that_are_no_score_are_not_right_and_are_counted(
    policy: Policy, tmp_path: Path
) -> None:
    source = """
def near(completions, answer, **kwargs):
    kinds = [1.0, None, float("nan"), "text", 0.5, 1.0, float("inf"), 0.0]
    return [kinds[i % 8] for i in range(len(completions))]
"""
    reward = reward_file(tmp_path, source)
    result = evaluate(policy, ["modular_test"], max_tokens=2, limit=8, reward=reward)
    figures = result.sets["modular_test"]
    assert (figures["accuracy"], figures["judged"]) == (2 / 8, 4 / 8)
    scores = [row["scores"][0] for row in result.rows["modular_test"]]
    assert scores == [1.0, None, None, None, 0.5, 1.0, None, 0.0]
    reasons = [row["reasons"][0] for row in result.rows["modular_test"]]
    assert all(reason for reason, score in zip(reasons, scores, strict=True) if score is None)
    saved = result.save(tmp_path / "odd.json")
    json.loads(saved.read_text(), parse_constant=pytest.fail)


def test_equal_rows_are_groups_of_their_own(policy: Policy, tmp_path: Path) -> None:
    source = """
from rl_reasoner import reward

@reward(group=True)
def near(completions, answer):
    return [float(len(completions))] * len(completions)
"""
    rows = tmp_path / "twice.jsonl"
    rows.write_text('{"problem": "1+1=", "answer": "2"}\n' * 2)
    reward = reward_file(tmp_path, source)
    result = evaluate(policy, [str(rows)], 3, max_tokens=2, reward=reward, template="plain")
    assert [row["scores"] for row in result.rows[str(rows)]] == [[3.0] * 3] * 2
    assert replay(result, reward, None).rows == result.rows


def test_saved_in_the_contracts_form_and_read_back(
    policy: Policy, near: str, tmp_path: Path
) -> None:
    result = evaluate(policy, ["modular_test"], 2, max_tokens=6, limit=12, reward=near)
    path = result.save(tmp_path / "evals" / "before.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    entry = data["sets"]["modular_test"]
    assert data["policy"] == "scratch:moe-tiny"
    assert entry["problems"] == 12 and entry["samples"] == 2
    assert isinstance(entry["accuracy"], float) and isinstance(entry["truncated"], float)
    assert len(entry["interval"]) == 2 and 0 <= entry["truncated"] <= 1
    again = EvalResult.load(path)
    assert again == result, "with every row, not only the shown ones"
    assert "modular_test" in result.table() and "95% interval" in result.table()


def test_texts_of_every_kind_survive_saving(tmp_path: Path) -> None:
    odd = "a\u2028b\x85c\x1cd\r\ne\ud800\x00"
    row = {"problem": odd, "answer": "1", "completions": [odd], "scores": [1.0], "reasons": [odd]}
    row |= {"outcomes": ["score"], "tokens": [3], "truncated": [False]}
    result = EvalResult("p", sets={"s": compute_figures([row, row])}, rows={"s": [row, row]})
    assert EvalResult.load(result.save(tmp_path / "e.json")).rows == result.rows


def test_programs_are_run_and_pass_at_k_is_of_their_tests(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows without answers; one program is to be continued, the other to be written in a block."""
    begun = {
        "prompt": "def double(n):\n",
        "entry_point": "double",
        "tests": "def check(candidate):\n    assert candidate(4) == 8",
    }
    asked = {"prompt": "Print twice the number.", "tests": [{"stdin": "4", "stdout": "8"}]}
    file = tmp_path / "code.jsonl"
    file.write_text(f"{json.dumps(begun)}\n{json.dumps(asked)}\n")
    texts = [
        ["    return 2 * n", "    return n"],
        ["```python\nprint(2 * int(input()))\n```", "```python\nprint(8)\n```"],
    ]

    def said(policy: Policy, prompts: list[Any], **settings: Any) -> list[list[Rollout]]:
        assert prompts == [begun["prompt"], asked["prompt"]]
        return [[Rollout(text, 1, False) for text in group] for group in texts]

    monkeypatch.setattr("rl_reasoner.rollout.sampler.sample", said)
    result = evaluate(policy, [str(file)], 2, reward="code_tests", template="plain")
    figures = result.sets[str(file)]
    assert (figures["judged"], figures["accuracy"]) == (1.0, 0.75)
    assert figures["pass_at"] == {"1": 0.75, "2": 1.0}
    assert [row["scores"] for row in result.rows[str(file)]] == [[1.0, 0.0], [1.0, 1.0]]
    whole = evaluate(
        policy,
        [str(file)],
        2,
        reward="code_tests",
        reward_options={"extract": "only", "credit": "fraction"},
        template="plain",
    )
    assert whole.settings["reward_options"] == {"extract": "only", "credit": "fraction"}
    with pytest.raises(UserError, match="Did you mean 'extract'"):
        evaluate(policy, [str(file)], reward="code_tests", reward_options={"extrct": "only"})


def test_truncation_is_counted(policy: Policy, near: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that can only say one letter is always cut off; one that only ends, never."""
    for token, truncated, length in (("x", 1.0, 5.0), ("<eos>", 0.0, 1.0)):
        only = policy.tokenizer.convert_tokens_to_ids(token)

        def hook(module: Any, inputs: Any, output: Any, only: int = only) -> torch.Tensor:
            return torch.full_like(output, -1e4).index_fill_(-1, torch.tensor([only]), 0.0)

        handle = policy.model.lm_head.register_forward_hook(hook)
        figures = evaluate(policy, ["modular_test"], max_tokens=5, limit=3, reward=near).sets[
            "modular_test"
        ]
        handle.remove()
        assert (figures["truncated"], figures["mean_length"]) == (truncated, length)


# ------------------------------------------------------------------------------------ compare


def result_of(scores: list[list[float | None]]) -> EvalResult:
    rows = [{"problem": str(i), "answer": "1", "scores": s} for i, s in enumerate(scores)]
    return EvalResult("p", rows={"s": rows})


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_comparison_is_paired(pairs: list[tuple[bool, bool]]) -> None:
    a = result_of([[float(x)] for x, _ in pairs])
    b = result_of([[float(y)] for _, y in pairs])
    found = compare(a, b)["s"]
    only_a = sum(x and not y for x, y in pairs)
    only_b = sum(y and not x for x, y in pairs)
    assert (found["only_a"], found["only_b"]) == (only_a, only_b)
    assert found["difference"] == pytest.approx((only_b - only_a) / len(pairs))
    assert found["p"] == mcnemar(only_a, only_b)
    if 0 < only_a + only_b < len(pairs):
        assert found["interval"] == pytest.approx(tango(only_b, only_a, len(pairs)))
    back = compare(b, a)["s"]
    assert back["difference"] == -found["difference"] and back["p"] == found["p"]


def test_several_samples_are_compared_by_shares() -> None:
    a = result_of([[1.0, 0.0], [0.0, None]])
    b = result_of([[1.0, 1.0], [0.0, 1.0]])
    found = compare(a, b)["s"]
    assert found["difference"] == 0.5 and found["p"] == 0.5


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    one, other = result_of([[1.0]]), result_of([[1.0], [0.0]])
    with pytest.raises(UserError, match="different problems in the two results, 1 and 2: "):
        compare(one, other)
    with pytest.raises(UserError, match="no set in common"):
        compare(one, EvalResult("p"))


# ------------------------------------------------------------------------------------ mistakes


def test_mistakes_are_the_users(policy: Policy, near: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'modular_tset'.*Did you mean 'modular_test'"):
        evaluate(policy, ["modular_tset"], reward=near)
    with pytest.raises(UserError, match="limit is 0; it must be at least 1"):
        evaluate(policy, ["modular_test"], reward=near, limit=0)
    two = [FileData(path="modular_test", columns={"answer": one}) for one in ("answer", "id")]
    with pytest.raises(UserError, match=r"two sets are called modular_test, .*: evaluate them ap"):
        evaluate(policy, two, reward=near)
    with pytest.raises(UserError, match=r"unknown mode 'gredy'\. Did you mean 'greedy'"):
        evaluate(policy, ["modular_test"], reward=near, modes=["gredy"])  # type: ignore[list-item]
    with pytest.raises(UserError, match=r"unknown reward"):
        evaluate(policy, ["modular_test"], reward="naer")
    with pytest.raises(UserError, match=r"samples.*at least 1"):
        evaluate(policy, ["modular_test"], samples=0, reward=near)
    for text in ("{", "[]", '{"sets": {}}', '{"policy": "p", "colour": 1}'):
        (tmp_path / "e.json").write_text(text)
        with pytest.raises(UserError, match="is not an evaluation result") as caught:
            EvalResult.load(tmp_path / "e.json")
        assert "__init__" not in str(caught.value) and "argument" not in str(caught.value)
    with pytest.raises(UserError, match=r"there is no file .*none\.json"):
        EvalResult.load(tmp_path / "none.json")
