"""Instructions in many scripts: where sentences end, what is a highlight."""

from typing import Any

import pytest

from rl_reasoner.hacking.texts import without_repeats
from rl_reasoner.scoring.registry import load_reward


def follows(response: str, name: str, **limits: Any) -> bool:
    judge = load_reward("instructions")
    return bool(judge(response, instructions=[{"name": name, **limits}]).value == 1.0)


@pytest.mark.parametrize(
    ("response", "count"),
    [
        ("यह पहला है। यह दूसरा है।यह तीसरा है।", 3),
        ("धर्मक्षेत्रे कुरुक्षेत्रे समवेता ॥१॥ मामकाः पाण्डवाश्चैव ॥२॥", 2),
        ("كيف حالك؟ أنا بخير.", 2),
        ("یہ پہلا ہے۔ یہ دوسرا ہے۔", 2),
        ("اس نے ایم۔اے کیا ہے۔", 1),
        ("Τι κάνεις; Είμαι καλά.", 2),
        ("Let α; then β; stop.", 1),
        ("It is late; go home.", 1),
    ],
)
def test_sentences_end_with_the_marks_of_their_script(response: str, count: int) -> None:
    assert follows(response, "sentences", exactly=count)


@pytest.mark.parametrize(
    ("response", "count"),
    [
        ("这是*重点*内容", 1),
        ("これは*大事*です", 1),
        ("이것은 *중요*합니다", 1),
        ("นี่คือ*สำคัญ*มาก", 1),
        ("2*3*4 and a*b*c and α*β*γ", 0),
    ],
)
def test_a_highlight_may_stand_close_to_what_needs_no_blanks(response: str, count: int) -> None:
    assert follows(response, "highlights", exactly=count)


@pytest.mark.parametrize("response", ["（1）甲\n（2）乙", "(1) a\n(2) b", "1）甲\n2）乙"])
def test_numbers_in_brackets_of_either_width(response: str) -> None:
    assert follows(response, "numbered", exactly=2)


def test_sentences_that_are_said_again_are_found_in_hindi_and_urdu() -> None:
    assert without_repeats("यह पहला है। यह पहला है। ") == "यह पहला है। "
    assert without_repeats("یہ پہلا ہے۔ یہ پہلا ہے۔ ") == "یہ پہلا ہے۔ "
