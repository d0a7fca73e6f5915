"""Rewards on a Ray cluster of two nodes on this machine, one of which is killed half-way."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import reward
from rl_reasoner.errors import UserError
from rl_reasoner.pipeline.placement import choose_placement
from rl_reasoner.pipeline.trl_configs import check_configs
from rl_reasoner.scoring import ray_cluster
from rl_reasoner.scoring.batch import score_batch
from rl_reasoner.scoring.limits import Limits
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.types import Fault, Score
from support.tiny import grpo, recipe, reward_file

ON_RAY = Limits(on="ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without processors and two nodes with one each; gives (cluster, nodes)."""
    ray = pytest.importorskip("ray", reason="the extra rl-reasoner[ray] is not installed")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [made.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=made.address, log_to_driver=False)
    yield made, nodes
    ray.shutdown()
    made.shutdown()


def programs(count: int) -> tuple[list[str], dict[str, Any], list[float]]:
    """Completions with a program each, every third of them wrong; their tests; the right values."""
    texts, tests, values = [], [], []
    for i in range(count):
        wrong = i % 3 == 0
        result = f"a * {i} + 1" if wrong else f"a * {i}"
        texts.append(f"```python\ndef f(a):\n    return {result}\n```")
        tests.append([{"call": "f", "args": [2], "expected": 2 * i}])
        values.append(0.0 if wrong else 1.0)
    return texts, {"tests": tests}, values


def answers(count: int) -> tuple[list[str], dict[str, Any], list[float]]:
    """Completions with a boxed answer each, every fourth of them wrong; golds; the right values."""
    texts = [rf"so \boxed{{{2 * i + (i % 4 == 0)}/2}}" for i in range(count)]
    return (
        texts,
        {"answer": [str(i) for i in range(count)]},
        [float(i % 4 != 0) for i in range(count)],
    )


def judged(count: int) -> None:
    """Score `count` programs and as many answers on the cluster."""
    for name, (texts, columns, values) in (
        ("code_tests", programs(count)),
        ("math_answer", answers(count)),
    ):
        found = score_batch(load_reward(name), texts, columns, ON_RAY)
        assert [score.value if isinstance(score, Score) else score for score in found] == values


def test_programs_and_answers_are_judged_on_the_nodes(cluster: Any) -> None:
    judged(24)


def test_a_reward_of_a_file_runs_apart_on_a_node_and_its_faults_are_its_rows(
    cluster: Any, tmp_path: Path
) -> None:
    source = """
import os
from rl_reasoner import reward


@reward
def near(completion: str, answer: str) -> float:
    if completion == "dies":
        os._exit(3)
    return float(answer in completion) + os.getpid() * 1e-9
"""
    near = load_reward(reward_file(tmp_path, source))
    found = score_batch(near, ["a 1", "dies", "b"], {"answer": ["1", "1", "1"]}, ON_RAY)
    assert isinstance(found[0], Score) and round(found[0].value or 0) == 1
    assert isinstance(found[1], Fault) and found[1].kind == "crash"
    assert isinstance(found[2], Score) and round(found[2].value or 0) == 0


def test_a_batch_that_is_not_done_in_time_is_a_fault_of_its_rows(
    cluster: Any, tmp_path: Path
) -> None:
    source = """
import time
from rl_reasoner import reward


@reward
def near(completion: str) -> float:
    time.sleep(600)
    return 1.0
"""
    near = load_reward(reward_file(tmp_path, source))
    limits = replace(ON_RAY, batch_timeout_s=3.0)
    [found] = score_batch(near, ["a"], {}, limits)
    assert isinstance(found, Fault) and found.kind == "timeout"


def test_a_reward_that_holds_state_is_scored_here(cluster: Any) -> None:
    texts: list[str] = []

    @reward
    def counts(completion: str) -> float:
        texts.append(completion)
        return float(len(texts))

    for batch in (["a", "b"], ["c"]):
        found = score_batch(counts, batch, {}, ON_RAY)
    assert [getattr(score, "value", score) for score in found] == [3.0]
    assert texts == ["a", "b", "c"]


@pytest.mark.matrix
def test_a_node_is_killed_half_way_and_every_verdict_is_right(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the first blocks have come back; the node's own go to the other one."""
    made, nodes = cluster
    taken = ray_cluster._of

    def of(*call: Any) -> Any:
        found = taken(*call)
        if len(nodes) == 2:
            made.remove_node(nodes.pop(), allow_graceful=False)
        return found

    monkeypatch.setattr(ray_cluster, "_of", of)
    judged(500)
    assert len(nodes) == 1


def test_without_ray_the_recipe_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'ray\W"):
        ray_cluster.installed()
    made = recipe(tmp_path, grpo(), run={"rewards_on": "ray", "device": "cpu"})
    with pytest.raises(UserError, match=r"pip install 'ray\W"):
        check_configs(made, choose_placement(made))
