"""What is checked before a run: mistakes with their places, room, tokens, prompts, a rehearsal."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rl_reasoner import open_policy
from rl_reasoner.errors import UserError
from rl_reasoner.pipeline.inputs import read_inputs
from rl_reasoner.pipeline.placement import choose_placement
from rl_reasoner.pipeline.preflight import Notice, inspect
from rl_reasoner.pipeline.prepare import Prepared, prepare
from rl_reasoner.pipeline.rehearsal import rehearse
from rl_reasoner.recipe.data import doubled_braces
from rl_reasoner.recipe.hacking_meter import HackingMeterSettings
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.rollout import sampling_weights
from rl_reasoner.rollout.mismatch import measure
from support.commands import Cli, stock
from support.tiny import grpo, recipe, reward_file, sft


def prepared(wanted: Recipe) -> Prepared:
    return prepare(wanted, choose_placement(wanted))


def rehearsed(wanted: Recipe, policy: Any) -> list[Notice]:
    found = rehearse(wanted, choose_placement(wanted), prepared(wanted), policy)
    return [notice for seen in found for notice in seen.notices]


def notices(wanted: Recipe, folder: Path, change: Callable[[Any], None] = lambda p: None) -> Any:
    """The notices about a recipe, by check; of several, the worst."""
    policy = open_policy(wanted.policy.source, device="cpu")
    change(policy)
    found: dict[str, Notice] = {}
    order = ("passed", "warned", "failed")
    for notice in inspect(wanted, choose_placement(wanted), prepared(wanted), policy, folder):
        before = found.get(notice.check)
        if before is None or order.index(before.status) < order.index(notice.status):
            found[notice.check] = notice
    return found


def test_a_prompt_that_tells_of_no_tools_is_pointed_out(tmp_path: Path) -> None:
    """Where calls are the chat template's, and the prompt is none of it."""

    def chats(policy: Any) -> None:
        policy.tokenizer.chat_template = (
            "<tool_call>{% for m in messages %}{{ m.content }} {% endfor %}"
        )

    told = {"tools": ["calculator"], "evals": {"sets": []}}
    for template, status in (("Sum: {problem}", "warned"), ("chat", "passed")):
        wanted = recipe(tmp_path, grpo(), template=template, **told)
        found = notices(wanted, tmp_path, chats)["tools"]
        assert found.status == status, found
        assert ("plain text" in found.message) == (status == "warned")


def test_every_mistake_at_once_each_with_its_place(tmp_path: Path, cli: Cli) -> None:
    stock(tmp_path)
    text = (tmp_path / "tiny.yaml").read_text()
    text = text.replace('"rewards.py:fine": 1', '"rewards.py:fien": 1')
    text = text.replace("[modular_test]", "[modlar_test]")
    text = text.replace("task: modular, count: 8, seed: 1", "path: rowz.jsonl")
    (tmp_path / "tiny.yaml").write_text(text)
    for verb in (("train", "tiny.yaml", "--name", "x"), ("check", "tiny.yaml", "--run-its-code")):
        ended = cli(*verb)
        assert ended.code == 2
        lines = {line: i for i, line in enumerate(text.splitlines(), 1)}
        for what, said in (("rewards:", "'fine'"), ("sets:", "'modular_test'"), ("rowz", "rowz")):
            [number] = [i for line, i in lines.items() if what in line]
            assert any(
                f"tiny.yaml:{number}: " in line and said in line for line in ended.err.splitlines()
            ), ended.err
    ended = cli("train", "tiny.yaml", "--evals.validation", "nonne")
    assert "--evals.validation nonne: " in ended.err


def test_settings_of_a_set_that_is_not_evaluated_are_told(tmp_path: Path, cli: Cli) -> None:
    stock(tmp_path)
    flags = ["--evals.overrides", "{modular_tset: {max_tokens: 5}}"]
    for verb in ("train", "check"):
        ended = cli(verb, "tiny.yaml", *flags)
        assert ended.code == 2 and "--evals.overrides" in ended.err
        assert "evals has no set 'modular_tset'. Did you mean 'modular_test'?" in ended.err
    nothing = recipe(
        tmp_path, sft(), evals={"sets": [], "overrides": {"modular_tset": {"max_tokens": 5}}}
    )
    assert read_inputs(nothing, starts=True).rows  # nothing is evaluated: it is of no effect


def test_a_policy_of_a_later_stage_that_is_not_there_is_told_before_the_first(
    tmp_path: Path,
) -> None:
    student = sft(name="student", policy="scratch:dense-tniy")
    wanted = recipe(tmp_path, sft(), student)
    said = r"stages\.1\.policy: unknown scratch policy .*'scratch:dense-tiny'"
    with pytest.raises(UserError, match=said):
        read_inputs(wanted, lambda path: ".".join(map(str, path)), starts=True)
    assert read_inputs(wanted).rows  # a run that goes on may have used it
    (tmp_path / "config.json").write_text("{}")
    reused = recipe(tmp_path, sft(), sft(**student, reuse=str(tmp_path)))
    assert read_inputs(reused, starts=True).rows


def test_places_in_a_script(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "r.py").write_text(
        "from rl_reasoner import Recipe\n\n\ndef recipe() -> Recipe:\n    return Recipe(\n"
        '        policy="scratch:dense-tiny",\n        rewards={"boxd": 1.0},\n'
        '        stages=[{"kind": "grpo", "data": {"task": "modular"}}],\n    )\n'
    )
    ended = cli("train", "r.py")
    assert ended.code == 2 and "r.py:7: unknown reward 'boxd'" in ended.err


def test_a_reward_that_fails_on_the_data_is_told_with_its_place(tmp_path: Path, cli: Cli) -> None:
    stock(tmp_path)
    text = (tmp_path / "tiny.yaml").read_text()
    (tmp_path / "tiny.yaml").write_text(text.replace("rewards.py:fine", "rewards.py:wordy", 1))
    ended = cli("train", "tiny.yaml")
    assert ended.code == 2 and "tiny.yaml:5: a trial call failed" in ended.err


def tried(folder: Path, body: str, head: str = "@reward") -> None:
    """Read a recipe with a reward of this body, as `train` and `check` do."""
    file = folder / "tried.py"
    text = "import re\nfrom rl_reasoner import reward\n"
    file.write_text(f"{text}{head}\ndef f(completion, answer):\n    return {body}\n")
    read_inputs(recipe(folder, grpo(), rewards={f"{file}:f": 1.0}))


def test_a_reward_that_raises_on_the_bare_answer_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tried(tmp_path, 're.search("<answer>(.*?)</answer>", completion).group(1) == answer')
    [said] = [r.getMessage() for r in caplog.records if "trial call" in r.getMessage()]
    assert "tried.py:f failed on its trial call" in said
    assert "AttributeError: 'NoneType' object has no attribute 'group' at tried.py:5" in said
    assert "It was given the row's answer alone, '" in said


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("missing_name", "NameError"),
        ("(lambda one: one)(completion, answer)", "TypeError"),
        ("'good'", "TypeError"),
        ("completion + 1", "TypeError"),
        ("completion.lowr() == answer", "AttributeError: 'str' object has no attribute 'lowr'"),
        ("re.serach('a', completion)", "AttributeError: module 're' has no attribute 'serach'"),
        ("open('/nope/words.txt')", "FileNotFoundError"),
        ("exit(3)", "its process ended .exit code 3"),
        ("int('b')", "ValueError"),
    ],
)
def test_a_reward_that_no_completion_suits_is_refused(tmp_path: Path, body: str, says: str) -> None:
    with pytest.raises(UserError, match=f"a trial call failed: .*{says}"):
        tried(tmp_path, body)
    tried(tmp_path, body, "@reward(optional=True)")  # whose faults cost nothing


@pytest.mark.parametrize(
    "body",
    [
        "re.search('<final>(.*?)</final>', completion).group(1) == answer",
        "completion.split('FINAL:')[1] == answer",
        "{}[completion]",
        "completion.index('<answer>')",
    ],
)
def test_a_reward_that_another_completion_may_suit_is_warned_of(
    tmp_path: Path, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    tried(tmp_path, body)
    assert "tried.py:f failed on its trial call" in caplog.text


def form_of_trl(folder: Path, judged: str) -> None:
    """Read a recipe with a function of trl's form that judges a completion `c` so."""
    file = folder / "form.py"
    file.write_text(
        "import re\ndef f(completions, **kwargs):\n"
        f"    return [float({judged}) for c in completions]\n"
    )
    read_inputs(recipe(folder, grpo(), rewards={f"{file}:f": 1.0}))


def test_functions_of_trls_form_are_tried_on_texts_and_chats(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for judged, says in (
        ("kwargs['solution'][0] in c", "KeyError: 'solution'"),
        ("'4' in c[0]['contnt']", "given a chat: .*KeyError: 'contnt'"),
        ("'4' in c.lowr()", "'str' object has no attribute 'lowr'"),
    ):
        with pytest.raises(UserError, match=f"a trial call failed: .*{says}"):
            form_of_trl(tmp_path, judged)
    assert "trial call" not in caplog.text
    form_of_trl(tmp_path, "re.search('<answer>(.*)</answer>', c[0]['content']).group(1) == '4'")
    assert "form.py:f failed on its trial call" in caplog.text


def test_a_sound_recipe_passes(tmp_path: Path) -> None:
    stage = grpo(group={"size": 4, "prompts": 4})
    found = notices(recipe(tmp_path, sft(), stage), tmp_path)
    assert {notice.status for notice in found.values()} == {"passed"}
    assert found.keys() >= {"disk", "memory", "tokens", "sandbox", "learning rate", "prompts"}


def test_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = grpo(sampling={"max_tokens": 100_000})
    found = notices(recipe(tmp_path, long), tmp_path)
    assert found["prompts"].status == "failed" and "do not fit" in found["prompts"].message

    class Usage:
        free = 1 << 20

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    monkeypatch.setattr("rl_reasoner.pipeline.preflight._free_memory", lambda device: 1 << 20)
    found = notices(recipe(tmp_path, grpo()), tmp_path)
    assert found["disk"].status == "failed" and "1 MB free" in found["disk"].message
    assert found["memory"].status == "failed" and "do not fit" in found["memory"].message


def test_a_run_that_goes_on_needs_room_for_the_rest_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(tmp_path, sft(), grpo())
    placement, ready = choose_placement(made), prepared(made)
    policy = open_policy("scratch:dense-tiny", device="cpu")
    weights = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    folder = tmp_path / "run"

    class Usage:
        free = 3 * weights

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)

    def disk(left: int | None) -> Notice:
        return inspect(made, placement, ready, policy, folder, left)[0]

    assert disk(None).status == disk(1).status == "failed"
    assert "different --run.folder" in disk(None).fix and disk(1).fix == "free some space"
    assert disk(0).status == "passed"  # a policy to be written, at the end


def test_a_folder_that_cannot_be_made_fails(tmp_path: Path, cli: Cli) -> None:
    stock(tmp_path)
    text = (tmp_path / "tiny.yaml").read_text()
    (tmp_path / "tiny.yaml").write_text(text.replace("folder: run", "folder: saved.jsonl/run"))
    ended = cli("check", "tiny.yaml", "--run-its-code")
    assert ended.code == 2 and "disk: cannot write saved.jsonl/run" in ended.err


def test_doubtful_settings_are_told(tmp_path: Path) -> None:
    hot = grpo(optim={"lr": 0.5}, group={"size": 2, "prompts": 1})
    found = notices(recipe(tmp_path, hot), tmp_path)
    assert found["learning rate"].status == found["batch"].status == "warned"
    assert "policies of this size" in found["learning rate"].fix
    late = grpo(steps=3, optim={"lr": 1e-3, "warmup": 3})
    assert "is never reached" in notices(recipe(tmp_path, late), tmp_path)["learning rate"].message


def test_an_evaluated_set_that_is_trained_on_and_a_folder_that_is_there_are_told(
    cli: Cli, tmp_path: Path
) -> None:
    stock(tmp_path)
    flags = ["--grpo.data", "{path: modular_test}", "--run.folder", "."]
    ended = cli("check", "tiny.yaml", "--run-its-code", *flags)
    shown = " ".join(ended.out.split())
    assert ended.code == 0 and "look first at: overlap, folder" in shown
    assert "1,000 of the 1,000 problems of modular_test are in the training data" in shown


def test_templates_like_format_strings_are_told(tmp_path: Path) -> None:
    written = recipe(tmp_path, grpo(), template=r"{problem} Answer in \boxed{{}}.")
    found = notices(written, tmp_path)["template"]
    assert found.status == "warned" and r"near '\\boxed{{}}.'" in found.message
    single = recipe(tmp_path, grpo(), template=r"{problem} Answer in \boxed{}.")
    assert "template" not in notices(single, tmp_path)


@pytest.mark.parametrize(
    ("template", "doubtful"),
    [
        ("Solve {{problem}}", True),
        (r"{problem} = \boxed{{4}}", True),
        (r"{problem} \frac{1}{2} \boxed{{}}", True),
        ("int[][] a = {{1,2},{3,4}}; {problem}", False),
        (r"${{n}\choose{k}}$ {problem}", False),
        ('{"a": {"b": 1}} {problem}', False),
        ("boxed", False),
    ],
)
def test_what_looks_like_a_format_string(template: str, doubtful: bool) -> None:
    assert (doubled_braces(template) is not None) == doubtful


@pytest.mark.parametrize(("bf16", "status"), [(50, "warned"), (200, "passed")])
def test_bf16_on_a_processor_that_is_slower_with_it_is_told(
    bf16: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = json.loads(os.environ["RL_REASONER_CHOICES"])
    said[f"bf16_products/{torch.get_num_threads()}_threads"] = {"fp32": 100, "bf16": bf16}
    monkeypatch.setenv("RL_REASONER_CHOICES", json.dumps(said))
    run = {"folder": str(tmp_path / "run"), "device": "cpu", "precision": "bf16"}
    found = notices(recipe(tmp_path, sft(), run=run), tmp_path)["precision"]
    assert found.status == status and f"{bf16} in bf16, 100 in fp32" in found.message
    assert "precision" not in notices(recipe(tmp_path, sft()), tmp_path)


@pytest.mark.parametrize("sets", [{}, {"sets": [], "validation": "modular_test"}])
def test_weights_that_evaluations_cannot_sample_from_here_are_told_before_a_run(
    sets: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(tmp_path, sft(), evals={"weights": "bfloat16", **sets})
    monkeypatch.setattr(sampling_weights, "_computes_bf16", lambda: False)
    found = notices(wanted, tmp_path)["evaluations"]
    assert found.status == "failed"
    assert found.message.startswith("evals.weights is bfloat16, but this processor has no")
    monkeypatch.setattr(sampling_weights, "_computes_bf16", lambda: True)
    assert notices(wanted, tmp_path)["evaluations"].status == "passed"


def test_levels_out_of_distribution_that_are_trained_on_are_told(tmp_path: Path) -> None:
    sets = {"sets": ["modular_ood"]}
    inside = recipe(tmp_path, grpo(), evals=sets)
    assert "levels" not in notices(inside, tmp_path)
    reached = grpo(data={"task": "modular", "count": 64, "levels": (2, 6)})
    told = notices(recipe(tmp_path, reached, evals=sets), tmp_path)["levels"]
    assert told.status == "warned" and "levels 6 to 6 are trained on" in told.message


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{}, {}], "the rows have no level"),
        ([{"level": 2}, {}], "row 2 has no level"),
        ([{"level": 2}, {"level": 2}], "all rows have level 2"),
    ],
)
def test_rows_that_make_no_curriculum_are_told_before_a_run(
    rows: list[dict[str, Any]], expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    own = [{"problem": f"{i}+1=", "answer": f"{i + 1}", **row} for i, row in enumerate(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in own))
    wanted = grpo(data=str(file), group={"size": 4, "prompts": 2, "curriculum": "levels"})
    with pytest.raises(UserError, match=expected):
        prepared(recipe(tmp_path, wanted))


def test_tokens_that_are_missing_or_outside(tmp_path: Path) -> None:
    def no_end(policy: Any) -> None:
        policy.tokenizer.eos_token = None

    def outside(policy: Any) -> None:
        policy.model.config.vocab_size = 1

    wanted = recipe(tmp_path, grpo())
    assert "no end token" in notices(wanted, tmp_path, no_end)["tokens"].message
    assert "outside" in notices(wanted, tmp_path, outside)["tokens"].message


def test_a_run_that_cannot_work_is_refused_before_it_begins(tmp_path: Path, cli: Cli) -> None:
    stock(tmp_path)
    ended = cli("train", "tiny.yaml", "--sampling.max_tokens", "100000")
    assert ended.code == 2 and "do not fit" in ended.err and not (tmp_path / "run").exists()


def test_a_rehearsal_tells_what_the_first_steps_would_show(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, grpo(sampling={"max_tokens": 2}))
    policy = open_policy(wanted.policy.source, device="cpu")
    found = {notice.check: notice for notice in rehearsed(wanted, policy)}
    assert found["truncation"].status == "warned" and "cut off" in found["truncation"].message
    assert "32 completions, 0 faults" in found["reward"].message
    assert found["variance"].message.endswith("of 8 groups have equal rewards")


@pytest.mark.parametrize("first", [0, 1])
def test_each_reward_is_rehearsed_on_its_own_columns(first: int, tmp_path: Path) -> None:
    """The first row does not decide which columns there are."""
    sum_row = {"problem": "1+1=", "answer": "2", "rewards": ["math_answer"]}
    code = {"problem": "Write f.", "tests": ["assert f()"], "rewards": ["code_tests"]}
    rows = [sum_row, code] if first == 0 else [code, sum_row]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = grpo(data=str(tmp_path / "d.jsonl"), group={"size": 2, "prompts": 2})
    rewards = {"math_answer": 1.0, "code_tests": 1.0}
    wanted = recipe(tmp_path, stage, rewards=rewards)
    found = rehearsed(wanted, open_policy(wanted.policy.source, device="cpu"))
    told = [notice.message for notice in found if notice.check == "reward"]
    assert len(told) == 2 and all("on 2 completions, 0 faults" in text for text in told), told


def test_a_reward_that_faults_on_what_is_sampled_fails(tmp_path: Path, cli: Cli) -> None:
    stock(tmp_path)
    text = (tmp_path / "tiny.yaml").read_text()
    (tmp_path / "tiny.yaml").write_text(text.replace("rewards.py:fine", "rewards.py:picky", 1))
    ended = cli("check", "tiny.yaml", "--run-its-code", "--json")
    assert ended.code == 2 and "not the answer" in ended.err
    found = json.loads(ended.out)["notices"]
    assert [n["status"] for n in found if n["check"] == "reward"] == ["failed"]


def test_data_rows_are_linted_together_with_the_rest(tmp_path: Path) -> None:
    (tmp_path / "plain.jsonl").write_text('{"problem": "1+1=", "answer": "2"}\n')
    wanted = recipe(tmp_path, sft(data=str(tmp_path / "plain.jsonl")), rewards={"lenght": 1.0})
    with pytest.raises(UserError) as caught:
        prepared(wanted)
    assert len(caught.value.messages) == 2


def test_a_policy_that_a_stage_makes_first_is_not_warned_of(tmp_path: Path) -> None:
    """What a policy from scratch samples says nothing of what it is after its supervised stage."""
    policy = open_policy("scratch:moe-tiny", device="cpu")
    stage = grpo(sampling={"max_tokens": 2})
    for stages, status in (([stage], "warned"), ([sft(), stage], "skipped")):
        wanted = recipe(tmp_path, *stages)
        found = {n.check: n for n in rehearsed(wanted, policy)}
        assert found["truncation"].status == status
        told = "stage sft makes its policy" in found["truncation"].message
        measured = "measured on the run's first policy" in found["mismatch"].message
        assert measured == told
        assert told == ("stage sft makes its policy" in found["variance"].message)
        assert told == (status == "skipped")


def test_passes_are_compared_up_to_every_end_that_training_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat model declares the end of a turn beside the tokenizer's end of a text."""
    wanted = recipe(tmp_path, grpo(sampling={"max_tokens": 4}))
    policy = open_policy(wanted.policy.source, device="cpu")
    policy.model.generation_config.eos_token_id = [policy.tokenizer.eos_token_id, 9, 11]
    seen: list[Any] = []

    def measured(*args: Any, **settings: Any) -> Any:
        seen.append(settings["ends"])
        return measure(*args, **settings)

    monkeypatch.setattr("rl_reasoner.pipeline.rehearsal.measure", measured)
    rehearsed(wanted, policy)
    assert [{*ends} for ends in seen] == [{policy.tokenizer.eos_token_id, 9, 11}]


def test_who_judges_the_best_paid_completions_is_told(tmp_path: Path) -> None:
    found = notices(recipe(tmp_path, grpo()), tmp_path)["hacking meter"]
    assert found.status == "passed" and "gold answers, by stricter rules (64 rows)" in str(found)
    told = {"data": {"task": "instructions_tiny", "count": 8}}
    nobody = recipe(tmp_path, grpo(**told), rewards={"instructions": 1.0})
    found = notices(nobody, tmp_path)["hacking meter"]
    assert found.status == "skipped" and "hacking_meter.judge" in found.fix
    found = notices(
        nobody.model_copy(update={"hacking_meter": HackingMeterSettings(judge="boxed")}), tmp_path
    )
    assert found["hacking meter"].status == "passed"
    asked = {"function": "json:dumps"}
    ranks = HackingMeterSettings(judge="judge_ranking", judge_options=asked)
    with pytest.raises(UserError, match="judge_ranking compares"):
        prepared(nobody.model_copy(update={"hacking_meter": ranks}))
    off = nobody.model_copy(update={"hacking_meter": HackingMeterSettings(every=0)})
    assert str(notices(off, tmp_path)["hacking meter"]).endswith(": off")


def test_rows_without_an_answer_are_counted_where_only_it_is_judged(tmp_path: Path) -> None:
    """A completion stands in for an answer where it is learned from; no reward judges by it."""
    rows = [{"problem": f"{n}?", "completion": "c", "answer": "3" * (n % 2)} for n in range(4)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    stage = grpo(data={"path": str(path)})
    found = notices(recipe(tmp_path, stage, rewards={"math_answer": 1}), tmp_path)["answers"]
    assert "math_answer cannot read 2 of 4 answers, the first in row 1: ''" in found.message


def test_answers_that_the_verifier_cannot_read_are_counted(tmp_path: Path) -> None:
    golds = ["2", "\\frac{1}{", "$$", "3"]
    data = [{"problem": f"{n}?", "answer": gold} for n, gold in enumerate(golds)]
    data.append({"problem": "digits?", "answer": "$", "rewards": ["near"]})
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in data))
    stage = grpo(data={"path": str(path)})
    rewards: dict[str, Any] = {"math_answer": 1, reward_file(tmp_path): 1}
    found = notices(recipe(tmp_path, stage, rewards=rewards), tmp_path)["answers"]
    assert found.status == "warned"
    said = "math_answer cannot read 2 of 4 answers, the first in row 2: '\\\\frac{1}{' (abstained: "
    assert said in found.message
    path.write_text("".join(f"{json.dumps(row)}\n" for row in (data[0], *data[3:], data[4])))
    assert "answers" not in notices(recipe(tmp_path, stage, rewards=rewards), tmp_path)


def test_weights_that_one_process_cannot_share_are_said(tmp_path: Path) -> None:
    for way in ("fsdp", "zero2"):
        assert "parallel" in notices(recipe(tmp_path, grpo(), run={"parallel": way}), tmp_path)
