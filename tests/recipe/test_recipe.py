"""Recipes: scripts, YAML and flags are one schema, and every mistake is told with its place."""

import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rl_reasoner.errors import UserError
from rl_reasoner.paths import room
from rl_reasoner.recipe.data import FileData, TaskData
from rl_reasoner.recipe.flags import apply_flags, flag_table
from rl_reasoner.recipe.load import find_recipe, load_recipe, shipped_recipes
from rl_reasoner.recipe.locations import read_yaml, validate
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import GrpoStage


def grpo(**fields: Any) -> dict[str, Any]:
    return {"kind": "grpo", "data": {"task": "modular"}, **fields}


def small(**fields: Any) -> Recipe:
    given = {"policy": "scratch:moe-tiny", "rewards": {"length": 1}, "stages": [grpo()]}
    return Recipe(**{**given, **fields})


def messages(tmp_path: Path, text: str, name: str = "r.yaml") -> list[str]:
    """What `load_recipe` says about a file with this text, without the folder's name."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_recipe(str(tmp_path / name))
    return [message.replace(f"{tmp_path}{os.sep}", "") for message in caught.value.messages]


def flag_messages(*flags: str, recipe: Recipe | None = None) -> list[str]:
    with pytest.raises(UserError) as caught:
        apply_flags(recipe or load_recipe("quickstart"), flags)
    return list(caught.value.messages)


# ------------------------------------------------------------------------- one schema, three ways


def test_quickstart_is_the_same_as_script_and_as_yaml() -> None:
    script = load_recipe("quickstart")
    assert load_recipe("quickstart.yaml") == script
    assert load_recipe("quickstart.py") == script
    assert load_recipe(str(room("recipes") / "quickstart.yaml")).to_yaml() == script.to_yaml()


def test_shipped_recipes_are_listed_and_load() -> None:
    assert {"gsm8k", "noisy_start", "quickstart"} <= set(shipped_recipes())
    for name in shipped_recipes():
        assert load_recipe(name).name == name
        assert find_recipe(name) == room("recipes") / f"{name}.py"


def test_python_yaml_and_flags_resolve_to_the_same_recipe(tmp_path: Path) -> None:
    stage = grpo(steps=7, group={"size": 4, "prompts": 2}, optim={"lr": 1e-6, "betas": [0.9, 0.95]})
    stage["trainer"] = {"adam_epsilon": 1e-6}
    python = small(name="x", stages=[stage], run={"seed": 3}, evals={"sets": ["a", "b"]})
    (tmp_path / "x.yaml").write_text(
        "name: x\npolicy: scratch:moe-tiny\nrewards: {length: 1}\n"
        "run: {seed: 3}\nevals: {sets: [a, b]}\nstages:\n"
        "- kind: grpo\n  data: {task: modular}\n  steps: 7\n  group: {size: 4, prompts: 2}\n"
        "  optim: {lr: 1e-6, betas: [0.9, 0.95]}\n  trainer: {adam_epsilon: 1e-6}\n",
        encoding="utf-8",
    )
    flags = "--name x --run.seed 3 --evals.sets a,b --steps 7 --group.size 4 --grpo.group.prompts=2"
    flags += " --optim.lr 1e-6 --stages.0.optim.betas 0.9,0.95 --trainer.adam_epsilon 1e-6"
    assert load_recipe(str(tmp_path / "x.yaml")) == python
    assert apply_flags(small(), flags.split()) == python
    assert python.stages[0].trainer == {"adam_epsilon": 1e-6}


NAMES = st.text(st.characters(codec="utf-8"), max_size=20)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
WEIGHTS = st.floats(-1e6, 1e6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | NAMES | st.sampled_from(["1e-6", "1e5"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
TASKS = st.fixed_dictionaries(
    {"task": st.sampled_from(["modular", "gcd"]), "count": st.integers(1, 10**9)},
    optional={
        "levels": st.tuples(st.integers(), st.integers()),
        "noise": st.floats(0, 1),
        "split": st.sampled_from(["train", "ood"]),
    },
)
FILES = st.fixed_dictionaries(
    {"path": NAMES},
    optional={"columns": st.dictionaries(NAMES, NAMES, max_size=3), "limit": st.integers(1, 99)},
)
STAGES = st.lists(
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["sft", "grpo"]),
            "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,9}", fullmatch=True),
            "data": TASKS | FILES,
            "optim": st.fixed_dictionaries({"lr": st.floats(1e-300, 1e300)}),
        },
        optional={
            "trainer": st.dictionaries(NAMES, VALUES, max_size=3),
            "steps": st.integers(1, 10**7),
            "router_aux": st.none() | st.floats(0, 10),
        },
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda stage: str(stage["name"]),
)
REWARDS = st.dictionaries(
    NAMES,
    WEIGHTS | st.fixed_dictionaries({"options": st.dictionaries(NAMES, VALUES, max_size=2)}),
    min_size=1,
    max_size=3,
).filter(lambda rewards: any(rewards.values()))
RECIPES = st.fixed_dictionaries(
    {"policy": NAMES, "stages": STAGES, "rewards": REWARDS, "name": NAMES},
    optional={
        "template": NAMES.map(lambda text: f"{text}{{problem}}{text}") | st.just("r1"),
        "run": st.fixed_dictionaries(
            {"folder": st.none() | NAMES, "seed": st.integers(0, 2**32 - 1)}
        ),
    },
)


@given(RECIPES)
def test_a_recipe_written_as_yaml_reads_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]
) -> None:
    recipe = Recipe(**fields)
    file = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    assert validate(*read_yaml(file), "round-trip.yaml") == recipe


def test_defaults_are_written_out() -> None:
    shown = yaml.safe_load(small().to_yaml())
    assert (shown["stages"][0]["name"], shown["stages"][0]["loss"]["epsilon"]) == ("grpo", 0.2)
    unset = {"optional": None, "on_abstain": None, "source": None}
    assert shown["rewards"] == {"length": {"weight": 1.0, "options": {}, **unset}}


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        small().name = "other"


# ----------------------------------------------------------------------------------------- flags


@given(st.floats(1e-300, 1e300), st.integers(0, 2**32 - 1), NAMES)
def test_a_flag_sets_exactly_its_field(lr: float, seed: int, name: str) -> None:
    changed = apply_flags(
        small(), [f"--optim.lr={lr!r}", "--run.seed", str(seed), f"--name={name}"]
    )
    stage = grpo(optim={"lr": lr})
    assert changed == small(stages=[stage], run={"seed": seed}, name=name)


def test_a_path_means_the_recipe_then_a_stage_by_name_then_a_kind() -> None:
    flags = ["--steps", "5", "--habit.steps", "6", "--stages.chains.batch", "8"]
    changed = apply_flags(load_recipe("quickstart"), flags)
    assert [stage.steps for stage in changed.stages] == [400, 6, 5]
    assert changed.stages[0].batch == 8  # type: ignore[union-attr]
    assert apply_flags(small(), ["--name", "y"]).name == "y"
    assert apply_flags(small(), ["--grpo.name", "y"]).stages[0].name == "y"


@pytest.mark.parametrize(
    ("flags", "path", "value"),
    [
        ("--run.folder 2024", "run.folder", "2024"),
        ("--name no", "name", "no"),
        ("--run.folder none", "run.folder", None),
        ("--evals.sets gsm8k", "evals.sets", ("gsm8k",)),
        ("--evals.sets [a,b]", "evals.sets", ("a", "b")),
        ("--evals.forced", "evals.forced", True),
        ("--evals.forced no", "evals.forced", False),
        ("--data.levels 2,4", "stages.0.data.levels", (2, 4)),
        ("--steps 010", "stages.0.steps", 10),
        ("--policy.lora.rank 4", "policy.lora.rank", 4),
        ("--rewards.length.options.limit 5", "rewards.length.options", {"limit": 5}),
        ("--rewards.boxed.options.x 1e-6", "rewards.boxed.options", {"x": 1e-6}),
        ("--rewards.boxed 0.5", "rewards.boxed.weight", 0.5),
        ("--rewards {boxed:\N{NO-BREAK SPACE}2}", "rewards", None),
    ],
)
def test_the_text_of_a_flag_is_read_as_its_field_wants_it(
    flags: str, path: str, value: object
) -> None:
    words = flags.split(" ")
    if value is None and path == "rewards":  # text that is no mapping is refused, not guessed
        assert "rewards" in flag_messages(*words, recipe=small())[0]
        return
    found: Any = apply_flags(small(), words)
    for part in path.split("."):
        found = (
            found[int(part)]
            if isinstance(found, tuple)
            else found[part]
            if isinstance(found, dict)
            else getattr(found, part)
        )
    assert found == value


def test_a_template_with_braces_is_a_text() -> None:
    assert apply_flags(small(), ["--template", "{problem} = "]).template == "{problem} = "


def test_the_order_of_flags_does_not_matter() -> None:
    flags = [
        ["--data.columns.problem", "question"],
        ["--data.limit", "5"],
        ["--data.path", "a.csv"],
    ]
    want = FileData(path="a.csv", limit=5, columns={"problem": "question"})
    for order in (flags, flags[::-1]):
        words = [word for flag in order for word in flag]
        assert apply_flags(small(), words).stages[0].data == want
    assert apply_flags(small(), ["--data.limit", "5", "--data", "a.csv"]).stages[
        0
    ].data == FileData(path="a.csv", limit=5)
    back = small(stages=[grpo(data={"path": "a.csv"})])
    assert apply_flags(back, ["--data.task", "gcd"]).stages[0].data == TaskData(task="gcd")


def test_a_mapping_by_flag_replaces_it_or_one_of_its_entries() -> None:
    flags = ["--data.columns", "{problem: q}", "--data.columns.answer", "a"]
    data = apply_flags(load_recipe("gsm8k"), flags).data
    assert isinstance(data, FileData)
    assert data.columns == {"problem": "q", "answer": "a"}
    emptied = apply_flags(load_recipe("gsm8k"), ["--data.columns", "{}"]).data
    assert isinstance(emptied, FileData)
    assert emptied.columns == {}
    judged = apply_flags(load_recipe("code_tiny"), ["--evals.reward_options.extract", "last"])
    assert judged.evals.reward_options["extract"] == "last"


def test_a_policy_by_flag_keeps_the_adapter() -> None:
    recipe = small(policy={"source": "a", "lora": {"rank": 3}})
    changed = apply_flags(recipe, ["--policy", "b"])
    assert changed.policy.source == "b"
    assert changed.policy.lora is not None
    assert changed.policy.lora.rank == 3


def test_every_mistake_in_flags_is_told_at_once() -> None:
    found = flag_messages(
        *("--grup.size", "4"),
        *("--optim.lr", "fast"),
        *("--run.sed", "1"),
        *("--grpo.group.size", "1"),
        *("--resum", "x"),
        "--steps",
        *("--stages.9.steps", "4"),
        *("--rewards", "{a: ["),
    )
    assert [message.partition(":")[0] for message in found] == [
        "--grup.size",
        "--run.sed",
        "--resum",
        "--steps",
        "--stages.9.steps",
        "--rewards {a",
        "--optim.lr fast",
        "--grpo.group.size 1",
    ]
    assert found[0].endswith("Did you mean '--group.size'?")
    assert found[1].endswith("Did you mean '--run.seed'?")
    assert found[2].endswith("Did you mean '--resume'?")
    assert found[3].endswith("expected a value after it")
    assert "number" in found[6]
    assert "expected at least 2 (given: '1')" in found[7]


def test_a_combination_that_cannot_be_names_the_flag_that_made_it() -> None:
    [message] = flag_messages("--run.seed", "1", "--group.micro_batch", "7")
    assert message.startswith("--group.micro_batch 7: stages.2: group.size 8 x group.prompts 16")
    assert message.endswith("not a multiple of group.micro_batch 7")


def test_a_value_without_a_flag_is_refused() -> None:
    assert flag_messages("--steps", "4", "5") == ["expected a flag that starts with --, got '5'"]


@given(st.lists(st.sampled_from(["stages", "0", "9", "x", "data", "rewards", "", "trainer"])))
def test_no_flag_breaks_the_reader(parts: list[str]) -> None:
    for text in ("1", "{a: 1}", "[", "a", ""):
        try:
            apply_flags(small(), ["--" + ".".join(parts), text])
        except UserError as error:
            assert all(error.messages)


def test_the_flag_table_has_every_leaf_and_every_row_of_it_is_a_flag() -> None:
    recipe = load_recipe("quickstart")
    rows = {flag: value for flag, value, _ in flag_table(recipe)}
    assert rows["--habit.steps"] == "80"
    assert rows["--grpo.group.size"] == "8"
    assert rows["--rewards"] == """'{"math_answer": 1.0}'"""
    assert rows["--system"] == "", "what is left out is no None"
    for flag in rows:  # a value that fits nothing is refused as a value, never as a field
        try:
            apply_flags(recipe, [flag, "\x01"])
        except UserError as error:
            assert "no such field" not in str(error)


# --------------------------------------------------------------------------- mistakes in files


BAD_YAML = """
name: x
policy: {source: a, lora: {ranks: 2}}   # policy.lora.ranks: unknown field. Did you mean 'rank'?
tempalte: plain                         # tempalte: unknown field. Did you mean 'template'?
rewards:
  length: {wieght: 2}                   # length.wieght: unknown field. Did you mean 'weight'?
stages:
- kind: sft
  data: {task: modular, cont: 4}        # stages.0.data.cont: unknown field. Did you mean 'count'?
  steps: many                           # stages.0.steps: expected a whole number
- kind: grpo
  data:
    path: a.jsonl
    colums: {problem: q}                # data.colums: unknown field. Did you mean 'columns'?
  optim:
    lr: 0                               # stages.1.optim.lr: expected a value above 0
  group: {size: 1}                      # stages.1.group.size: expected at least 2
  sampling: {temprature: 1}             # temprature: unknown field. Did you mean 'temperature'?
- kind: grop                            # stages.2: expected one of the kinds 'sft'
evals:
  sets: 7                               # evals.sets: expected a list
run: {sead: 1, device: tpu}             # run.sead: unknown field. Did you mean 'seed'?
"""


def test_every_mistake_in_yaml_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    found = messages(tmp_path, BAD_YAML)
    expected = [
        (number, line.partition("# ")[2])
        for number, line in enumerate(BAD_YAML.splitlines(), 1)
        if "# " in line
    ]
    for number, words in expected:
        assert any(m.startswith(f"r.yaml:{number}: ") and words in m for m in found), words
    assert len(found) == len(expected) + 1  # run.device on the line of run.sead
    device = "run.device: expected 'auto', 'cpu', 'cuda' or 'mps' (given: 'tpu')"
    assert any(device in message for message in found)


BAD_SCRIPT = """
from rl_reasoner import Recipe
def recipe():
    return Recipe(
        policy="scratch:moe-tiny",
        evalss={},                      # evalss: unknown field. Did you mean 'evals'?
        rewards={
            "length": {
                "wieght": 1,            # length.wieght: unknown field. Did you mean 'weight'?
            },
        },
        stages=[
            dict(
                kind="grpo",
                stepz=3,                # stages.0.stepz: unknown field. Did you mean 'steps'?
                data={
                    "task": "modular",
                    "splitt": "train",  # stages.0.data.splitt: unknown field. Did you mean 'split'?
                },
            ),
        ],
    )
"""


def test_every_mistake_in_a_script_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    found = messages(tmp_path, BAD_SCRIPT, "r.py")
    expected = [
        (number, line.partition("# ")[2])
        for number, line in enumerate(BAD_SCRIPT.splitlines(), 1)
        if "# " in line
    ]
    for number, words in expected:
        assert any(m.startswith(f"r.py:{number}: ") and words in m for m in found), words
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "r.py has no function `recipe()`"),
        ("def recipe():\n    return 3", "r.py: recipe() returned int, not a Recipe"),
        ("def recipe(:\n", "r.py:1: syntax error: invalid syntax"),
        ("x = 1\nimport no_such_module", "r.py:2: ModuleNotFoundError"),
        ("def recipe():\n    return 1 / 0", "r.py:2: ZeroDivisionError: division by zero"),
        ("from rl_reasoner import Recipe\nR = Recipe(policy='a')", "r.py:2: stages: this field is"),
        (
            "import rl_reasoner as r\ndef recipe():\n return r.Recipe(x=1)",
            "r.py:3: x: unknown field",
        ),
    ],
)
def test_a_script_that_fails_is_a_mistake_with_its_line(
    tmp_path: Path, text: str, says: str
) -> None:
    assert any(says in m for m in messages(tmp_path, text, "r.py"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "r.yaml: a recipe is a mapping of fields, the file is empty"),
        ("- a\n- b", "r.yaml: a recipe is a mapping of fields, this is list"),
        ("a: 1\nb: [", "r.yaml:2: not valid YAML"),
        ("a: 1\n\tb: 2", "r.yaml:2: not valid YAML"),
        ("name: \x07", "r.yaml: not valid YAML: unacceptable character"),
        ("name: a\nstages: []\nname: b", "r.yaml:3: the field 'name' is given twice"),
        ("a: !!python/object/apply:os.system [true]", "r.yaml:1: not valid YAML"),
        ("policy: a\nstages: []", "r.yaml:1: recipe: stages is empty"),
    ],
)
def test_yaml_that_is_no_recipe_is_told_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    assert messages(tmp_path, text)[0].startswith(says)


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(UserError, match=r"r.yaml: not UTF-8 \(byte 0xff at 6\): save it as UTF-8"):
        load_recipe(str(tmp_path / "r.yaml"))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").symlink_to("/proc/self/mem")  # a regular file whose reading fails
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(str(tmp_path / "r.yaml"))


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("quickstrat", "unknown recipe 'quickstrat'. Did you mean 'quickstart'? There are: "),
        ("quikstart.yaml", "there is no recipe file quikstart.yaml. Did you mean 'quickstart'?"),
        ("some/where.py", "there is no recipe file some/where.py."),
    ],
)
def test_a_recipe_that_is_not_there_is_told_with_the_nearest_name(
    reference: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(says)):
        load_recipe(reference)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"stages": [grpo(), grpo()]}, "two stages have the same name: grpo, grpo"),
        ({"stages": [{"kind": "grpo"}]}, "stage 'grpo' has no data"),
        ({"rewards": {}}, "stage 'grpo' is a grpo stage: the recipe needs rewards"),
        ({"template": "hello"}, "template 'hello' is not one of auto, plain, chat, boxed, r1"),
        ({"stages": [grpo(name="a/b")]}, "use only letters, digits, - and _"),
        ({"rewards": {"length": math.nan}}, "rewards.length.weight: expected a finite"),
        ({"rewards": {"length": 1e300}}, "expected at most 1000000"),
        ({"stages": [grpo(optim={"lr": math.inf})]}, "optim.lr: expected a finite number"),
        ({"stages": [grpo(trainer={"seed": math.nan})]}, "seed is nan: expected a finite"),
        ({"stages": [grpo(loss={"beta": math.inf})]}, "loss.beta: expected a finite number"),
        ({"stages": [grpo(group={"micro_batch": 7})]}, "is not a multiple of group.micro_batch 7"),
        (
            {"stages": [{"kind": "sft", "data": "a", "batch": 4, "micro_batch": 3}]},
            "batch 4 is not a multiple of micro_batch",
        ),
    ],
)
def test_what_cannot_be_together_is_refused_with_file_and_reason(
    fields: dict[str, Any], says: str, tmp_path: Path
) -> None:
    given = {"policy": "a", "rewards": {"length": 1}, "stages": [grpo()], **fields}
    [message] = messages(tmp_path, yaml.safe_dump(given))
    assert re.match(r"r\.yaml:\d+: ", message)
    assert says in message


def test_a_group_that_divides_is_taken() -> None:
    stage = small(stages=[grpo(group={"size": 4, "prompts": 6, "micro_batch": 8})]).stages[0]
    assert isinstance(stage, GrpoStage)
    assert stage.group.micro_batch == 8
