"""A recipe handed over to verl: its table of fields, its folder, its reward file."""

import ast
import importlib.util
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tyro
import yaml
from transformers import AutoTokenizer

from rl_reasoner import Recipe, RecipeRewards
from rl_reasoner.cli.arguments import parse_options
from rl_reasoner.cli.eval import EvalVerb
from rl_reasoner.errors import UserError
from rl_reasoner.handover.fields import OURS, field_table, settings
from rl_reasoner.handover.folder import hand_over
from rl_reasoner.handover.verl import FIELDS
from rl_reasoner.paths import check_run
from rl_reasoner.policy.scratch import byte_tokenizer
from rl_reasoner.recipe.algorithms import ALGORITHMS
from rl_reasoner.recipe.data import FileData
from rl_reasoner.version import INSTALL
from support.commands import Cli
from support.documents import ROOT

ACTOR = "actor_rollout_ref.actor."


def recipe(loss: Mapping[str, Any] | None = None, **more: Any) -> Recipe:
    stage = {"kind": "grpo", "steps": 3, "sampling": {"max_tokens": 64}, "loss": loss or {}}
    given: dict[str, Any] = {
        "policy": "org/model",
        "template": "plain",
        "data": {"task": "modular", "count": 6},
        "rewards": {"math_answer": 2.0},
        "stages": [stage],
    }
    return Recipe(**{**given, **more})


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "train.parquet").to_pylist()
    return rows


def verl_settings(folder: Path, made_of: Recipe) -> dict[str, Any]:
    made = hand_over(made_of, folder)
    return settings(FIELDS, made.subject)


def test_every_field_of_a_recipe_is_in_the_table_once() -> None:
    assert sorted(one.ours for one in FIELDS) == sorted(OURS)
    theirs = [name for one in FIELDS for name in one.theirs]
    assert len(theirs) == len(set(theirs))


def test_the_page_has_the_table() -> None:
    page = (ROOT / "docs/handover.md").read_text()
    begin, end = "<!-- the table of fields -->\n\n", "\n<!-- its end -->"
    shown = page.partition(begin)[2].partition(end)[0]
    assert shown == field_table(FIELDS), "run: python docs/handover_fields.py"


@pytest.mark.parametrize(
    ("loss", "there"),
    [
        ({"algorithm": "grpo"}, ("seq-mean-token-mean", "vanilla", 0.2, 0.2)),
        ({"algorithm": "dapo"}, ("token-mean", "vanilla", 0.2, 0.28)),
        ({"algorithm": "dr_grpo"}, ("seq-mean-token-sum-norm", "vanilla", 0.2, 0.2)),
        ({"algorithm": "gspo"}, ("seq-mean-token-mean", "gspo", 3e-4, 4e-4)),
        ({"algorithm": "cispo"}, ("token-mean", "cispo", 1.0, 4.0)),
        ({"algorithm": "rloo"}, ("seq-mean-token-sum", "gspo", 0.2, 0.2)),
        ({"algorithm": "reinforce++"}, ("token-mean", "vanilla", 0.2, 0.2)),
        ({"algorithm": "reinforce++-baseline"}, ("token-mean", "vanilla", 0.2, 0.2)),
        ({"algorithm": "max_rl"}, ("token-mean", "vanilla", 0.2, 0.2)),
        ({"algorithm": "w_reinforce"}, ("token-mean", "vanilla", 0.2, 0.2)),
        ({"algorithm": "scalerl"}, ("token-mean", "cispo", 1.0, 4.0)),
    ],
)
def test_algorithms_are_what_verl_calls_them(
    loss: dict[str, Any], there: tuple[object, ...], tmp_path: Path
) -> None:
    given = verl_settings(tmp_path / "out", recipe(loss))
    names = ("loss_agg_mode", "policy_loss.loss_mode", "clip_ratio_low", "clip_ratio_high")
    assert tuple(given[ACTOR + name] for name in names) == there
    estimators = {
        "rloo": "rloo",
        "reinforce++": "reinforce_plus_plus",
        "reinforce++-baseline": "reinforce_plus_plus_baseline",
    }
    assert given["algorithm.adv_estimator"] == estimators.get(loss["algorithm"], "grpo")
    assert given["algorithm.norm_adv_by_std_in_grpo"] == (
        loss["algorithm"] not in ("dr_grpo", "rloo", "max_rl", "w_reinforce")
    )
    assert (ACTOR + "loss_scale_factor" in given) == (loss["algorithm"] == "dr_grpo")


def test_every_algorithm_is_asked_above() -> None:
    marks = test_algorithms_are_what_verl_calls_them.pytestmark  # type: ignore[attr-defined]
    assert {loss["algorithm"] for loss, _ in marks[0].args[1]} == set(ALGORITHMS)


def test_the_kl_goes_where_the_recipe_has_it(tmp_path: Path) -> None:
    in_loss = verl_settings(tmp_path / "a", recipe({"beta": 0.1, "kl_estimator": "k3"}))
    assert (in_loss[f"{ACTOR}use_kl_loss"], in_loss["algorithm.use_kl_in_reward"]) == (True, False)
    assert (in_loss[f"{ACTOR}kl_loss_coef"], in_loss[f"{ACTOR}kl_loss_type"]) == (
        0.1,
        "low_var_kl+",
    )
    in_reward = verl_settings(
        tmp_path / "b", recipe({"beta": 0.2, "kl_in": "reward", "kl_estimator": "k1"})
    )
    assert in_reward[f"{ACTOR}use_kl_loss"] is False
    assert in_reward["algorithm.kl_ctrl.kl_coef"] == 0.2
    assert f"{ACTOR}kl_loss_coef" not in in_reward


def test_what_the_engine_does_otherwise_is_a_warning(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "policy")
    known = {"policy": str(tmp_path / "policy")}
    asked = recipe(
        {
            "algorithm": "max_rl",
            "mask_truncated": True,
            "type": "vespo",
            "positive_advantage_weight": 0.5,
        },
        **known,
    )
    told = hand_over(asked, tmp_path / "out")
    assert [line.partition(":")[0] for line in told.warnings] == [
        "loss.algorithm max_rl",
        "loss.type vespo",
        "loss.positive_advantage_weight 0.5",
        "loss.mask_truncated True",
    ]
    length = recipe(rewards={"math_answer": 1.0, "length": 0.1}, **known)
    lengths = hand_over(length, tmp_path / "b")
    assert ["completion_ids" in line for line in lengths.warnings] == [True]
    readme = (told.folder / "README.md").read_text()
    assert all(line in readme for line in (*told.warnings, *told.start))
    assert "`loss.mask_truncated`" in readme.partition("## No counterpart")[2]
    [command] = [line for line in readme.splitlines() if line.startswith("rl-reasoner eval")]
    options = {"extract": "whole", "timeout_s": 2.0}
    judged = recipe(evals={"sets": ["a"], "reward": "code_tests", "reward_options": options})
    readme = (hand_over(judged, tmp_path / "c").folder / "README.md").read_text()
    [other] = [line for line in readme.splitlines() if line.startswith("rl-reasoner eval")]
    found = [tyro.cli(EvalVerb, args=shlex.split(text)[2:]) for text in (command, other)]
    assert [one.sets for one in found] == ["SET", "a"] and found[0].template == asked.template
    assert parse_options("--reward-options", found[1].reward_options) == options
    assert not hand_over(recipe(**known), tmp_path / "plain").warnings


OWN = """
from doubts import DOUBT

from rl_reasoner import reward


@reward
def brief(completion: str, answer: str) -> float | None:
    if "fail" in completion:
        raise ValueError("it fails")
    return None if DOUBT in completion else 1.0
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "doubts.py").write_text("DOUBT = 'hm'\n")
    monkeypatch.chdir(tmp_path)
    return "mine.py:brief"


def loaded(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location("handed_over", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_reward_file_has_three_outcomes_without_the_recipes_own_files(
    tmp_path: Path, own: str
) -> None:
    asked = recipe(rewards={"math_answer": 2.0, own: 0.5})
    made = hand_over(asked, tmp_path / "out")
    (tmp_path / "mine.py").unlink()
    (tmp_path / "doubts.py").unlink()
    score = loaded(made.folder / "rewards.py").compute_score
    task = made.subject.tasks[0]
    right = f"<answer>{task.answer}</answer>"

    def told(completion: str) -> tuple[float, float, float]:
        given = score("modular", completion, task.answer, {"task": task.text}, num_turns=None)
        return given["score"], given["unjudged"], given["fault"]

    assert told(right) == (2.5, 0.0, 0.0)
    assert told("<answer>no</answer>") == (0.5, 0.0, 0.0)
    assert told(f"hm {right}") == (0.0, 1.0, 0.0)
    assert told(f"fail {right}") == (0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("data", "meter"),
    [
        ({"path": "rows.jsonl", "rewards": ["mine.py:brief"]}, {}),
        ({"path": "named.jsonl"}, {"rewards": ["mine.py:brief"]}),
        ([{"path": "named.jsonl"}, {"path": "rows.jsonl", "rewards": ["mine.py:brief"]}], {}),
    ],
    ids=["source", "rows", "mix"],
)
def test_an_own_reward_is_found_by_its_name_in_the_recipe(
    data: Any, meter: dict[str, Any], tmp_path: Path, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"problem": "1+1=", "answer": "2"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (tmp_path / "named.jsonl").write_text(json.dumps({**row, "rewards": [own]}))
    asked = recipe(rewards={"math_answer": 2.0, own: 0.5}, data=data, hacking_meter=meter)
    made = hand_over(asked, tmp_path / "out")
    monkeypatch.chdir(tmp_path.parent)
    handed = RecipeRewards(made.folder / "recipe.yaml")
    tasks = [row["extra_info"]["task"] for row in rows_of(made.folder)]
    assert tasks and {handed.score_task("no", task).value for task in tasks} == {0.5}
    monkeypatch.chdir(tmp_path)
    wrong = FileData(path="rows.jsonl", rewards=("mine.py:brif",))
    with pytest.raises(UserError, match=r"no reward 'mine\.py:brif'\. Did you mean 'mine\.py:b"):
        hand_over(asked.model_copy(update={"data": wrong}), tmp_path / "other")


ASKED = """
import json
from shown import POINTS


def ask(messages, seed):
    return json.dumps({"points": {"polite": POINTS}})
"""


def test_a_judges_function_and_rubric_come_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "ask.py": ASKED,
        "shown.py": "POINTS = 3",
        "rubric.yaml": "items: [{name: polite, text: it is polite}]",
    }
    for name, content in files.items():
        Path(name).write_text(content)
    options = {"function": "ask.py:ask", "rubric": "rubric.yaml", "cache": str(tmp_path / "kept")}
    made = hand_over(recipe(rewards={"judge": {"options": options}}), tmp_path / "out")
    for name in files:
        Path(name).unlink()
    monkeypatch.chdir(tmp_path.parent)
    handed = RecipeRewards(made.folder / "recipe.yaml")
    task = made.subject.tasks[0]
    assert handed.score_task("Thank you.", task.text).value == 0.75
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="reward 'judge': option rubric: there is no file rubric"):
        hand_over(
            recipe(rewards={"judge": {"options": {**SERVED, "rubric": "rubric.yaml"}}}),
            tmp_path / "other",
        )


def test_rows_get_the_rewards_that_they_name(tmp_path: Path) -> None:
    rows = [
        {"problem": "1+1=", "answer": "2", "rewards": ["math_answer"]},
        {"problem": "2+2=", "answer": "4", "rewards": ["length"]},
        {"problem": "3+3=", "answer": "6"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    weights = {"math_answer": 1.0, "length": {"weight": 0.25, "options": {"limit": 8, "buffer": 0}}}
    rewards = RecipeRewards(recipe(rewards=weights, data=str(tmp_path / "rows.jsonl")))
    texts = [f"<answer>{row['answer']}</answer>" for row in rows]
    made = rewards.score(texts, rows, [str(row["problem"]) for row in rows])
    assert [one.value for one in made] == [1.0, -0.25, 0.75]


def test_a_column_of_the_data_is_not_taken_for_what_the_policy_wrote() -> None:
    row = {"problem": "1+1=", "answer": "2", "policy_text": "No refunds."}
    [made] = RecipeRewards(recipe(rewards=["math_answer"])).score(["\\boxed{2}"], [row], ["1+1="])
    assert made.value == 1.0


def test_a_folder_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> Any:
        raise OSError("no space left on device")

    monkeypatch.setattr("rl_reasoner.handover.verl.files", full)
    with pytest.raises(OSError, match="no space"):
        hand_over(recipe(), tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_a_run_as_policy_is_its_policy(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    (run / "policy").mkdir(parents=True)
    for name, text in ((".lock", ""), ("recipe.yaml", "policy: x")):
        (run / name).write_text(text)
    with pytest.raises(UserError, match="has no policy/ yet"):
        hand_over(recipe(policy=str(run)), tmp_path / "early")
    for name in ("config.json", "tokenizer_config.json"):
        (run / "policy" / name).write_text("{}")
    byte_tokenizer().backend_tokenizer.save(str(run / "policy" / "tokenizer.json"))
    path = "actor_rollout_ref.model.path"
    asked = recipe(policy=str(run), template="auto")
    assert verl_settings(tmp_path / "out", asked)[path] == str((run / "policy").resolve())
    assert not hand_over(asked, tmp_path / "b").warnings  # its template was looked at


def test_a_folder_that_is_handed_over_is_no_run(tmp_path: Path, cli: Cli) -> None:
    hand_over(recipe(), tmp_path / "out" / "made")
    files = sorted((tmp_path / "out" / "made").rglob("*"))
    verbs = (("report",), ("chat",), ("train", "--resume"), ("train", "quickstart", "--policy"))
    for verb in verbs:
        ended = cli(*verb, "out/made")
        assert ended.code == 2 and "but no run was begun in it, as in what" in ended.err
        assert "Runs there" not in ended.err and "continue it" not in ended.err
    assert sorted((tmp_path / "out" / "made").rglob("*")) == files, "nothing is written"
    ended = cli("report", "out/missing")
    assert ended.code == 2 and "Runs there" not in ended.err


def test_a_run_without_its_hidden_files_is_one(tmp_path: Path) -> None:
    """As a copy by a pattern leaves it, or a run's published records."""
    (tmp_path / "recipe.yaml").write_text("name: x")
    for mark in ("lock.json", "hashes.json", "stages/1-sft", "evals/after.json"):
        with pytest.raises(UserError, match="no run was begun in it"):
            check_run(tmp_path)
        (tmp_path / mark).mkdir(parents=True)
        check_run(tmp_path)
        (tmp_path / mark).rmdir()


def test_the_template_is_that_of_the_policy_that_the_stage_starts_from(tmp_path: Path) -> None:
    student = tmp_path / "student"
    student.mkdir()
    (student / "chat_template.jinja").write_text("{{ messages }}")
    own = {"kind": "grpo", "policy": str(student)}
    first = {"kind": "sft", "policy": str(student)}
    for number, stages in enumerate(([own], [first, {"kind": "grpo"}])):
        asked = recipe(policy="scratch:dense-tiny", template="auto", stages=stages)
        made = hand_over(asked, tmp_path / str(number))
        assert made.subject.chats and made.subject.template_known


def test_chats_stay_chats_and_texts_come_with_a_template_that_adds_nothing(
    tmp_path: Path,
) -> None:
    template = "actor_rollout_ref.model.custom_chat_template"
    chats = hand_over(recipe(template="boxed", system="Be brief."), tmp_path / "chats")
    row = rows_of(chats.folder)[0]
    assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]
    assert template not in settings(FIELDS, chats.subject)
    assert json.loads(row["extra_info"]["task"])["prompt"] == row["prompt"]
    texts = hand_over(recipe(template="r1"), tmp_path / "texts")
    assert settings(FIELDS, texts.subject)[template]
    guessed = hand_over(recipe(template="auto"), tmp_path / "auto")
    assert [line.partition(" ")[0] for line in guessed.warnings] == ["template"]


@pytest.mark.parametrize("begun", [True, False])
def test_texts_begin_there_as_the_policys_tokenizer_begins_them(
    begun: bool, tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.save_pretrained(tmp_path / "policy")
    if begun:  # as the files of Llama, Mistral and Gemma have it
        file = tmp_path / "policy" / "tokenizer.json"
        token = {"id": "<s>", "ids": [tokenizer.bos_token_id], "tokens": ["<s>"]}
        single = [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ]
        adding = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": token},
        }
        file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": adding}))
    opened = AutoTokenizer.from_pretrained(tmp_path / "policy")
    asked = recipe(policy=str(tmp_path / "policy"))
    verl = hand_over(asked, tmp_path / "verl")
    prompt = verl.subject.tasks[0].prompt
    wanted = opened(prompt)["input_ids"]
    assert (wanted[0] == opened.bos_token_id) == begun
    given = settings(FIELDS, verl.subject)
    chat = [{"role": "user", "content": prompt}]
    template = given["actor_rollout_ref.model.custom_chat_template"]
    shown = opened.apply_chat_template(chat, chat_template=template, return_dict=False)
    assert (
        shown == wanted
        and max(len(opened(t.prompt)["input_ids"]) for t in verl.subject.tasks)
        == given["data.max_prompt_length"]
    )
    assert not any("BOS" in one for one in verl.warnings)
    unknown = hand_over(recipe(), tmp_path / "unknown")
    assert [one for one in unknown.warnings if one.startswith("template") and "BOS" in one]
    chats = hand_over(recipe(template="chat"), tmp_path / "chats")
    assert not any("BOS" in one for one in chats.warnings)


SERVED = {"server": "http://localhost:9/v1", "model": "m"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tools": ["calculator"]}, "the recipe has tools: completions of several turns"),
        ({"rewards": {"judge_ranking": {"options": SERVED}}}, "judges whole groups"),
        ({"rewards": {"gone.py:f": 1.0}}, r"there is no file gone\.py"),
        (
            {"stages": [{"kind": "sft", "steps": 1}]},
            r"the recipe has none \(only: sft\)",
        ),
        (
            {
                "stages": [
                    {"kind": "filter", "name": "medium"},
                    {"kind": "grpo", "steps": 1},
                ]
            },
            "rows that stage 'medium' makes",
        ),
    ],
)
def test_what_cannot_be_handed_over_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        hand_over(recipe(**change), tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_unknown_engines_and_stages_are_told_with_the_nearest(tmp_path: Path, cli: Cli) -> None:
    ended = cli("export", "quickstart", str(tmp_path / "out"), "--to", "verll")
    assert ended.code == 2 and "Did you mean 'verl'" in ended.err
    with pytest.raises(UserError, match="Did you mean 'grpo'"):
        hand_over(recipe(), tmp_path / "out", "gropo")


def test_no_name_breaks_what_is_run_there(tmp_path: Path) -> None:
    """A recipe may be of somebody else, and its name any text; a folder may have spaces."""
    there = hand_over(recipe(name='"""\ntouch hacked\n"""'), tmp_path / "a folder")
    body = ast.parse((there.folder / "rewards.py").read_text()).body
    assert not any(isinstance(part, ast.Expr) for part in body[1:])
    assert yaml.safe_load((there.folder / "config.yaml").read_text())["handover"] == {
        "folder": str(there.folder)
    }
    assert f"--config-dir '{there.folder}'" in there.start[-1]


def test_nothing_is_installed_by_a_name_that_is_on_no_index(tmp_path: Path) -> None:
    made = hand_over(recipe(), tmp_path / "out")
    commands = [line.partition("#")[0] for line in made.start]
    assert not [line for line in commands if line.startswith("pip") and "rl-reasoner" in line]
    assert INSTALL in (made.folder / "README.md").read_text()
