"""Policies that others wrote: opening their folders runs nothing that lies in them."""

import ast
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from datasets import Dataset
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex
from transformers import PreTrainedModel

from rl_reasoner import GRPOConfig, GRPOTrainer, open_policy
from rl_reasoner.distributed.shards import MODEL_SHARDS
from rl_reasoner.errors import UserError
from rl_reasoner.paths import room
from rl_reasoner.policy.lora import add_lora
from rl_reasoner.recipe.adapter import Lora
from rl_reasoner.training.checkpointing.whole_checkpoints import load_whole
from support.commands import Cli


class Opens:
    """Unpickled, it makes a folder: what a hostile file would do."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    open_policy("scratch:dense-tiny", device="cpu").save(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.fixture
def sharded(saved: Path) -> Path:
    """A policy whose weights are in shards, as a checkpoint of many processes has them."""
    policy = open_policy(str(saved), device="cpu")
    (saved / "model.safetensors").unlink()
    state = {"model": policy.model.state_dict()}
    dcp.save(state, storage_writer=FileSystemWriter(saved / MODEL_SHARDS), no_dist=True)
    return saved


def index_of(folder: Path) -> Any:
    return pickle.loads((folder / MODEL_SHARDS / ".metadata").read_bytes())  # noqa: S301 (ours)


def put(folder: Path, index: Any) -> None:
    (folder / MODEL_SHARDS / ".metadata").write_bytes(pickle.dumps(index))


def with_value(folder: Path, value: bytes) -> None:
    """Add a value that is no tensor to the shards, as an optimizer's settings lie in them."""
    index = index_of(folder)
    stored = next(iter(index.storage_data.values()))
    file = folder / MODEL_SHARDS / stored.relative_path
    at = file.stat().st_size
    file.write_bytes(file.read_bytes() + value)
    place = type(stored)(stored.relative_path, at, len(value))
    index.state_dict_metadata["model.note"] = BytesStorageMetadata()
    index.planner_data["model.note"] = ("model", "note")
    index.storage_data[MetadataIndex("model.note")] = place
    put(folder, index)


def torch_saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def in_the_index(folder: Path, canary: Path) -> None:
    put(folder, Opens(canary))


def within_the_index(folder: Path, canary: Path) -> None:
    index = index_of(folder)
    index.storage_meta = Opens(canary)
    put(folder, index)


def in_a_value(folder: Path, canary: Path) -> None:
    with_value(folder, torch_saved(Opens(canary)))


def in_a_value_without_torchs_frame(folder: Path, canary: Path) -> None:
    with_value(folder, pickle.dumps(Opens(canary), protocol=2))


def past_the_memory(folder: Path, canary: Path) -> None:
    index = index_of(folder)
    next(iter(index.state_dict_metadata.values())).size = torch.Size([1 << 45])
    put(folder, index)


def past_the_memory_by_a_list(folder: Path, canary: Path) -> None:
    index = index_of(folder)
    index.planner_data[next(iter(index.planner_data))] = ("model", 1 << 40)
    put(folder, index)


def out_of_the_folder(folder: Path, canary: Path) -> None:
    index = index_of(folder)
    next(iter(index.storage_data.values())).relative_path = "../../other"
    put(folder, index)


def in_the_index_of_one_process(folder: Path, canary: Path) -> None:
    """torch reads it where reading the other fails."""
    index = index_of(folder)
    index.storage_meta = 1
    put(folder, index)
    (folder / MODEL_SHARDS / "__0.metadata").write_bytes(pickle.dumps(Opens(canary)))


def compressed(folder: Path, canary: Path) -> None:
    with_value(folder, torch_saved(1))
    index = index_of(folder)
    index.storage_data[MetadataIndex("model.note")].transform_descriptors = ["stream.zstd/1"]
    put(folder, index)


class Named:
    """Pickled, it is a class of torch's index, which the state given to it changes."""

    def __init__(self, name: str, changes: dict[str, Any], made: bool) -> None:
        self.name, self.changes, self.made = name, changes, made


class Writer(pickle._Pickler):  # type: ignore[misc]
    """Writes what `Named` stands for, with opcodes that no honest pickle has."""

    def save(self, value: Any, *rest: Any, **named: Any) -> None:
        if not isinstance(value, Named):
            super().save(value, *rest, **named)
            return
        self.write(f"ctorch.distributed.checkpoint.metadata\n{value.name}\n".encode())
        if value.made:
            self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
        if value.changes:
            super().save(value.changes if value.made else (None, value.changes))
            self.write(pickle.BUILD)


def with_methods_of_its_own(folder: Path, canary: Path) -> None:
    """Index and values seem empty to who checks them: torch finds its value by other methods."""
    value = torch_saved(Opens(canary))
    (folder / MODEL_SHARDS / "value").write_bytes(value)
    place = {"relative_path": "value", "offset": 0, "length": len(value)}
    index = Named("Metadata", place | {"transform_descriptors": None}, made=False)
    read = Named("StorageMeta", {"__getitem__": Named("Metadata", {}, made=False)}, made=False)
    empty = {"items": torch.Size, "values": torch.Size, "first": index, "second": read}
    state = {
        "state_dict_metadata": {"model.note": BytesStorageMetadata()},
        "planner_data": {"model.note": ("model", "note")},
        "storage_data": Named("StorageMeta", empty, made=True),
        "storage_meta": None,
    }
    with (folder / MODEL_SHARDS / ".metadata").open("wb") as file:
        Writer(file, protocol=2).dump(Named("Metadata", state, made=True))


def no_index(folder: Path, canary: Path) -> None:
    put(folder, {"state_dict_metadata": {}})


def torn(folder: Path, canary: Path) -> None:
    file = folder / MODEL_SHARDS / ".metadata"
    file.write_bytes(file.read_bytes()[:-40])


def test_shards_with_tensors_and_plain_values_open(sharded: Path) -> None:
    expected = open_policy("scratch:dense-tiny", device="cpu").model.state_dict()
    model = open_policy(str(sharded), device="cpu").model
    found = model.state_dict()
    assert not model.training
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "spoil",
    [
        in_the_index,
        within_the_index,
        in_a_value,
        in_a_value_without_torchs_frame,
        past_the_memory,
        past_the_memory_by_a_list,
        out_of_the_folder,
        compressed,
        in_the_index_of_one_process,
        with_methods_of_its_own,
        no_index,
        torn,
    ],
)
def test_shards_that_hold_more_than_tensors_are_not_read(
    spoil: Callable[[Path, Path], None], sharded: Path, canary: Path
) -> None:
    spoil(sharded, canary)
    with pytest.raises(UserError, match=MODEL_SHARDS) as caught:
        open_policy(str(sharded), device="cpu")
    assert len(caught.value.messages) == 1 and "\n" not in caught.value.messages[0]
    assert " is not loaded: " in caught.value.messages[0]  # by us, before torch
    assert not canary.exists()


CODE = """
import os
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
os.mkdir({canary!r})
class Own(LlamaConfig): model_type = "own"
class OwnModel(LlamaForCausalLM): config_class = Own
class OwnTokenizer(PreTrainedTokenizerFast): pass
"""


def with_code(folder: Path, canary: Path, name: str, **changes: Any) -> None:
    (folder / "own.py").write_text(CODE.format(canary=str(canary)))
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


MODEL_CODE = {
    "model_type": "own",
    "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"},
}
TOKENIZER_CODE = {
    "tokenizer_class": "OwnTokenizer",
    "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]},
}


PLAN = """
policy: policy
data: {task: modular}
rewards: {math_answer: 1}
stages: [{kind: grpo}]
"""


@pytest.mark.parametrize("verb", [("chat", "policy"), ("env", "--plan", "plan.yaml")], ids=str)
def test_no_answer_on_standard_input_lets_a_policy_run_its_code(
    verb: tuple[str, ...], saved: Path, canary: Path, cli: Cli
) -> None:
    """`1` is a problem for `chat`, and a yes for transformers where nobody has said no."""
    (saved.parent / "plan.yaml").write_text(PLAN)
    with_code(saved, canary, "tokenizer_config.json", **TOKENIZER_CODE)
    assert cli(*verb, stdin="1\n1\nyes\n").code == 0, "the tokenizer is one that needs no code"
    with_code(saved, canary, "config.json", **MODEL_CODE)
    done = cli(*verb, stdin="1\n1\nyes\n")
    assert done.code == 2 and "comes with its own code, which is never run" in done.err
    assert not canary.exists()


def test_the_base_of_an_adapter_runs_no_code_either(saved: Path, tmp_path: Path) -> None:
    policy = open_policy(str(saved), device="cpu")
    add_lora(policy, Lora(rank=2), seed=0)
    policy.save(tmp_path / "adapter")
    with_code(saved, tmp_path / "canary", "config.json", **MODEL_CODE)
    with pytest.raises(UserError, match="comes with its own code"):
        open_policy(str(tmp_path / "adapter"), device="cpu")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("part", ["config.json", "adapter"])
def test_a_config_cannot_ask_for_a_kernel_from_elsewhere(part: str, saved: Path) -> None:
    file, asked = saved / "config.json", saved
    if part == "adapter":
        policy = open_policy(str(saved), device="cpu")
        add_lora(policy, Lora(rank=2), seed=0)
        policy.save(asked := saved.parent / "adapter")
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "attn_implementation": "someone/attention"}))
    with pytest.raises(UserError, match="'someone/attention', an attention kernel that is code"):
        open_policy(str(asked), device="cpu")


@pytest.fixture
def kernelized(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Models that kernels are fetched for, which transformers does unasked from 5.25 on."""
    asked: list[Any] = []

    def set_use_kernels(model: Any, use_kernels: Any, *given: Any, **named: Any) -> None:
        if use_kernels:
            asked.append(model)

    monkeypatch.setattr(PreTrainedModel, "set_use_kernels", set_use_kernels)
    return asked


def test_no_kernels_are_fetched_for_a_policy(
    kernelized: list[Any], saved: Path, tmp_path: Path
) -> None:
    policy = open_policy(str(saved), device="cpu")
    load_whole(saved, policy.model)
    add_lora(policy, Lora(rank=2), seed=0)
    policy.save(tmp_path / "adapter")
    open_policy(str(tmp_path / "adapter"), device="cpu")
    assert not kernelized


@pytest.mark.parametrize("own", [{}, {"use_kernels": True}], ids=["by itself", "asked for"])
def test_no_kernels_are_fetched_for_a_model_by_name_unless_asked_for(
    own: dict[str, Any], kernelized: list[Any], saved: Path, tmp_path: Path
) -> None:
    config = GRPOConfig(str(tmp_path / "out"), model_init_kwargs=own, beta=0.1, use_cpu=True)
    rows = Dataset.from_dict({"prompt": ["1+1="]})
    GRPOTrainer(str(saved), lambda **columns: [0.0], args=config, train_dataset=rows)
    assert bool(kernelized) == bool(own)


def test_brackets_without_end_are_one_message(saved: Path, cli: Cli) -> None:
    (saved / "config.json").write_text("[" * 200_000)
    done = cli("chat", saved)
    assert done.code == 2 and done.err.startswith("error: policy") and not done.out


def test_every_door_says_that_no_code_is_trusted() -> None:
    """Each call that opens what may bring code, in each module: none leaves the answer open."""
    doors, package = [], room("data").parent / "rl_reasoner"
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            on = ast.unparse(node.func.value).rpartition(".")[2]
            if node.func.attr in ("from_pretrained", "from_config") and on.startswith("Auto"):
                said = {word.arg: ast.unparse(word.value) for word in node.keywords}
                doors.append(said.get("trust_remote_code"))
    assert len(doors) >= 10
    assert {*doors} == {"False"}


def test_a_link_to_shards_elsewhere_is_read_like_any_other(sharded: Path, tmp_path: Path) -> None:
    """The hub's cache is made of links: reading through them is how policies are opened."""
    shutil.move(sharded / MODEL_SHARDS, tmp_path / "elsewhere")
    (sharded / MODEL_SHARDS).symlink_to(tmp_path / "elsewhere")
    assert open_policy(str(sharded), device="cpu").parameter_counts[0] > 0
