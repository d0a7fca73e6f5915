"""Completions are drawn once: kept over a kill, added to, and missed when anything changes."""

import errno
import json
import random
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from rl_reasoner import Policy, open_policy
from rl_reasoner.errors import UserError
from rl_reasoner.rollout.cache import SampleCache
from rl_reasoner.rollout.sampler import sample, weights_hash
from rl_reasoner.types import Rollout
from support.ready import Ready

PROMPTS = ["1+1=", "2+3=", "10="]
# An evaluation with few rows at once, which writes down what it has drawn before it is kept.
EVALUATION = """
import json, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from rl_reasoner import evaluate
from rl_reasoner.rollout import admission, sampler
cache, log, out = map(Path, sys.argv[1:4])
admission.LIVE_ROWS, sampler._KEEP_S = 10, 0.02
drawn = sampler._Drawer._rollout
def written(self, job, ids):
    with log.open("a") as file:
        file.write(json.dumps([job, ids]) + "\\n")
    time.sleep(0.002)
    while log.stem == "killed" and len(log.read_text().splitlines()) == 180:
        time.sleep(1)  # the last row is not kept: it is killed before
    return drawn(self, job, ids)
sampler._Drawer._rollout = written
result = evaluate("scratch:dense-tiny", ["modular_test"], 3, max_tokens=12, limit=60, cache=cache)
result.save(out)
"""


@pytest.fixture(scope="module")
def policy() -> Policy:
    return open_policy("scratch:moe-tiny", seed=3, device="cpu")


def started(folder: Path, cache: Path, name: str) -> Ready:
    arguments = [str(cache), str(folder / f"{name}.log"), str(folder / f"{name}.json")]
    return Ready(folder, EVALUATION, *arguments)


def count_in(cache: Path) -> int:
    files = [*cache.glob("*.sqlite")] if cache.is_dir() else []
    if not files:
        return 0
    store = SampleCache.__new__(SampleCache)
    store.file = files[0]
    try:
        return len(store)
    except Exception:  # it is just being made
        return 0


def test_killed_at_any_moment_it_goes_on_and_draws_nothing_twice(tmp_path: Path) -> None:
    whole = started(tmp_path, tmp_path / "other", "whole")
    assert whole.wait().returncode == 0
    cache = tmp_path / "cache"
    wanted = random.randint(1, 150)
    killed = started(tmp_path, cache, "killed")
    while killed.poll() is None and count_in(cache) < wanted:
        time.sleep(0.002)
    killed.kill()
    assert not (tmp_path / "killed.json").exists()
    kept = count_in(cache)
    assert wanted <= kept < 180, "killed in the middle"
    assert started(tmp_path, cache, "resumed").wait().returncode == 0
    for end in ("json", "rows.jsonl"):
        same = [(tmp_path / f"{name}.{end}").read_bytes() for name in ("whole", "resumed")]
        assert same[0] == same[1], end
    drawn = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.log").read_text().splitlines()]
        for name in ("whole", "killed", "resumed")
    }
    assert len(drawn["whole"]) == 180 and len(drawn["resumed"]) == 180 - kept
    every = [json.dumps(job) for job in drawn["killed"][:kept] + drawn["resumed"]]
    assert sorted(every) == sorted(json.dumps(job) for job in drawn["whole"])
    assert started(tmp_path, cache, "again").wait().returncode == 0
    assert not (tmp_path / "again.log").exists(), "all of it was kept"


def test_more_samples_only_add(policy: Policy, tmp_path: Path) -> None:
    cache = SampleCache(tmp_path, weights_hash(policy))
    settings: dict[str, Any] = {"temperature": 1.0, "max_tokens": 6, "cache": cache}
    few = sample(policy, PROMPTS, samples=2, **settings)
    done: list[int] = []
    many = sample(policy, PROMPTS, samples=5, progress=done.append, **settings)
    assert [group[:2] for group in many] == few
    assert done[0] == 6 and sum(done) == 15 and len(cache) == 15
    assert many == sample(policy, PROMPTS, samples=5, temperature=1.0, max_tokens=6)
    greedy = sample(policy, PROMPTS, samples=3, max_tokens=6, cache=cache, seed=9)
    assert all(group == [group[0]] * 3 for group in greedy) and len(cache) == 18
    sample(policy, PROMPTS, max_tokens=6, cache=cache, seed=10)
    assert len(cache) == 18, "greedy completions have no seed"


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.9},
        {"max_tokens": 7},
        {"seed": 1},
        {"force": "direct"},
        {"prompts": ["1+1= ", *PROMPTS[1:]]},
    ],
)
def test_any_change_misses(policy: Policy, tmp_path: Path, change: dict[str, Any]) -> None:
    cache = SampleCache(tmp_path, weights_hash(policy))
    settings: dict[str, Any] = {"prompts": PROMPTS, "temperature": 1.0, "max_tokens": 6}
    sample(policy, **settings, cache=cache)
    sample(policy, **{**settings, **change}, cache=cache)
    assert len(cache) == (4 if "prompts" in change else 6)


def test_one_weight_is_another_policy(policy: Policy, tmp_path: Path) -> None:
    before = weights_hash(policy)
    assert weights_hash(policy) == before
    weight = next(policy.model.parameters())
    with torch.no_grad():
        kept = weight[3, 5].clone()
        weight[3, 5] += 1e-3
        try:
            changed = weights_hash(policy)
        finally:
            weight[3, 5] = kept
    assert changed != before == weights_hash(policy)
    assert SampleCache(tmp_path, changed).file != SampleCache(tmp_path, before).file
    ends = policy.model.generation_config.eos_token_id
    cache = SampleCache(tmp_path, before)
    sample(policy, PROMPTS, max_tokens=4, cache=cache)
    policy.model.generation_config.eos_token_id = [ends, 7]
    try:
        sample(policy, PROMPTS, max_tokens=4, cache=cache)
    finally:
        policy.model.generation_config.eos_token_id = ends
    assert len(cache) == 6


def test_any_text_is_kept_and_the_first_one_holds(tmp_path: Path) -> None:
    cache = SampleCache(tmp_path / "a" / "b", "somebody")
    odd = Rollout("a\u2028b\x00\ud800\r\n'\"", 3, True)
    cache.keep([("k", odd), ("k", Rollout("other", 1, False))])
    cache.keep([("k", Rollout("later", 1, False))])
    assert cache.kept(["k", "none"]) == {"k": odd} and len(cache) == 1
    assert cache.kept([]) == {}
    many = [(str(n), Rollout(str(n), n, False)) for n in range(1700)]
    cache.keep(many)
    assert cache.kept([key for key, _ in many]) == dict(many)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cache of samples .*file"):
        SampleCache(tmp_path / "file" / "cache", "somebody")


def test_a_full_disk_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was kept before stays."""
    cache, opened = SampleCache(tmp_path, "somebody"), sqlite3.connect
    cache.keep([("k", Rollout("first", 1, False))])

    def full(*args: Any, **options: Any) -> sqlite3.Connection:
        store = opened(*args, **options)
        store.execute("PRAGMA max_page_count = 1")  # no page more than there are
        return store

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", full)
        with pytest.raises(OSError) as told:
            cache.keep([("l", Rollout("long " * 9_999, 1, False))])
    assert told.value.errno == errno.ENOSPC and told.value.filename == str(cache.file)
    assert cache.kept(["k", "l"]) == {"k": Rollout("first", 1, False)}


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    """Its first page is whole, as after a disk's fault in the middle of the file."""
    cache = SampleCache(tmp_path, "somebody")
    many = [(f"{n:040d}", Rollout("text " * 50, n, False)) for n in range(500)]
    cache.keep(many)
    whole = cache.file.read_bytes()
    cache.file.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))
    told = r"cache of samples .*sqlite cannot be used.*move it away"
    with pytest.raises(UserError, match=told):
        cache.kept([key for key, _ in many])
    with pytest.raises(UserError, match=told):
        cache.keep([("new", Rollout("text", 1, False))])
    with pytest.raises(UserError, match=told):
        cache.usage()


def test_what_was_reserved_by_who_is_gone_is_free_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that begins anew has the number of its process before; another host is silent."""
    cache = SampleCache(tmp_path, "m")

    def under_way() -> int:
        seen: list[int] = []
        with cache.reserved(["a"], lambda usage, others: seen.append(others) or 1):
            return seen[0]

    with cache.reserved(["b", "c"], lambda usage, others: 2):
        assert under_way() == 2
        monkeypatch.setattr("rl_reasoner.rollout.cache._OWN", set())
        assert under_way() == 0, "of a process of this number that is gone"
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    with cache.reserved(["d"], lambda usage, others: 1):
        monkeypatch.setattr("platform.node", lambda: "here")
        assert under_way() == 1
        monkeypatch.setattr("rl_reasoner.rollout.cache._STALE_S", -1.0)
        assert under_way() == 0
