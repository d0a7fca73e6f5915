"""`GRPOConfig` from a command line or a file of settings: what is written there holds."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import trl
import tyro
import yaml
from transformers import HfArgumentParser

from rl_reasoner import GRPOConfig
from rl_reasoner.errors import UserError
from rl_reasoner.recipe.algorithms import ALGORITHMS

# An algorithm, and settings of one's own that are the defaults' values.
HOLDS: list[tuple[str, dict[str, Any]]] = [
    ("grpo", {"beta": 0.0}),
    ("dapo", {"dynamic_sampling": 0, "overlong_share": 0.0, "epsilon_high": 0.28}),
    ("gspo", {"epsilon": 0.2, "epsilon_high": 0.3}),
    ("reinforce++", {"loss_type": "dapo", "beta": 0.0}),
    ("w_reinforce", {"positive_advantage_weight": 1.0}),
]
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("dr_grpo", {"scale_rewards": "group", "loss_type": "dapo"}),
    ("grpo", {"use_bias_correction_kl": True}),
    ("gspo", {"importance_sampling_level": "token"}),
    ("rloo", {"kl_in": "loss", "kl_estimator": "k3"}),
    ("gspo", {"epsilon": 0.2}),  # above what is the upper bound then
]
WAYS = ("command line", "file", "both")


def parsed(folder: Path, way: str, algorithm: str, own: dict[str, Any]) -> Any:
    """The config of trl's parser: `own` on the command line, in a YAML file, or against one."""
    written = {"output_dir": str(folder), "algorithm": algorithm, **own}
    words = [word for name, value in written.items() for word in (f"--{name}", str(value))]
    if way != "command line":
        other = {"beta": 0.5, "loss_type": "sapo", "use_bias_correction_kl": False}
        in_file = written if way == "file" else {n: v for n, v in other.items() if n in own}
        (folder / "c.yaml").write_text(yaml.safe_dump(in_file), encoding="utf-8")
        words = ["--config", str(folder / "c.yaml"), *(words if way == "both" else [])]
    [found] = trl.TrlParser(GRPOConfig).parse_args_and_config([*words, "--report_to", "none"])
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("algorithm", "own"), HOLDS)
def test_a_default_that_is_written_holds_as_in_python(
    algorithm: str, own: dict[str, Any], way: str, tmp_path: Path
) -> None:
    found = parsed(tmp_path, way, algorithm, own)
    assert {name: getattr(found, name) for name in own} == own
    same = GRPOConfig(output_dir=str(tmp_path), report_to="none", algorithm=algorithm, **own)
    assert found == same


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("algorithm", "own"), REFUSED)
def test_a_default_that_contradicts_the_algorithm_is_the_error_of_python(
    algorithm: str, own: dict[str, Any], way: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as here:
        GRPOConfig(output_dir=str(tmp_path), algorithm=algorithm, **own)
    with pytest.raises(UserError) as there:
        parsed(tmp_path, way, algorithm, own)
    assert str(there.value) == str(here.value)
    assert all(name in str(here.value) for name in own)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_not_written_is_the_algorithms(algorithm: str, tmp_path: Path) -> None:
    found = parsed(tmp_path, "command line", algorithm, {})
    named = ALGORITHMS[algorithm]
    for name, value in {**named.fixed, **named.usual}.items():
        assert getattr(found, name) == value


def test_without_an_algorithm_the_parser_gives_plain_values_of_trls_types(tmp_path: Path) -> None:
    words = ["--output_dir", str(tmp_path), "--report_to", "none"]
    [found] = HfArgumentParser(GRPOConfig).parse_args_into_dataclasses(words)
    [stock] = HfArgumentParser(trl.GRPOConfig).parse_args_into_dataclasses([*words, "--bf16", "0"])
    for setting in dataclasses.fields(trl.GRPOConfig):
        ours, theirs = (getattr(config, setting.name) for config in (found, stock))
        assert type(ours) is type(theirs), setting.name
    assert found.use_bias_correction_kl is True and found.beta == 0.0
    assert copy.deepcopy(found) == found


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], True),
        (["--use_bias_correction_kl"], True),
        (["--use_bias_correction_kl", "False"], False),
        (["--no_use_bias_correction_kl"], False),
        (["--no-use-bias-correction-kl"], False),
    ],
)
def test_a_switch_that_algorithms_set_is_written_as_trls(
    words: list[str], value: bool, tmp_path: Path
) -> None:
    words = ["--output_dir", str(tmp_path), "--report_to", "none", "--bf16", "0", *words]
    for kind in (GRPOConfig, trl.GRPOConfig):
        [found] = HfArgumentParser(kind).parse_args_into_dataclasses(words)
        assert found.use_bias_correction_kl is value


def test_help_shows_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        trl.TrlParser(GRPOConfig).parse_args_and_config(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, default in [("loss_type", "dapo"), ("kl_in", "loss"), ("use_bias", "True")]:
        assert f"(default: {default})" in text.split(f"--{name}", 2)[2], name


def test_a_config_made_of_anothers_values_keeps_what_was_written(tmp_path: Path) -> None:
    own = {"output_dir": str(tmp_path), "report_to": "none"}
    again = {"generation_batch_size": None}  # trl takes it or steps_per_generation
    first = GRPOConfig(**own, algorithm="grpo", beta=0.0)
    assert dataclasses.replace(first, **again).beta == 0.0
    assert GRPOConfig(**{**first.to_dict(), **again, "hub_token": None}) == first
    plain = GRPOConfig(**own)
    assert dataclasses.replace(plain, **again, algorithm="grpo").beta == 0.04
    assert dataclasses.replace(plain, **again, algorithm="dapo").dynamic_sampling == 10


def test_ones_own_epsilon_is_not_above_the_algorithms_upper_bound(tmp_path: Path) -> None:
    own: dict[str, Any] = {"output_dir": str(tmp_path), "report_to": "none", "algorithm": "gspo"}
    with pytest.raises(UserError) as error:
        GRPOConfig(**own, epsilon=1e-3)
    assert str(error.value) == "epsilon is 0.001, above gspo's epsilon_high of 0.0004: set both"
    assert GRPOConfig(**own, epsilon=1e-4).epsilon_high == 4e-4
    assert GRPOConfig(**own, epsilon=1e-3, epsilon_high=1e-3).epsilon_high == 1e-3


def test_a_subclass_that_is_parsed_sees_plain_values(tmp_path: Path) -> None:
    seen: list[Any] = []

    @dataclasses.dataclass
    class Own(GRPOConfig):  # type: ignore[misc]
        mine: int = 3

        def __post_init__(self) -> None:
            seen.append((self.beta, self.use_bias_correction_kl))
            super().__post_init__()

    own: Any = Own
    words = ["--output_dir", str(tmp_path), "--report_to", "none", "--algorithm", "grpo"]
    [found] = HfArgumentParser(own).parse_args_into_dataclasses([*words, "--beta", "0"])
    assert (found.beta, found.mine, found.use_bias_correction_kl) == (0.0, 3, False)
    assert own(str(tmp_path), report_to="none").beta == 0.0
    assert seen == [(0.0, True)] * 2


def test_a_default_that_a_subclass_sets_is_none_that_is_written(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Own(GRPOConfig):  # type: ignore[misc]
        beta: float = 0.01
        loss_type: str = "dapo"

    own: Any = Own
    words = ["--output_dir", str(tmp_path), "--report_to", "none", "--algorithm", "grpo"]
    [found] = HfArgumentParser(own).parse_args_into_dataclasses(words)
    same = own(str(tmp_path), report_to="none", algorithm="grpo")
    assert found == same and (found.beta, found.loss_type) == (0.04, "grpo")
    [found] = HfArgumentParser(own).parse_args_into_dataclasses([*words, "--beta", "0.02"])
    assert found.beta == 0.02


def test_another_parser_of_dataclasses_takes_it(tmp_path: Path) -> None:
    words = ["--output-dir", str(tmp_path), "--report-to", "none"]
    found = tyro.cli(GRPOConfig, args=words)
    assert found.use_bias_correction_kl is True
    found = tyro.cli(GRPOConfig, args=[*words, "--no-use-bias-correction-kl"])
    assert found.use_bias_correction_kl is False
