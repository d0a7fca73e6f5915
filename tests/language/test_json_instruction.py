"""The instruction `json`: valid JSON is followed, as it is written."""

import pytest

from rl_reasoner.scoring.registry import load_reward


def is_json(response: str, loose: bool = False) -> bool:
    judge = load_reward("instructions", {"loose": loose})
    return bool(judge(response, instructions=[{"name": "json"}]).value == 1.0)


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ('{"a": "他说＂你好＂"}', True),
        ('{"a": "one\u2028two"}', True),
        ('{"a": "a\u200bb\u3000c"}', True),
        ("｛＂a＂： 1｝", False),
        ('｛"a"\u3000: 1｝', False),
        ('{"a"\u3000: 1}', False),
        ('\u3000{"a": 1}\r\n', True),
        ('~~~json\n{"a": 1}\n~~~', True),
        ('\ufeff{"a": 1}\u200b\n', True),
        ('~~~~\r\n{"a": "```"}\r\n~~~~', True),
        ('```JSON\n{"a": 1}```', True),
        ('```python\n{"a": 1}\n```', False),
        ('```json\n{"a": 1}\n```\n~~~json\n{"a": 1}\n~~~', False),
        ('```json\n{"a": 1}\n```\nDone.', False),
        ('```json\n{"a": 1}', False),
    ],
)
def test_json_is_read_as_it_is_written(response: str, right: bool) -> None:
    assert is_json(response) is right


def test_json_is_read_loosely_as_it_is_written() -> None:
    assert is_json('Sure:\r\n{"a": "他说＂你好＂"}', loose=True)
    assert not is_json("Sure:\n｛＂a＂: 1｝", loose=True)
