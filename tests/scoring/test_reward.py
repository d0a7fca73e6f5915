"""Rewards: how they are written, called, found, and what becomes of their outcomes."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner import GRPOConfig, GRPOTrainer, Score, open_policy, reward
from rl_reasoner.errors import UserError
from rl_reasoner.scoring import registry
from rl_reasoner.scoring.batch import score_batch
from rl_reasoner.scoring.outcome import outcome_json, usable
from rl_reasoner.scoring.registry import ENTRY_POINTS, load_reward
from rl_reasoner.scoring.reward import Reward
from rl_reasoner.types import Fault, own_text_of, text_of
from support.tiny import reward_file


@reward
def close(completion: str, answer: str, prompt: str, scale: float = 1.0) -> Score:
    """Scale where the answer is in the completion and the prompt is not empty."""
    return Score(scale * float(answer in completion and bool(prompt)), "looked", {"scale": scale})


@reward
def picky(completion: str) -> float | None:
    """Abstains on '?', raises on '!', else counts characters."""
    if completion == "!":
        raise LookupError("no exclamation marks")
    return None if completion == "?" else float(len(completion))


def values(outcomes: list[Score | Fault]) -> list[float | str | None]:
    return [o.message if isinstance(o, Fault) else o.value for o in outcomes]


# ------------------------------------------------------------------------------------- forms


def test_called_with_one_completion() -> None:
    assert close("it is 4", answer="4", prompt="2+2=") == Score(1.0, "looked", {"scale": 1.0})
    assert close("it is 4", "5", "2+2=").value == 0.0
    assert close("4", "4", "p", scale=3.0).value == 3.0
    chat = [{"role": "assistant", "content": "it is 4"}]
    assert close(chat, answer="4", prompt="2+2=").value == 1.0


def test_called_as_trl_calls_it() -> None:
    chats = [[{"role": "assistant", "content": text}] for text in ("4", "5")]
    prompts = [[{"role": "user", "content": "2+2="}]] * 2
    extras = {"completion_ids": [[1], [2]], "trainer_state": None, "other": ["a", "b"]}
    for completions in (["4", "5"], chats):
        found = close(prompts=prompts, completions=completions, answer=["4", "4"], **extras)
        assert found == [1.0, 0.0]


def test_what_the_policy_wrote_may_be_named_beside_itself() -> None:
    @reward(policy_text=True)
    def both(completion: str, policy_text: str) -> float:
        return float(completion == policy_text)

    texts = ["all its own", "a call\nits result\nand on"]
    given = {"prompts": ["p"] * 2, "policy_text": [None, "a call\nand on"]}
    for columns in ({"prompts": ["p"] * 2}, given):
        assert values(score_batch(both, texts, columns)) == [1.0, 1.0]


@pytest.mark.parametrize("read", [own_text_of, text_of])
def test_messages_of_tools_in_trls_loop_are_not_the_policys(read: Callable[..., str]) -> None:
    """trl gives rewards a completion of several turns as its messages, with those of tools."""

    @reward(policy_text=read is own_text_of)
    def whole(completion: str) -> Score:
        return Score(float("7" in completion), completion)

    given = {"role": "tool", "name": "calculator", "content": "7"}
    said = [{"role": "assistant", "content": text} for text in ("I ask", "so it is")]
    turns = [said[0], given, said[1]]
    [told] = score_batch(whole, [turns], {"prompts": ["3+4="]})
    assert told == whole(turns) == Score(float(read is text_of), read(turns))
    assert whole(completions=[turns], prompts=["3+4="]) == [float(read is text_of)]
    assert own_text_of(turns) == "I ask\nso it is"


def test_options_are_set_once_and_checked() -> None:
    twice = close.with_options(scale=2.0)
    assert twice("4", answer="4", prompt="p").value == 2.0
    assert twice(prompts=["p"], completions=["4"], answer=["4"]) == [2.0]
    assert close("4", answer="4", prompt="p").value == 1.0, "the first one is unchanged"
    with pytest.raises(UserError, match=r"reward close has no option 'scael'.*'scale'"):
        close.with_options(scael=2.0)


def test_what_is_no_column_and_no_option_is_not_asked_of_the_data() -> None:
    @reward
    def loose(completion: str, *args: Any, answer: str, **kwargs: Any) -> float:
        return float(completion == answer)

    assert loose(prompts=["p", "p"], completions=["1", "2"], answer=["1", "1"]) == [1.0, 0.0]


def test_a_function_without_completion_is_refused_where_it_is_written() -> None:
    with pytest.raises(TypeError, match=r"'f': its first parameter must be `completion`"):

        @reward
        def f(text: str) -> float:
            return 0.0


def test_a_missing_column_is_named_with_what_is_there() -> None:
    [outcome] = score_batch(close, ["4"], {"prompts": ["p"], "solution": ["4"]})
    assert isinstance(outcome, Fault)
    assert "needs the column 'answer'; the data has solution" in outcome.message


# ---------------------------------------------------------------------------------- outcomes


def test_fault_abstention_and_score_are_kept_apart_row_by_row() -> None:
    outcomes = score_batch(picky, ["ab", "?", "!", "abc"], {})
    assert values(outcomes)[:2] == [2.0, None]
    assert values(outcomes)[3] == 3.0
    fault = outcomes[2]
    assert isinstance(fault, Fault)
    assert "'picky': LookupError: no exclamation marks at test_reward.py:" in fault.message
    assert [outcome_json(o)["outcome"] for o in outcomes] == ["score", "abstain", "fault", "score"]
    assert [math.isnan(usable(o)) for o in outcomes] == [False, True, True, False]


@pytest.mark.parametrize(
    ("returned", "outcome", "value"),
    [
        (1, "score", 1.0),
        (True, "score", 1.0),
        (np.float32(0.5), "score", 0.5),
        (np.int64(2), "score", 2.0),
        (torch.tensor(0.25), "score", 0.25),
        (Score(0.5, "half"), "score", 0.5),
        (None, "abstain", None),
        (Score(None, "cannot say"), "abstain", None),
        (float("nan"), "fault", None),
        (float("inf"), "fault", None),
        (-1e38, "fault", None),
        (Score(float("-inf")), "fault", None),
        ("1.0", "fault", None),
        (b"1", "fault", None),
        ([1.0], "fault", None),
        (torch.zeros(2), "fault", None),
        (1j, "fault", None),
    ],
    ids=repr,
)
@pytest.mark.parametrize("kind", ["decorated", "trl's form"])
def test_every_kind_of_return_value(
    kind: str, returned: object, outcome: str, value: float | None
) -> None:
    def one(completion: str) -> object:
        return returned

    def many(completions: list[str], **kwargs: Any) -> list[object]:
        return [returned for _ in completions]

    found = score_batch(reward(one) if kind == "decorated" else many, ["text"], {})
    row = outcome_json(found[0])
    assert (row["outcome"], row["value"]) == (outcome, value)
    assert json.loads(json.dumps(row, allow_nan=False)) == row, "fit for JSON as it stands"
    assert row["reason"] or outcome == "score", "what gives no number says why"


@pytest.mark.parametrize(
    "made",
    [
        lambda: Score("1.0"),  # type: ignore[arg-type]
        lambda: Score([1.0]),  # type: ignore[arg-type]
        lambda: Score(1.0, parts={"format": "good"}),  # type: ignore[dict-item]
        lambda: Score(1.0, parts={1: 1.0}),  # type: ignore[dict-item]
        lambda: Score(1.0, 5),  # type: ignore[arg-type]
        lambda: Score(1.0, b"right"),  # type: ignore[arg-type]
        lambda: Score(1.0, {"why": 1}),  # type: ignore[arg-type]
        lambda: Score(1.0, ["right"]),  # type: ignore[arg-type]
    ],
)
def test_a_score_of_wrong_kinds_is_refused_where_it_is_made(made: Callable[[], Score]) -> None:
    with pytest.raises(TypeError, match="Score"):
        made()
    [outcome] = score_batch(reward(lambda completion: made()), ["text"], {})
    assert isinstance(outcome, Fault) and "of a Score is" in outcome.message


def test_a_reason_none_is_none() -> None:
    score = Score(1.0, None)  # type: ignore[arg-type]
    assert score == Score(1.0) and outcome_json(score)["reason"] == ""


def test_a_score_of_array_scalars_holds_plain_numbers() -> None:
    score = Score(np.float32(0.5), "half", {"part": np.float64(2.0)})  # type: ignore[arg-type]
    assert type(score.value) is float and score == Score(0.5, "half", {"part": 2.0})
    assert json.dumps(outcome_json(score), allow_nan=False)
    assert json.dumps(outcome_json(Score(1.0, parts={"x": float("nan")})), allow_nan=False)


def test_one_bad_value_of_a_batch_function_faults_its_row_alone() -> None:
    def mixed(completions: list[str], **kwargs: Any) -> list[object]:
        return [1.0, "one", None]

    a, b, c = score_batch(mixed, ["x", "y", "z"], {})
    assert a == Score(1.0) and isinstance(b, Fault) and isinstance(c, Score)
    assert "returned str ('one')" in b.message and c.value is None


@pytest.mark.parametrize("returned", [[1.0], None, 3, [1.0, 2.0, 3.0]], ids=repr)
def test_a_batch_function_that_returns_the_wrong_number_faults_on_all_rows(returned: Any) -> None:
    found = score_batch(lambda **kwargs: returned, ["x", "y"], {})
    assert [type(outcome) for outcome in found] == [Fault, Fault]


@given(st.floats(allow_nan=True, allow_infinity=True, width=64))
def test_training_uses_the_number_or_nothing(number: float) -> None:
    found = usable(Score(number))
    assert (found == number) if abs(number) < 1e30 else math.isnan(found)


# ----------------------------------------------------------------------------------- loading


def test_by_name_with_options() -> None:
    found = load_reward("length", {"limit": 10, "buffer": 0})
    assert found(completions=["x" * 10, "x" * 11]) == [0.0, -1.0]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("length", {"mode": "atmost"}, "unknown mode of length 'atmost'. Did you mean 'most'?"),
        ("length", {"unit": 3}, "unit of length is 3: expected a text. There are: tokens, words"),
        ("format_tags", {"form": ["r1"]}, "form of format_tags is ['r1']: expected a text."),
        ("language", {"part": {}}, "part of reward language is {}: expected a text."),
        ("code_tests", {"extract": "lst"}, "extract of code_tests 'lst'. Did you mean 'last'?"),
        ("code_tests", {"credit": "part"}, "unknown credit of code_tests 'part'."),
        ("no_hardcode", {"extract": "frist"}, "Did you mean 'first'?"),
        ("instructions", {"credit": "al"}, "Did you mean 'all'?"),
        ("math_answer", {"tags": "<ans>"}, "tags is '<ans>': expected two texts, such as"),
        ("repetition", {"size": "many"}, "size 'many' must be 1 or more"),
        ("judge_ranking", {}, "judge: give one of server, policy and function (it has none)"),
    ],
)
def test_what_is_no_value_of_an_option_is_told_before_a_row_is_scored(
    name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_reward(name, options)
    assert said in str(caught.value)


def test_options_may_come_after_a_reward_is_loaded() -> None:
    judge = load_reward("judge")
    assert isinstance(judge, Reward)
    assert judge.with_options(server="http://localhost:1/v1", model="m").options["model"] == "m"
    [found] = score_batch(judge, ["a"], {"prompts": ["p"]})
    assert isinstance(found, Fault) and "judge: give one of server, policy and" in found.message


def test_a_reward_of_ones_own_may_check_its_options() -> None:
    @reward
    def even(completion: str, most: int = 2) -> float:
        return float(len(completion) <= most)

    @even.checks
    def in_pairs(most: int) -> None:
        if most % 2:
            raise UserError(f"most is {most}: expected an even number")

    even.with_options(most=4).check_options()
    with pytest.raises(UserError, match="most is 3: expected an even number"):
        even.with_options(most=3).check_options()


def test_by_file(tmp_path: Path) -> None:
    found = load_reward(reward_file(tmp_path))
    assert isinstance(found, Reward) and found("is 7", answer="7").value == 1.0


def test_by_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_rewards.py").write_text(
        "def plain(completions, **kwargs):\n    return [float(len(c)) for c in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plain = load_reward("shop_rewards:plain")
    assert values(score_batch(plain, ["ab", ""], {"prompts": ["p", "p"]})) == [2.0, 0.0]
    with pytest.raises(UserError, match="takes no options"):
        load_reward("shop_rewards:plain", {"scale": 2})


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """The entry points of the group that a test puts there."""
    found: list[EntryPoint] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: found)
    yield found


def test_by_entry_point(points: list[EntryPoint]) -> None:
    points.append(EntryPoint("mine", f"{__name__}:close", ENTRY_POINTS))
    points.append(EntryPoint("broken", "no_such_module:f", ENTRY_POINTS))
    assert load_reward("mine").__name__ == "close"
    with pytest.raises(UserError, match=r"'broken'.*no_such_module"):
        load_reward("broken")
    with pytest.raises(UserError, match=r"unknown reward 'mien'\. Did you mean 'mine'\?"):
        load_reward("mien")


@pytest.mark.parametrize(
    ("source", "reference", "message"),
    [
        ("def f(:\n", "f", r"syntax error at .*bad\.py:1"),
        ("import no_such_thing\n", "f", "no_such_thing"),
        (
            "\nfrom rl_reasoner.languages import share\n",
            "f",
            r"no rl_reasoner\.languages any more at bad\.py:2: copy the reward again",
        ),
        ("x = 1 / 0\n", "f", r"ZeroDivisionError.*bad\.py:1"),
        ("def format_it(): pass\n", "formatit", "Did you mean 'format_it'"),
        ("f = 3\n", "f", "is int, not a function"),
        (
            "from rl_reasoner import reward\n\n@reward\ndef f(text): ...\n",
            "f",
            "its first parameter must be `completion`",
        ),
    ],
)
def test_mistakes_in_a_reward_file_are_the_users(
    tmp_path: Path, source: str, reference: str, message: str
) -> None:
    (tmp_path / "bad.py").write_text(source)
    with pytest.raises(UserError, match=message):
        load_reward(f"{tmp_path}/bad.py:{reference}")


def test_rewards_that_import_from_where_they_once_did(tmp_path: Path) -> None:
    """In a process that has loaded nothing yet, too; and `reward` stays the function."""
    (tmp_path / "old.py").write_text(
        "from rl_reasoner.reward import Column, Score, reward\n\n"
        "@reward\ndef f(completion: str) -> Score:\n    return Score(2.0)\n"
    )
    assert load_reward(f"{tmp_path}/old.py:f")("x") == Score(2.0)
    code = (
        "from old import f; import rl_reasoner; print(f('x').value, callable(rl_reasoner.reward))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "2.0 True\n", done.stderr


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        load_reward(f"{tmp_path}/none.py:f")
    with pytest.raises(UserError, match=r"write rewards\.py:NAME"):
        load_reward("rewards.py")
    with pytest.raises(UserError, match=r"unknown reward 'lenght'\. Did you mean 'length'\?"):
        load_reward("lenght")
    with pytest.raises(UserError, match="cannot import no_such_package"):
        load_reward("no_such_package:f")


def test_a_module_that_is_a_file_here_is_told_how_to_write_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_reward.py").write_text("def short(completions, **columns): ...\n")
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])  # as the command has it
    hint = r"There is my_reward\.py here: write my_reward\.py:short$"
    with pytest.raises(UserError, match=hint):
        load_reward("my_reward:short")


def test_two_files_of_one_name_do_not_mix(tmp_path: Path) -> None:
    references = []
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        source = f"def near(completions, **kwargs):\n    return [{number}.0 for _ in completions]\n"
        references.append(reward_file(tmp_path / str(number), source))
    one, two = (load_reward(reference) for reference in references)
    assert (one(completions=["x"]), two(completions=["x"])) == ([1.0], [2.0])
    assert one.__globals__ is not two.__globals__


# ----------------------------------------------------------------------------- shipped rewards


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        (r"so \boxed{4}", 1.0),
        (r"\boxed{\frac{1}{2}} is it", 1.0),
        (r"\boxed{ }", 0.0),
        (r"\boxed{", 0.0),
        (r"\boxed{\frac{1}{2}", 0.0),
        (r"\boxed{1} or \boxed{2}", 0.0),
        ("4", 0.0),
        ("", 0.0),
        (r"\boxed{" * 50_000, 0.0),
    ],
)
def test_boxed(completion: str, value: float) -> None:
    assert load_reward("boxed")(completion).value == value


@pytest.mark.parametrize(
    ("completion", "opened", "value"),
    [
        ("<think>a\nb</think>\n<answer>4</answer>\n", False, 1.0),
        ("a</think><answer>4</answer>", True, 1.0),
        ("a</think><answer>4</answer>", False, 0.0),
        ("<think>a</think><answer>4</answer>", True, 0.0),
        ("<think>a</think> so <answer>4</answer>", False, 0.0),
        ("<answer>4</answer><think>a</think>", False, 0.0),
        ("<think>a</think><answer>4</answer><answer>5</answer>", False, 0.0),
        ("<think>a<answer>4</think></answer>", False, 0.0),
        ("", False, 0.0),
    ],
)
def test_format_tags(completion: str, opened: bool, value: float) -> None:
    assert load_reward("format_tags", {"opened": opened})(completion).value == value


@given(st.integers(0, 400), st.integers(1, 200), st.integers(0, 200))
def test_length_is_the_soft_overlong_punishment(size: int, limit: int, buffer: int) -> None:
    buffer = min(buffer, limit)
    found = load_reward("length", {"limit": limit, "buffer": buffer})("x" * size).value
    if size <= limit - buffer:  # DAPO, equation 13
        assert found == 0.0
    elif size <= limit:
        assert found == pytest.approx((limit - buffer - size) / buffer)
    else:
        assert found == -1.0


# --------------------------------------------------------------------------------- in trainers


@pytest.mark.parametrize("trainer", [trl.GRPOTrainer, GRPOTrainer])
@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_trains_in_stock_trl_and_in_ours(trainer: type, chat: bool, tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    @reward
    def spy(completion: str, answer: str, prompt: str, floor: float = 0.0) -> Score:
        seen.append((prompt, answer))
        return Score(max(floor, float(len(completion) % 3)), "length modulo 3")

    policy = open_policy("scratch:dense-tiny", device="cpu")
    policy.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    texts = [f"{i}+{i}=" for i in range(4)]
    prompts = [[{"role": "user", "content": t}] for t in texts] if chat else texts
    rows = {"prompt": prompts, "answer": [str(2 * i) for i in range(4)]}
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    arguments: dict[str, Any] = {"output_dir": str(tmp_path), "max_steps": 2, "learning_rate": 1e-2}
    arguments |= {"per_device_train_batch_size": 8, "num_generations": 4, "use_cpu": True}
    arguments |= {"max_completion_length": 6, "bf16": False, "report_to": "none"}
    arguments |= {"save_strategy": "no", "disable_tqdm": True}
    trainer(
        policy.model,
        reward_funcs=[spy.with_options(floor=0.5), load_reward("length")],
        args=GRPOConfig(**arguments),
        train_dataset=Dataset.from_dict(rows),
        processing_class=policy.tokenizer,
    ).train()
    assert set(seen) <= set(zip(texts, rows["answer"], strict=True)) and len(seen) == 16
    assert any(not torch.equal(before[n], p) for n, p in policy.model.named_parameters())
    assert all(torch.isfinite(p).all() for p in policy.model.parameters())


def test_the_public_face_imports_no_torch() -> None:
    code = "import sys, rl_reasoner.scoring.batch, rl_reasoner; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
