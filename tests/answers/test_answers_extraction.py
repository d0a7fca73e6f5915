"""Which text of a completion is the answer: every rule of the policy, true and false rows."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from rl_reasoner.answers import verify, verify_many
from rl_reasoner.rewards.math_answer import math_answer

RIGHT = [
    # reasoning and chat markers
    (r"<think>maybe \boxed{5}</think>It is \boxed{7}.", "7"),
    (r"maybe 5</think>The answer is 7", "7"),
    (r"<think>a</think><think>b</think>\boxed{7}", "7"),
    (r"<thinking>\boxed{5}</thinking>\boxed{7}", "7"),
    ("The answer is 7.<|im_end|>\n<|im_start|>user\nThe answer is 9.", "7"),
    (r"<|im_start|>assistant" + "\n" + r"\boxed{7}<|im_end|>", "7"),
    ("\\boxed{7}</s>\\boxed{8}", "7"),
    ("\\boxed{7}<|endoftext|>The answer is 8", "7"),
    # boxes
    (r"\boxed{5}, no: \boxed{7}.", "7"),
    (r"First \boxed{3}. Then \boxed{4}. So we get \boxed{7}", "7"),
    (r"\fbox{7}", "7"),
    (r"\boxed{\frac{1}{2}}", "0.5"),
    (r"\boxed{\boxed{7}}", "7"),
    (r"\boxed {7}", "7"),
    (r"\boxed{x = 7}", "7"),
    (r"$$\boxed{7}$$ I hope this helps with question 12.", "7"),
    (r"\boxed{n = 3 \cdot 5 = 15}", "15"),
    (r"\boxed{7}. Note that 9 is wrong.", "7"),
    (r"the answer is 5, \boxed{7}", "7"),
    (r"\boxed{ 7 }", "7"),
    (r"$\boxed{28}$ percent", r"28\%"),
    (r"\boxed{\text{Friday}}", "Friday"),
    # several boxes
    (r"$\boxed{-2}$ and $\boxed{1}$", "1, -2"),
    (r"$\boxed{-2} \quad \text{and} \quad \boxed{1}$", "1,-2"),
    (r"$\boxed{1}$, $\boxed{2}$, $\boxed{3}$", r"\{1,2,3\}"),
    (r"\boxed{x=1} or \boxed{x=2}", "x=1, x=2"),
    (r"$\boxed{1} \quad \boxed{2}$", "1, 2"),
    (r"$x = \boxed{1}$ and $y = \boxed{2}$", "1, 2"),
    (r"$\boxed{1}$ 和 $\boxed{2}$", "1, 2"),
    (r"\boxed{10} and then \boxed{42}", "42"),
    # tags and marks
    ("<answer>7</answer>", "7"),
    ("<answer>5</answer> no <answer>7</answer>", "7"),
    ("<answer>\n7\n</answer>", "7"),
    ("<answer> $7$ </answer>", "7"),
    ("<answer>We get $17$ in all</answer>", "17"),
    ("<answer>The answer is 17.</answer>", "17"),
    ("<answer>17 apples</answer>", "17"),
    (r"<answer>\boxed{7}</answer>", "7"),
    ("<answer>x = 7</answer>", "7"),
    ("<answer>(B) 35</answer>", "B"),
    ("<think>hm</think>\n<answer>7</answer>", "7"),
    ("3 + 4 = 7\n#### 7", "7"),
    ("#### 1,234", "1234"),
    ("Sum.\n#### $18", "18"),
    ("#### 5\nwait\n#### 7", "7"),
    # cues
    ("The answer is 7", "7"),
    ("The answer is 7.", "7"),
    ("The answer is $7$.", "7"),
    ("the final answer is: $7$", "7"),
    ("Final answer: 7", "7"),
    ("Final Answer: 7\n", "7"),
    ("**Final Answer:** 7", "7"),
    ("**Answer:** $7$", "7"),
    ("**Answer**: 7", "7"),
    ("**Final Answer**\n\n7", "7"),
    ("### Final Answer\n\n$7$", "7"),
    ("## Answer\n7", "7"),
    ("# Answer: 7", "7"),
    ("Answer: **7**", "7"),
    ("So the answer is **7**.", "7"),
    ("Therefore, the answer is 7 because 3 + 4 = 7.", "7"),
    ("The answer is 7, which is prime.", "7"),
    ("The answer is 7 (since 3 + 4 = 7).", "7"),
    ("The answer is 7 apples.", "7"),
    ("The answer is $1,000.", "1000"),
    ("The answer is 5. Wait, no. The answer is 7.", "7"),
    ("The correct answer is 7.", "7"),
    ("The answer to the question is 7.", "7"),
    ("The answer is x = 7.", "7"),
    ("The answer is \\(7\\).", "7"),
    ("The answer is\n\\[ 7 \\]", "7"),
    ("The answer is:\n\n$$7$$", "7"),
    ("Answer: 7\n\nExplanation: 3 + 4 = 7 and 2 * 5 = 10.", "7"),
    ("The answer is (B).", "B"),
    ("The answer is B", "B"),
    ("The correct answer is B. Paris", "B"),
    ("The correct option is B.", "B"),
    ("Option B is correct.", "B"),
    ("Answer: B) 12", "B"),
    ("The answer is Friday.", "Friday"),
    ("The answer is **Friday**, because Monday is past.", "Friday"),
    ("The answer is yes.", "yes"),
    ("The answer is 3/4.", "0.75"),
    ("The answer is $\\frac{3}{4}$ of the pizza.", "3/4"),
    ("The answer is (1, 2).", "(1,2)"),
    ("The answer is 40%.", "40%"),
    ("The answer is 4:45 PM.", "4:45 p.m."),
    ("The answer is 1, 2, and 3.", "1,2,3"),
    ("The answer is 6 or 7.", "6, 7"),
    ("答案是7", "7"),
    ("答案是 7。", "7"),
    ("答案：7", "7"),
    ("答案:7", "7"),
    ("**答案：** 7", "7"),
    ("所以答案是$7$。", "7"),
    ("最终答案：7个", "7"),
    ("答案为７。", "7"),
    ("因此，答案是B。", "B"),
    ("故选B。", "B"),
    ("Final Answer: The final answer is $7$. I hope it is correct.", "7"),
    ("Final Answer: The largest $n$ is 34.", "34"),
    # last line
    ("First compute 3+4.\n7", "7"),
    ("So\n$7$", "7"),
    ("So\n$x = 7$", "7"),
    ("So\n\\[ x = 7 \\]", "7"),
    ("7", "7"),
    ("**7**", "7"),
    ("$\\frac{1}{2}$", "0.5"),
    ("Adding up:\n**7**", "7"),
    ("Adding up:\n7.", "7"),
    ("B", "B"),
    ("Friday", "Friday"),
    ("(1, 2)", "(1,2)"),
]

WRONG = [
    # nothing to find
    ("", "7"),
    ("   ", "7"),
    ("I am not sure.", "7"),
    ("I'm not sure, it could be 7 or 8.", "7"),
    ("I cannot solve this.", "7"),
    ("There are 7 days in a week and so on.", "7"),
    ("We add 3 and 4 and get 7, then we go on to", "7"),
    ("The question asks: what is 3 + 4 = 7?", "7"),
    ('You wrote: "the answer is 7". I do not agree.', "7"),
    ("I do not know whether the answer is 7", "7"),
    ("If the answer is 7 then something is wrong.", "7"),
    ("The answer is not 7.", "7"),
    ("The answer is unknown.", "7"),
    ("The answer is", "7"),
    ("The answer is $", "7"),
    ("So the final answer is:", "7"),
    ("Let x = 7. Then we", "7"),
    # unfinished reasoning
    (r"<think>The answer is \boxed{7}", "7"),
    ("<think>The answer is 7", "7"),
    (r"<think>\boxed{7}</think>", "7"),
    (r"<think>\boxed{7}</think> Some other text.", "7"),
    (r"\boxed{5}</think>", "5"),
    # boxes
    (r"\boxed{7} then \boxed{}", "7"),
    (r"\boxed{7} then \boxed{ }", "7"),
    (r"\boxed{7} then \boxed{\text{}}", "7"),
    (r"\boxed{7} then \boxed{8", "7"),
    (r"\boxed{7} then \boxed{\frac{1}{2", "7"),
    (r"\boxed{7", "7"),
    (r"\boxed{", "7"),
    (r"\boxed{7}. No: \boxed{8}", "7"),
    (r"\boxed{6} or \boxed{7}", "7"),
    (r"\boxed{7} or \boxed{6}", "7"),
    (r"\boxed{6} or maybe \boxed{7}", "7"),
    (r"$\boxed{6}$, $\boxed{7}$", "7"),
    (r"\boxed{6 \text{ or } 7}", "7"),
    (r"\boxed{6 or 7}", "7"),
    (r"\boxed{11, 12, 13}", "12"),
    (r"\boxed{6, 7}", "7"),
    (r"\boxed{7 \text{ (perhaps 9)}}", "7"),
    (r"\boxed{1}, \boxed{2}", "1, 2, 3"),
    (r"\boxed{n = 3 \cdot 5 = 16}", "16"),
    (r"\boxed{\text{the answer is not } 7}", "7"),
    # tags, marks and cues
    ("<answer></answer>", "7"),
    ("<answer>7</answer><answer>8</answer>", "7"),
    ("<answer>6 or 7</answer>", "7"),
    ("<answer>7", "7"),
    ("#### 7\n#### 8", "7"),
    ("The answer is 6 or 7.", "7"),
    ("The answer is 7. No, the answer is 8.", "7"),
    ("答案是7或8", "7"),
    ("The answer is A or B.", "B"),
    ("Answer: 6, 7", "7"),
    ("The answer is 8.<|im_end|>The answer is 7.", "7"),
]

GOLDS = [
    ("$7$", "7"),
    (r"\boxed{7}", "7"),
    (r"We add: $3+4=\boxed{7}$.", "7"),
    ("3 + 4 = 7\n#### 7", "7"),
    ("It costs <<3*4=12>>12 dollars.\n#### 1,234", "1234"),
    (r"\boxed{1} and \boxed{2}", "1, 2"),
    (r"$\frac{1}{2}$", "0.5"),
    (r"\(7\)", "7"),
    (r"\[7\]", "7"),
    ("7.", "7"),
    (r"$125$ miles", "125"),
]


MORE_RIGHT = [
    ("The answer is 5 if x is even.", "5"), ("The answer is 5 if x is even and 5 if odd.", "5"),
    ("The answer is 12 if you count 4 bags and 3 boxes.", "12"),
    (r"\boxed{5 million}", "5000000"), (r"\boxed{3万}", "30000"),
    (r"\boxed{2x=6 \Rightarrow x=3}", "3"), (r"\boxed{2x = 6 \implies x = 3}", "3"),
    (r"\boxed{C_{10}^{3}}", "120"), (r"\boxed{\mathrm{C}_{10}^{3}}", "120"),
    (r"\boxed{\log 100}", "2"), (r"\boxed{\log 5}", r"\log_{10} 5"),
    (r"\boxed{\log 5}", r"\ln 5"), ("Therefore, $x = 7$.", "7"),
    ("So the final answer should be 7.", "7"), ("Our answer is 7.", "7"),
    ("My final answer: 7", "7"), ("Answer: The total is 7.", "7"),
    ("Answer: The total cost is $7.", "7"), ("The answer is thus 7.", "7"),
    ("Hence the required answer is $7$.", "7"), ("**Final answer: 7**", "7"),
    ("__Answer:__ 7", "7"), ("Answer - 7", "7"), ("ANSWER: 7", "7"), ("Final Answer = 7", "7"),
    (r"\textbf{Answer:} $7$", "7"), (r"$$\text{Answer} = 7$$", "7"), ("> **Answer:** 7", "7"),
    ("- **Answer:** 7", "7"), ("1. **Answer:** 7", "7"), ("The answer is option B.", "B"),
    ("The answer is (B) because it fits.", "B"), ("**B**", "B"), ("Answer: **B. Paris**", "B"),
    ("The correct choice is (B).", "B"), ("So the answer is **(B)**.", "B"),
    ("正确答案是（B）。", "B"),
    ("因此选B。", "B"), ("答案选B", "B"), ("故答案为：B.", "B"), ("答案是 B。因为", "B"),
    ("答：一共有7个。", "7"),
    ("答：7个", "7"), (r"所以，最终答案是 \(7\)。", "7"), ("答案是：**7**", "7"),
    ("最终答案：\n\n7", "7"),
    ("### 答案\n7", "7"), ("**最终答案**\n\n$7$", "7"), ("答案应为7。", "7"), ("答案等于7", "7"),
    (r"The answer is $\frac{1}{2}$, or 0.5.", "1/2"), ("The answer is 0.5 (or 1/2).", "1/2"),
    ("The answer is 6. Or 7?", "6"), ("The answer is: Yes, it is.", "yes"),
    ("Answer: No.", "no"), ("Yes.", "yes"), ("The answer is x = 2 or x = 3.", "x=2 or x=3"),
    (r"The solutions are $\boxed{2}$ and $\boxed{3}$.", "2, 3"),
    ("The answer is $(2, 3)$.", "(2,3)"), ("<answer>The result is 12</answer>", "12"),
    (r"<answer>\(12\)</answer>", "12"), ("<answer>\n**12**\n</answer>", "12"),
    ("<ANSWER>12</ANSWER>", "12"), ("<answer> x = 12 </answer> done.", "12"), ("#### 12.", "12"),
    ("####12", "12"), ("#### 12\n\nThe end.", "12"), ("#### Step 1\nThe answer is 12", "12"),
    ("#### Final Answer\n12", "12"), ("#### Answer: 12", "12"), ("### 12", "12"),
    ("#### 12 apples", "12"), ("#### $12$", "12"), ("#### **12**", "12"), ("```\n7\n```", "7"),
    ("text\n\n---\n7\n---", "7"), ("So:\n\\[\n7\n\\]", "7"), ("So:\n$$7$$", "7"),
    ("So\n$$\n\\begin{aligned} x &= 3+4 \\\\ &= 7 \\end{aligned}\n$$", "7"),
    ("<think>x</think>\n\n7", "7"), (r"<think>a <think> b </think> \boxed{7}", "7"),
    (r"<think></think>\boxed{7}", "7"), (r"<reasoning>\boxed{5}</reasoning>\boxed{7}", "7"),
    (r"The final answer is $\boxed{7}$. I hope it is correct.", "7"), (r"\(\boxed{7}\)", "7"),
    (r"**\boxed{7}**", "7"), (r"\boxed{\mathbf{7}}", "7"), (r"\boxed{7.}", "7"),
    (r"\boxed{7,}", "7"), (r"\boxed{{7}}", "7"), (r"\boxed{\$7}", "7"), (r"\boxed 7", "7"),
    (r"$\boxed7$", "7"), (r"\boxed{\displaystyle 7}", "7"), (r"\boxed{\text{seven}}", "7"),
    (r"\\boxed{7}", "7"), (r"\boxed{7}}", "7"), ("\\boxed{\n7\n}", "7"),
    (r"\boxed{\dfrac{14}{2}}", "7"), (r"\boxed{x=7\text{ or }x=7}", "7"),
    (r"\boxed{7},\boxed{7}", "7"), (r"\boxed{7/1}", "7"),
    (r"\boxed{\frac{1}{2}}}", r"\frac{1}{2}"), ("5", "5"), (r"\boxed{x²}", "x^2"),
    (r"\boxed{10²}", "100"), (r"\boxed{H_2O}", "H_2O"),
    ("The capital is Paris.\n\nAnswer: Paris", "Paris"),
    (r"\boxed{\text{New York}}", "New York"), (r"\boxed{New\ York}", "New York"),
    (r"\boxed{blue}", "blue"), (r"\boxed{\text{Total}: 72}", "72"),
    (r"\boxed{\text{Final Answer: 72}}", "72"), (r"\boxed{\text{The answer is 72}}", "72"),
    ("The answer is Mr. Watson.", "Mr. Watson"), ("Answer: Mrs. Hilt. She has 3.", "Mrs. Hilt"),
    ("The answer is 5. Mr. Watson agrees.", "5"),
    ("答案：\n\n> $5$", "5"), ("The answer is\n> > 5", "5"), ("The answer => 5", "5"),
    ("The answer is 0.5. Or 50%.", "0.5"), ("The answer is 12.\nNo 13", "12"),
    ("Answer:\n> 5", "5"), ("The answer is:\n\n> **5**", "5"), ("The answer is 5. Or 5.", "5"),
    ("The answer is 5. No other value works.", "5"), ("The answer is 5, no doubt.", "5"),
    ("The answer is 5. Wait, let me check: 2+3=5.", "5"),
    (r"The answer is $\boxed{3}$ or the answer is $\boxed{4}$.", "3, 4"),
]  # fmt: skip

MORE_WRONG = [
    (r"\boxed{5 million}", "5"), (r"\boxed{5 squared}", "5"),
    (r"\boxed{5 \text{ less than } x}", "5"), (r"\boxed{\log 5}", r"\log_2 5"),
    ("The problem says the side is $7$.", "7"),
    ("We compute. The problem says that the side is $7$.", "7"), ("Let $x = 7$.", "7"),
    ("First we add. We have $3+4=7$. Then", "7"), ("I think the answer might be 7.", "7"),
    ("It could be that the answer is 7 or 8.", "7"), ("We get 7 in total.", "7"),
    ("7 because 3+4=7", "7"), ("一共有7个。", "7"), ("我不确定，可能是7。", "7"),
    ("题目问：3+4=7对吗？", "7"),
    ("The answer is 6 (perhaps 9).", "6"), ("The answer is 6, or maybe 7.", "6"),
    ("The answer is 6 but it could be 7.", "6"), ("The answer is either 6 or 7.", "6"),
    ("The answer is 6/7.", "6"), ("The answer is no.", "yes"),
    ("<answer>12 or 13</answer>", "12"), ("<answer>I don't know</answer>", "12"),
    ("<answer>11</answer> The answer is 12.", "12"), (r"\boxed{7} <think>", "7"),
    (r"\boxed{7}\n\nWait, actually \boxed{8}", "7"), (r"\boxed{?}", "7"), (r"\boxed{...}", "7"),
    (r"\boxed{\_\_}", "7"), (r"\boxed{\text{7 or 8}}", "7"),
    (r"\boxed{7}\text{ or }\boxed{8}", "7"), (r"\boxed{answer}", "7"),
    (r"\boxed{\text{Answer}}", "7"), (r"\boxed{your answer}", "7"),
    (r"\boxed{\frac{1}{2}", r"\frac{1}{2}"), ("Answer: London", "Paris"), (r"\boxed{on}", "no"),
    (r"\boxed{\text{not: 72}}", "72"), (r"\boxed{\text{Answer: 72 or 73}}", "72"),
    ("The answer is 1. Wait, 2.", "1,2"), ("The answer is 1, I mean 2.", "1,2"),
    ("The answer is 5, I mean 6.", "5"), ("The answer is 5... wait, 6.", "5"),
    ("The answer is 5; no, 6.", "5"), ("The answer is 5. Or maybe 6.", "5"),
    ("#### 5, wait 6", "5"), ("Answer: A. Wait, B.", "A"), ("The answer is > 5.", "5"),
    ("Answer: >= 5", "5"), ("Answer: <= 5", "5"), ("**Answer:** > 5 hours", "5"),
    (r"$\boxed{3}$, or perhaps it is $\boxed{4}$", "4"),
    (r"The answer is $\boxed{3}$ or the answer is $\boxed{4}$.", "4"),
    ("The answer is Mr. Smith.", "Mr. Watson"),
    ("The answer is 5 if x is even and 6 if x is odd.", "5"),
    ("The answer is 5 if x is even and 6 if x is odd.", "6"),
    ("<answer>5 when x is even, and $6$ otherwise</answer>", "5"),
]  # fmt: skip


@pytest.mark.parametrize(("completion", "gold"), RIGHT + MORE_RIGHT)
def test_found(completion: str, gold: str) -> None:
    score = verify(completion, gold)
    assert score.value == 1.0, score.reason


@pytest.mark.parametrize(("completion", "gold"), WRONG + MORE_WRONG)
def test_not_an_answer(completion: str, gold: str) -> None:
    score = verify(completion, gold)
    assert score.value == 0.0, score.reason
    assert score.reason


@pytest.mark.parametrize(("gold", "answer"), GOLDS)
def test_final_part_of_the_gold(gold: str, answer: str) -> None:
    assert verify(rf"\boxed{{{answer}}}", gold).value == 1.0
    assert verify(rf"\boxed{{{answer}9}}", gold).value == 0.0


def test_the_reason_names_the_place_and_both_texts() -> None:
    reason = verify(r"So \boxed{\frac12}.", "0.5").reason
    assert "last box" in reason
    assert r"'\\frac12'" in reason
    assert "'0.5'" in reason
    assert "exact value" in reason


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (4, "4"),
        (0.5, r"\frac{1}{2}"),
        (np.int64(7), "7"),
        (Fraction(1, 3), "1/3"),
        (1e3, "1000"),
    ],
)
def test_a_gold_that_is_a_number_counts_as_its_text(answer: Any, said: str) -> None:
    """As a column of numbers has it, under any trainer."""
    right, wrong = rf"\boxed{{{said}}}", r"\boxed{12345}"
    assert verify(right, answer).value == math_answer(right, answer, value_only=True).value == 1.0
    assert [score.value for score in verify_many([right, wrong], [answer] * 2)] == [1.0, 0.0]


@pytest.mark.parametrize("answer", [None, ["4"], {"a": 4}])
def test_a_gold_that_is_no_text_cannot_be_judged(answer: Any) -> None:
    assert verify(r"\boxed{4}", answer).value is None


ANALYSIS = r"<|channel|>analysis<|message|>so \boxed{3}"


@pytest.mark.parametrize(
    ("completion", "said"),
    [
        (
            ANALYSIS + r"<|end|><|start|>assistant<|channel|>final<|message|>\boxed{4}<|return|>",
            "4",
        ),
        (r"<|channel|>final<|message|>\boxed{4}", "4"),
        (r"<seed:think>\boxed{3}</seed:think>The answer is 4.", "4"),
        (ANALYSIS, None),
        (ANALYSIS + "<|end|>", None),
        (r"<seed:think>\boxed{3}", None),
    ],
)
def test_other_families_chains_are_no_answers(completion: str, said: str | None) -> None:
    """The channels of gpt-oss, and Seed-OSS's tag."""
    assert verify(completion, "3").value == 0.0
    assert verify(completion, "4").value == float(said == "4")
