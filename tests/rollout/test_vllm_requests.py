"""Rows as requests to vLLM, replies as completions, and policies as the files that it loads."""

import copy
import fcntl
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GenerationConfig

from rl_reasoner import open_policy
from rl_reasoner.errors import UserError
from rl_reasoner.policy.lora import add_lora
from rl_reasoner.recipe.adapter import Lora
from rl_reasoner.rollout.completions import SampledCompletion
from rl_reasoner.rollout.sampling_params import SamplingParams
from rl_reasoner.rollout.vllm_server.completion_requests import (
    Dialogues,
    NoCompletion,
    completion_of,
    request_of,
    seed_of,
    unsent,
)
from rl_reasoner.rollout.vllm_server.folder import own_folder
from rl_reasoner.rollout.vllm_server.weights import write_weights
from support.scripted_turns import Script, Threads

KEY = (7, 1, 3, 0, 5, 2)


def test_a_row_as_a_request() -> None:
    settings = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.9, top_k=0, stop_strings="###"
    )
    sampling = SamplingParams(64, (1, 9), config=settings)
    body = request_of([4, 5], KEY, sampling, 20)
    assert body["prompt"] == [4, 5] and body["max_tokens"] == 20
    assert (body["temperature"], body["top_p"], body["top_k"]) == (0.7, 0.9, 0)
    assert body["stop"] == ["###"] and body["stop_token_ids"] == [1, 9] and body["ignore_eos"]
    assert request_of([4], KEY, sampling, None)["max_tokens"] == 64
    greedy = request_of([4], KEY, SamplingParams(8, (1,), temperature=0.0, top_k=5), None)
    assert (greedy["temperature"], greedy["top_k"], greedy["top_p"]) == (0.0, 0, 1.0)


def test_a_rows_seed_follows_from_its_key_alone() -> None:
    seeds = {seed_of((*KEY[:-1], place)) for place in range(64)}
    assert len(seeds) == 64 and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(KEY) == seed_of(list(KEY))


def test_stop_strings_end_rows_with_turns_as_in_the_engine() -> None:
    """With the last token that there is room for, and where calls may end with them, too."""
    settings = GenerationConfig(stop_strings="###")
    sampling = SamplingParams(4, (1,), config=settings)
    turns = Threads(Script(stops=()))
    rows = Dialogues([[5]] * 3, [KEY] * 3, sampling, [4, None, 3], turns, ("###", "</x>"))
    assert rows.body(0)["stop"] == ["###", "</x>"]
    choice = {
        "token_ids": [7, 8, 9], "logprobs": {"token_logprobs": [-1.0] * 3}, "finish_reason": "stop"
    }  # fmt: skip
    for row, why in enumerate(("</x>", "###", "###")):
        rows.learn(row, completion_of({"choices": [{**choice, "stop_reason": why}]}, rows.marks))
    assert rows.open == {0}
    rows.learn(0, SampledCompletion([7], [-1.0], ended="length"))
    assert [done.ended for done in rows.all()] == ["length", "end", "end"]


def test_settings_that_vllm_is_not_told_of_are_named() -> None:
    assert unsent(GenerationConfig(do_sample=True, temperature=0.5, top_k=3, min_p=0.1)) is None
    assert unsent(GenerationConfig(no_repeat_ngram_size=2)) == "no_repeat_ngram_size"
    assert unsent(GenerationConfig(typical_p=0.9)) == "typical_p"
    for name in ("no_repeat_ngram_size", "min_new_tokens", "min_length", "forced_eos_token_id"):
        assert unsent(GenerationConfig(**{name: 1})) == name
    assert unsent(GenerationConfig(forced_bos_token_id=0)) == "forced_bos_token_id"
    assert unsent(GenerationConfig(renormalize_logits=True, typical_p=1.0)) is None


def reply(**changes: Any) -> dict[str, Any]:
    """A reply of two tokens."""
    choice = {"token_ids": [5, 1], "finish_reason": "stop"}
    return {"choices": [{**choice, "logprobs": {"token_logprobs": [-0.5, None]}, **changes}]}


def test_a_reply_as_a_completion() -> None:
    done = completion_of(reply())
    assert done.ids == [5, 1] and done.ended == "end"
    assert done.logps[0] == -0.5 and math.isnan(done.logps[1])
    assert completion_of(reply(finish_reason="length")).ended == "length"


@pytest.mark.parametrize(
    "broken",
    [
        "a page",
        {"choices": []},
        reply(token_ids=None),
        reply(token_ids=[5]),
        reply(logprobs=None),
        reply(finish_reason="abort"),
    ],
    ids=str,
)
def test_what_is_no_completion_is_told(broken: Any) -> None:
    with pytest.raises(NoCompletion):
        completion_of(broken)


def test_an_adapter_is_merged_in_a_copy_and_the_name_follows_from_the_weights(
    tmp_path: Path,
) -> None:
    policy = open_policy("scratch:dense-tiny", device="cpu")
    plain = write_weights(policy.model, tmp_path)
    assert write_weights(policy.model, tmp_path) == plain
    add_lora(policy, Lora(rank=2, alpha=4), 0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    before = copy.deepcopy(policy.model.state_dict())
    name = write_weights(policy.model, tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == [name] and name != plain
    after = policy.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    merged = policy.model.merge_and_unload().state_dict()
    written = load_file(tmp_path / name / "model.safetensors")
    assert written and all(torch.equal(merged[key], value) for key, value in written.items())


def test_what_else_is_in_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "policy-final").mkdir()
    with own_folder(tmp_path):
        name = write_weights(open_policy("scratch:dense-tiny", device="cpu").model, tmp_path)
        assert {path.name for path in tmp_path.glob("[!.]*")} == {name, "policy-final"}
    assert [path.name for path in tmp_path.iterdir()] == ["policy-final"]


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with own_folder(tmp_path / "weights") as folder:
        (folder / "policy-0123456789abcdef").mkdir()
        with pytest.raises(UserError, match="another run's weights"), own_folder(folder):
            raise AssertionError("inside")
        assert (folder / "policy-0123456789abcdef").is_dir()
    assert not folder.exists()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match=r"cannot write vllm\.folder"), own_folder(file):
        raise AssertionError("inside")
    with pytest.raises(KeyboardInterrupt), own_folder(tmp_path / "gone") as folder:
        folder.joinpath(".lock").write_text("a user's own")
        shutil.rmtree(folder)
        raise KeyboardInterrupt


def test_a_folder_whose_last_run_ends_meanwhile_is_locked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run before removes the lock between this one's opening of it and its taking it."""
    plain, before = fcntl.flock, own_folder(tmp_path / "weights")
    before.__enter__()

    def late(file: Any, how: int) -> None:
        monkeypatch.undo()
        before.__exit__(None, None, None)
        plain(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    again = own_folder(tmp_path / "weights")
    with again as folder, pytest.raises(UserError, match="another run"), own_folder(folder):
        raise AssertionError("inside")
