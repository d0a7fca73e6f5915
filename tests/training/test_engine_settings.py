"""What a recipe makes of DeepSpeed's and vLLM's settings, held against those who read them."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rl_reasoner.distributed.strategy import deepspeed_settings
from rl_reasoner.errors import UserError
from rl_reasoner.pipeline import trl_configs
from rl_reasoner.pipeline.inputs import read_inputs
from rl_reasoner.pipeline.placement import Placement, choose_placement
from rl_reasoner.pipeline.trl_configs import check_configs, config, vllm_rollouts_of
from rl_reasoner.recipe.stages import GrpoStage
from support.tiny import grpo, recipe


def grpo_config(folder: Path, monkeypatch: pytest.MonkeyPatch, **vllm: Any) -> Any:
    """trl's config of a stage with vLLM, as if vLLM were installed."""
    spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec(name) or name == "vllm")
    made = recipe(folder, grpo(vllm=vllm))
    return config(made, made.stages[0], folder, choose_placement(made))  # type: ignore[arg-type]


def test_vllm_beside_the_training_is_corrected_for_by_truncation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = grpo_config(tmp_path, monkeypatch, memory=0.4, gpus=2)
    assert found.use_vllm and found.vllm_mode == "colocate" and found.vllm_enable_sleep_mode
    assert found.vllm_gpu_memory_utilization == 0.4 and found.vllm_tensor_parallel_size == 2
    assert found.vllm_importance_sampling_correction
    assert found.vllm_importance_sampling_mode == "token_truncate"
    assert found.vllm_importance_sampling_clip_max == 2.0


def test_vllm_behind_trls_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://node7:8000"
    monkeypatch.setattr(trl_configs, "trl_can_serve", lambda: True)
    found = grpo_config(tmp_path, monkeypatch, mode="server", url=url, correction="off")
    assert found.vllm_mode == "server" and found.vllm_server_base_url == url
    assert not found.vllm_importance_sampling_correction


@pytest.mark.parametrize(("nccl", "folder"), [(False, None), (False, "w"), (True, "w")])
def test_vllm_behind_a_server_that_gets_files(
    nccl: bool, folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where NCCL is not to be had, or a folder is named; trl is told of no vLLM."""
    monkeypatch.setattr(trl_configs, "trl_can_serve", lambda: nccl)
    vllm = {"mode": "server", "url": "http://a:1", "folder": folder, "correction": "token_mask"}
    made = recipe(tmp_path, grpo(vllm={**vllm, "timeout_s": 7}))
    [stage] = made.stages
    assert isinstance(stage, GrpoStage)
    found = config(made, stage, tmp_path, choose_placement(made))
    assert not found.use_vllm and found.vllm_importance_sampling_mode == "token_mask"
    rollouts = vllm_rollouts_of(stage.vllm, tmp_path)
    assert rollouts is not None and rollouts.timeout_s == 7
    assert rollouts.folder == (Path("w") if folder else tmp_path / "vllm_weights")


def test_tools_by_trls_own_server_are_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trl_configs, "trl_can_serve", lambda: True)
    vllm = {"mode": "server", "url": "http://a:1"}
    made = recipe(tmp_path, grpo(vllm=vllm), tools=["calculator"])
    with pytest.raises(UserError, match=r"tools in the middle .* give vllm\.folder"):
        check_configs(made, choose_placement(made))
    made = recipe(tmp_path, grpo(vllm={**vllm, "folder": "w"}), tools=["calculator"])
    check_configs(made, choose_placement(made))


@pytest.mark.parametrize(
    ("vllm", "said"),
    [
        ({"mode": "server"}, "mode server needs url"),
        ({"url": "http://a:1"}, "url belongs to mode server"),
        ({"folder": "/shared"}, "folder belongs to mode server"),
        ({"mode": "server", "url": "a:1"}, "an address such as http://localhost:8000"),
        ({"mode": "server", "url": "http://a:1", "memory": 0.5}, "are settings of the server"),
        ({"memory": 1.0}, "less than 1"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other(
    vllm: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match=said):
        recipe(tmp_path, grpo(vllm=vllm))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_recipe_says_how_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pip install 'trl\[vllm\]'"):
        read_inputs(recipe(tmp_path, grpo(vllm={})))


@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is not None, reason="DeepSpeed is installed"
)
def test_without_deepspeed_the_recipe_says_how_to_install_it(tmp_path: Path) -> None:
    made = recipe(tmp_path, grpo(), run={"parallel": "zero3"})
    with pytest.raises(UserError, match="pip install deepspeed"):
        check_configs(made, Placement("cuda", "bf16", processes=2))


@pytest.mark.parametrize("parallel", ["zero2", "zero3"])
def test_on_a_cpu_deepspeed_is_refused_instead_of_left_out(parallel: str, tmp_path: Path) -> None:
    """By accelerate, which trains as DDP there and says nothing."""
    made = recipe(tmp_path, grpo(), run={"parallel": parallel, "device": "cpu"})
    with pytest.raises(UserError, match=f"{parallel} trains on GPUs only.* Use ddp or fsdp"):
        check_configs(made, Placement("cpu", "fp32", processes=2))


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_reads_its_settings(stage: int) -> None:
    """With the numbers that transformers puts in the place of "auto"."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    from deepspeed.runtime.config import DeepSpeedConfig

    filled = deepspeed_settings(stage)
    filled |= {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2}
    filled |= {"train_batch_size": 8, "gradient_clipping": 1.0, "bf16": {"enabled": True}}
    zero = filled["zero_optimization"]
    zero |= {name: 1000 for name, value in zero.items() if value == "auto"}
    found = DeepSpeedConfig(filled)
    assert int(found.zero_config.stage) == stage and found.bfloat16_config.enabled
    assert found.zero_config.gather_16bit_weights_on_model_save == (stage == 3)


@pytest.mark.parametrize(
    ("stage", "keeps"),
    [
        ({}, False),
        ({"sampling": {"top_p": 0.9}}, False),
        ({"sampling": {"top_k": 5, "keep_mask": True}}, True),
    ],
    ids=str,
)
def test_a_recipe_trains_on_the_tokens_that_a_cut_off_left_where_it_asks_for_it(
    stage: dict[str, Any], keeps: bool, tmp_path: Path
) -> None:
    made = recipe(tmp_path, grpo(**stage))
    found: Any = config(made, made.stages[0], tmp_path, choose_placement(made))  # type: ignore[arg-type]
    assert found.keep_sampling_mask == keeps
