"""Runs whose policy may call tools: recipes, evaluation, rollouts, and kill -9 in mid-turn."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from rl_reasoner import EvalResult, Recipe, evaluate, open_policy
from rl_reasoner.dataset.rows import load_rows
from rl_reasoner.dataset.templates import prompt_of
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.evaluate import replay
from rl_reasoner.evaluation.judging import Judge
from rl_reasoner.files import read_jsonl
from rl_reasoner.pipeline.difficulty_filter import FilterFiles, filter_rows
from rl_reasoner.pipeline.lineage import facts_of
from rl_reasoner.pipeline.placement import choose_placement
from rl_reasoner.pipeline.rejection_sampling import _kept, make_samples
from rl_reasoner.pipeline.stage_trainers import Job, trainer_of
from rl_reasoner.recipe.data import TaskData
from rl_reasoner.recipe.stages import (
    FilterSampling,
    FilterStage,
    Keep,
    SampleStage,
    Sampling,
    SftStage,
)
from rl_reasoner.recipe.tools import ToolSettings
from rl_reasoner.rollout.agreement import engine_runs
from rl_reasoner.rollout.sampler import long_rows, prompt_ids
from rl_reasoner.rollout.tool_turns import ToolUse
from rl_reasoner.types import Rollout, Row
from support.commands import Cli, whole_and_resumed
from support.stock import drawn
from support.tiny import rows, same
from support.vllm_stand_in import serving

RECIPE: dict[str, Any] = {
    "name": "calls",
    "policy": "scratch:dense-tiny",
    "template": "plain",
    "tools": {"use": ["calculator", "slow.py:slow"], "format": "tags", "calls": 2},
    "rewards": {"math_answer": 1.0},
    "stages": [
        {
            "kind": "sft",
            "data": {"task": "product", "count": 64, "called": 1.0},
            "steps": 60,
            "batch": 32,
            "optim": {"lr": 5e-3},
        },
        {
            "kind": "grpo",
            "data": {"task": "product", "count": 16},
            "steps": 4,
            "group": {"size": 4, "prompts": 2},
            "sampling": {"max_tokens": 96},
            "save_every": 1,
        },
    ],
    "evals": {"sets": ["product_validation"], "limit": 8, "max_tokens": 96},
    "run": {"seed": 1, "report_to": "none"},
}
DISTILL = {
    "kind": "distill",
    "teacher": "scratch:dense-tiny",
    "data": {"task": "product", "count": 16},
}
SLOW = '''import time

from rl_reasoner import tool


@tool
def slow(text: str) -> str:
    """Take a while.

    Args:
        text: What to give back.
    """
    time.sleep(0.2)
    return text
'''


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A folder with a recipe whose policy soon writes calls."""
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "calls.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path


def rollouts(run: Path) -> list[dict[str, Any]]:
    """The rollouts of a run's second stage."""
    return rows(run / "stages" / "2-grpo" / "rollouts.jsonl")


def test_a_run_calls_and_is_evaluated_with_its_tools(room: Path, cli: Cli) -> None:
    assert cli("train", "calls.yaml", "--run.folder", "run").code == 0
    rows = rollouts(room / "run")
    called = [row for row in rows if row["turns"]]
    assert called, "after 60 steps on calls the policy writes some"
    for row in called:
        for event in row["turns"]:
            assert event.keys() == {"tool", "kind", "at", "given", "text"}
    assert any(event["given"] for row in called for event in row["turns"])
    assert any("<output>\n" in row["completion"] for row in called)
    metrics = (room / "run" / "stages" / "2-grpo" / "metrics.jsonl").read_text()
    assert "tools/call_frequency" in metrics and "tools/failure_frequency" in metrics
    assert "completions with calls" in (room / "run" / "report.html").read_text()
    before = json.loads((room / "run" / "evals" / "before.json").read_text())
    assert before["settings"]["tools"]["use"] == ["calculator", "slow.py:slow"]

    sets = ("--sets", "product_validation", "--limit", "4", "--max-tokens", "96", "--json")
    own = json.loads(cli("eval", "run", *sets, "--run-its-code").out)
    assert own["settings"]["tools"]["format"] == "tags"
    for spelled in ("none", "None", "null", ""):
        none = json.loads(cli("eval", "run", *sets, "--tools", spelled).out)
        assert "tools" not in none["settings"]
    both = cli("eval", "run", *sets, "--tools", "none", "--tool-format", "fences")
    assert both.code == 2 and "--tools is none" in both.err


@pytest.mark.matrix
def test_the_same_in_the_middle_of_a_turn_after_kill_9(room: Path) -> None:
    """Killed while completions are sampled and tools run; the weights are those of a whole run."""
    (room / "calls.yaml").write_text(yaml.safe_dump(RECIPE))
    whole_and_resumed(room, "calls.yaml", "stages/2-grpo/metrics.jsonl", 2)
    assert same(room / "whole" / "policy", room / "killed" / "policy")
    assert rollouts(room / "whole") == rollouts(room / "killed")
    called = {row["step"] for row in rollouts(room / "whole") if row["turns"]}
    assert called == {1, 2, 3, 4}


@pytest.mark.matrix
def test_the_same_by_a_vllm_server_after_kill_9(room: Path) -> None:
    """The server samples up to a call, and goes on behind its result."""
    with serving("scratch:dense-tiny") as server:
        sft, grpo = RECIPE["stages"]
        grpo = {**grpo, "vllm": {"mode": "server", "url": server.url}}
        changed = {**RECIPE, "stages": [sft, grpo]}
        (room / "calls.yaml").write_text(yaml.safe_dump(changed))
        whole_and_resumed(room, "calls.yaml", "stages/2-grpo/metrics.jsonl", 2)
        assert any("</calculator>" in body["stop"] for body in server.bodies)
    assert same(room / "whole" / "policy", room / "killed" / "policy")
    assert rollouts(room / "whole") == rollouts(room / "killed")
    called = [row for row in rollouts(room / "whole") if row["turns"]]
    assert {row["step"] for row in called} == {1, 2, 3, 4}
    assert any("<output>\n" in row["completion"] for row in called)


def test_dynamic_sampling_goes_with_the_tools_of_a_recipe(room: Path, cli: Cli) -> None:
    sft, grpo = RECIPE["stages"]
    stages = [sft, {**grpo, "loss": {"algorithm": "dapo"}}]
    (room / "calls.yaml").write_text(yaml.safe_dump({**RECIPE, "stages": stages}))
    ended = cli("train", "calls.yaml", "--run.folder", "run")
    assert ended.code == 0, ended.err
    steps = rows(room / "run" / "stages" / "2-grpo" / "metrics.jsonl")
    assert len(steps) == 4 and sum(step["dynamic_sampling/refills"] for step in steps) > 0
    assert sum(step["tools/call_frequency"] for step in steps) > 0
    for number in range(1, 5):  # a batch keeps its shape: two groups of four
        assert sum(row["step"] == number for row in rollouts(room / "run")) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tools": ["calculater"]}, "Did you mean 'calculator'"),
        ({"tools": {"use": ["calculator"], "format": "fence"}}, "tools.format"),
        ({"tools": {"use": []}}, "tools.use"),
        ({"tools": ["slow.py:quick"]}, "quick"),
        ({"tools": ["calculator"]}, "no form for calls"),
        ({"stages": [DISTILL]}, "run no tools yet"),
    ],
)
def test_mistakes_are_one_line(change: dict[str, Any], message: str, room: Path, cli: Cli) -> None:
    (room / "calls.yaml").write_text(yaml.safe_dump({**RECIPE, **change}))
    ended = cli("train", "calls.yaml", "--run.folder", "run")
    assert ended.code == 2 and message in ended.err, ended.err
    assert "Traceback" not in ended.err


def test_check_calls_each_tool_before_the_run(room: Path, cli: Cli) -> None:
    told = json.loads(cli("check", "calls.yaml", "--run-its-code", "--json").out)
    [found] = [notice for notice in told["notices"] if notice["check"] == "tools"]
    assert found["status"] == "passed"
    assert "calls as tags; calculator" in found["message"] and "slow" in found["message"]
    (room / "calls.yaml").write_text(yaml.safe_dump({**RECIPE, "tools": ["calculator"]}))
    ended = cli("check", "calls.yaml", "--run-its-code")
    assert ended.code == 2 and "no form for calls" in ended.err + ended.out


def test_steps_of_chains_as_calls() -> None:
    rows = load_rows(TaskData(task="chain_sum", count=20, called=1.0))
    for row in rows:
        assert row["completion"].count("<calculator>") == len(row["chain"].split(";"))
    shares = load_rows(TaskData(task="product", count=400, direct=0.5, called=0.5))
    calls = sum("<calculator>" in str(row.get("completion")) for row in shares)
    plain = sum("completion" not in row for row in shares)
    assert 70 < calls < 130 and 70 < plain < 130
    with pytest.raises(UserError, match="called must be 0"):
        load_rows(TaskData(task="modular", count=20, called=1.0))


CHAT = (
    "{% if tools %}{{ tools | tojson }} answer, or call by <tool_call>{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_every_prompt_tells_of_the_tools(tmp_path: Path) -> None:
    """What a chat template says of them is in sft rows, in the manifest, and in lengths."""
    policy = open_policy("scratch:dense-tiny", seed=1, device="cpu")
    policy.tokenizer.chat_template = CHAT
    recipe = Recipe(**{**RECIPE, "template": "chat", "tools": ["calculator"]})
    stage = recipe.stages[0]
    assert isinstance(stage, SftStage)
    rows: list[Row] = [{"problem": "1+1=", "answer": "2", "completion": "2"}] * 4
    prompts = [prompt_of(row, "chat", policy.tokenizer) for row in rows]
    schemas = ToolUse.told(recipe.tools, policy.tokenizer)
    told = prompt_ids(policy, prompts[0], schemas=schemas)
    assert "calculator" in policy.tokenizer.decode(told)

    job = Job(recipe, stage, choose_placement(recipe), rows, {}, policy, tmp_path)
    assert trainer_of(job).train_dataset[0]["input_ids"][: len(told)] == told

    result = evaluate(
        policy, ["product_validation"], limit=1, max_tokens=2, template="chat", tools=recipe.tools
    )
    example = result.manifest["policy"]["prompt_example"]["token_ids"]
    assert "calculator" in policy.tokenizer.decode(example)

    policy.model.config.max_position_embeddings = len(told) + 1
    assert len(long_rows(prompts, rows, 2, policy, recipe.tools)) == 4
    assert long_rows(prompts, rows, 2, policy) == []


def test_what_a_stage_was_made_from_has_the_text_of_tools(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(room)
    recipe = Recipe(**RECIPE)
    before = facts_of(recipe, recipe.stages[1], {"sft": "weights"})
    assert facts_of(recipe, recipe.stages[1], {"sft": "weights"}) == before
    (room / "slow.py").write_text(SLOW.replace("return text", "return text * 2"))
    assert facts_of(recipe, recipe.stages[1], {"sft": "weights"}) != before


def test_what_was_drawn_with_another_tool_is_not_taken(tmp_path: Path) -> None:
    """Of two files of one name, and of the turns that a chat template writes, all counts."""
    policy = open_policy("scratch:dense-tiny", seed=1, device="cpu")
    policy.tokenizer.chat_template = CHAT
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.py").write_text(SLOW.replace("def slow", f"def {name}"))
    tools = ToolSettings(
        use=tuple(f"{tmp_path / name / 'own.py'}:{name}" for name in ("one", "two"))
    )
    before = ToolUse.of(tools, policy.tokenizer).identity()
    assert ToolUse.of(tools, policy.tokenizer).identity() == before
    own = tmp_path / "one" / "own.py"
    own.write_text(own.read_text().replace("return text", "return text * 2"))
    edited = ToolUse.of(tools, policy.tokenizer).identity()
    assert edited != before
    policy.tokenizer.chat_template = CHAT.replace("[assistant]", "[answer]")
    assert ToolUse.of(tools, policy.tokenizer).identity() != edited


def test_rows_are_filtered_and_sampled_with_tools(tmp_path: Path) -> None:
    """Completions of `filter` and `sample` call; those kept in a cache are of the same tools."""
    policy = open_policy("scratch:dense-tiny", seed=1, device="cpu")
    encode, end = policy.tokenizer, policy.tokenizer.eos_token_id
    call = encode("<calculator>6*7</calculator>", add_special_tokens=False)["input_ids"]
    rows = load_rows(TaskData(task="product", count=4))
    tools = ToolSettings(use=("calculator",), format="tags")
    told: dict[str, Any] = {"template": "plain", "seed": 0, "progress": lambda done: None}
    files = FilterFiles(tmp_path / "kept.jsonl", tmp_path / "rates.jsonl", tmp_path / "samples")

    def tokens(settings: ToolSettings | None) -> float:
        stage = FilterStage(samples=2, keep="0..1", sampling=FilterSampling(max_tokens=80))
        filter_rows(stage, rows, policy, files, tools=settings, **told)
        return float(json.loads(files.rates.read_text().splitlines()[0])["mean_tokens"])

    with drawn([[*call, *[end] * 52]] * 8):
        given = len(ToolUse.of(tools, policy.tokenizer).tokens("42"))
        assert tokens(tools) == len(call) + given + 1
        assert tokens(None) == len(call) + 1  # not what the cache has of rows with tools
        assert tokens(tools) == len(call) + given + 1
        stage = SampleStage(
            samples=2, min_score=0.0, sampling=Sampling(max_tokens=80), keep=Keep(readable=False)
        )
        make_samples(stage, rows, policy, tmp_path, tools=tools, **told)
    kept = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    texts = {row["completion"] for row in kept}
    assert texts == {"<calculator>6*7</calculator>\n<output>\n42\n</output>\n"}


def test_what_a_tool_prints_makes_no_sample_unreadable() -> None:
    stage = SampleStage(samples=1, sampling=Sampling(max_tokens=80))
    loop = "again and again " * 40
    sampled = {
        "completions": [f"so\n{loop}\n\\boxed{{7}}"] * 2,
        "policy_texts": ["so\n\\boxed{7}", None],
        "tokens": [9, 9],
        "truncated": [False, False],
        "scores": [1.0, 1.0],
    }
    counts: Counter[str] = Counter()
    kept = _kept(stage, {"problem": "3+4=", "answer": "7"}, sampled, counts)
    assert len(kept) == 1 and counts == {"sampled": 2, "not readable": 1}


def test_a_mistake_in_the_tools_of_filter_is_one_line(cli: Cli) -> None:
    flags = ("--tools", "calculater", "--tool-format", "tags")
    ended = cli("filter", "scratch:dense-tiny", "product_validation", *flags)
    assert ended.code == 2 and "Did you mean 'calculator'" in ended.err


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_sft_has_no_loss_on_what_tools_gave(template: str, tmp_path: Path) -> None:
    policy = open_policy("scratch:dense-tiny", seed=1, device="cpu")
    policy.tokenizer.chat_template = CHAT
    tools = {"use": ["calculator"], "format": "tags"}
    recipe = Recipe(**{**RECIPE, "template": template, "tools": tools})
    stage = recipe.stages[0]
    assert isinstance(stage, SftStage)
    rows = load_rows(TaskData(task="product", count=8, called=1.0))
    job = Job(recipe, stage, choose_placement(recipe), rows, {}, policy, tmp_path)
    decode = policy.tokenizer.decode
    for row, made in zip(rows, trainer_of(job).train_dataset, strict=True):
        begin, _, behind = str(row["completion"]).partition("\n<output>\n")
        given, _, end = behind.partition("\n</output>\n")
        assert given.isdecimal() and f"<output>\n{given}" in decode(made["input_ids"])
        pairs = zip(made["input_ids"], made["labels"], strict=True)
        assert f"{begin}{end}" in decode([token for token, label in pairs if label != -100])


BOX = SLOW.replace("def slow", "def box").replace("return text", 'return "\\\\boxed{7}"')


def test_evaluations_judge_what_the_policy_wrote(tmp_path: Path, cli: Cli) -> None:
    """An answer that only a tool gave is none: strictly, leniently, from a cache, judged again."""
    (tmp_path / "box.py").write_text(BOX)
    (tmp_path / "set.jsonl").write_text(json.dumps({"problem": "3+4=", "answer": "7"}))
    policy = open_policy("scratch:dense-tiny", seed=1, device="cpu")
    assert engine_runs(policy.model)
    encode, end = policy.tokenizer, policy.tokenizer.eos_token_id
    tools = ToolSettings(use=(f"{tmp_path / 'box.py'}:box",), format="tags")
    given = len(ToolUse.of(tools, policy.tokenizer).tokens("\\boxed{7}"))
    call = [*encode("<box>it</box>")["input_ids"], *[6] * given]
    texts = ("so", "it is \\boxed{7}", "so it is 7 apples")

    def judged(cache: Path) -> EvalResult:
        return evaluate(
            policy, [str(tmp_path / "set.jsonl")], samples=2, temperature=1.0, max_tokens=120,
            template="plain", tools=tools, cache=cache, modes=["sampled"],
        )  # fmt: skip

    strict, lenient, saved = [], [], []
    for n, text in enumerate(texts):
        row = [*call, *encode(text)["input_ids"], end]
        with drawn([[*row, *[end] * (120 - len(row))]] * 2):
            result = judged(tmp_path / str(n))
        with drawn([[end] * 120] * 2):
            assert judged(tmp_path / str(n)).rows == result.rows, "from the cache"
        assert replay(result, run_its_code=True).rows == result.rows
        [[found]] = result.rows.values()
        assert all("<output>\n\\boxed{7}" in whole for whole in found["completions"])
        assert found["policy_texts"] == [f"<box>it</box>\n{text}"] * 2
        strict.append(found["scores"][0])
        lenient.append(found["lenient"][0])
        facts = {"completion": found["completions"][0], "answer": "7"}
        saved.append({**facts, "policy_text": found["policy_texts"][0]})
    assert strict == [0.0, 1.0, 0.0] and lenient == [0.0, 1.0, 1.0]

    saved.append({"completion": "\\boxed{7}", "answer": "7"})
    (tmp_path / "saved.jsonl").write_text("\n".join(map(json.dumps, saved[::-1])))
    assert cli("score", "math_answer", "saved.jsonl", "--out", "scores.jsonl").code == 0
    scores = [one["math_answer"]["value"] for one in read_jsonl(tmp_path / "scores.jsonl")]
    assert scores == [1.0, 0.0, 1.0, 0.0]


def test_answers_that_tools_gave_are_in_no_class_of_answers() -> None:
    row = {"problem": "3+4=", "answer": "7"}
    group = [
        Rollout("so \\boxed{7}", 3, False, policy_text="so"),
        Rollout("\\boxed{8}", 3, False),
        Rollout("\\boxed{7}\n\\boxed{8}", 3, False, policy_text="\\boxed{8}"),
    ]
    [scored] = Judge([row], None, None).score([row], [group])
    assert scored["scores"] == [0.0, 0.0, 0.0] and scored["classes"] == [-1, 1, 1]
