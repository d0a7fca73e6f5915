"""YAML in recipes: merge keys (`{<<: *stage, steps: 6}`), and what `true` and `no` are."""

from pathlib import Path

import pytest

from rl_reasoner.errors import UserError
from rl_reasoner.recipe.load import load_recipe, read_recipe

MERGED = """\
policy: scratch:dense-tiny
data: {task: modular, count: 20}
stages:
- &one {kind: sft, steps: 5, batch: 2,
    name: one}
- &two
  <<: *one
  steps: 6
  name: two
- <<: [{save_every: 7}, *two]
  name: three
"""


def written(folder: Path, text: str) -> str:
    (folder / "r.yaml").write_text(text, encoding="utf-8")
    return str(folder / "r.yaml")


def test_what_is_given_beside_a_merge_holds(tmp_path: Path) -> None:
    recipe, locate = read_recipe(written(tmp_path, MERGED))
    fields = [(s.name, s.steps, s.batch, s.save_every) for s in recipe.stages]  # type: ignore[union-attr]
    assert fields == [("one", 5, 2, 100), ("two", 6, 2, 100), ("three", 6, 2, 7)]
    assert locate(("stages", 1, "steps")).endswith(":8")
    assert locate(("stages", 1, "batch")).endswith(":4")
    assert locate(("stages", 2, "steps")).endswith(":8")
    assert locate(("stages", 2, "save_every")).endswith(":10")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("  steps: 6\n", "  steps: 6\n  steps: 7\n", ":9: the field 'steps' is given twice"),
        ("  steps: 6\n", "  <<: *one\n", ":8: the field '<<' is given twice"),
        ("steps: 5,", "steps: 5, steps: 5,", ":4: the field 'steps' is given twice"),
        ("batch: 2", "batch: 0", ":4: stages.0.batch: expected at least 1"),
    ],
)
def test_mistakes_beside_a_merge_have_their_lines(
    old: str, new: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(written(tmp_path, MERGED.replace(old, new)))
    assert says in caught.value.messages[0]


@pytest.mark.parametrize(
    ("at", "number", "truth", "kind"),
    [
        ("steps", "5", "true", "a whole number (given: 'true')"),
        ("batch", "2", "off", "a whole number (given: 'false')"),
        ("count", "20", "yes", "a whole number (given: 'true')"),
        ("lr", "1e-3", "no", "a number (given: 'false')"),
        ("betas", "[0.9, 0.99]", "[no, 0.99]", "a number (given: 'false')"),
    ],
)
def test_a_truth_value_is_no_number(
    at: str, number: str, truth: str, kind: str, tmp_path: Path
) -> None:
    text = MERGED.replace("batch: 2", "batch: 2, optim: {lr: 1e-3, betas: [0.9, 0.99]}")
    assert f"{at}: {number}" in text and load_recipe(written(tmp_path, text), []).stages
    file = written(tmp_path, text.replace(f"{at}: {number}", f"{at}: {truth}"))
    with pytest.raises(UserError) as error:
        load_recipe(file, [])
    assert f"{at}" in str(error.value) and f"expected {kind}" in str(error.value)
