"""Format reward: is the completion one `<think>` part and then one `<answer>` part, and no more?

The format reward of DeepSeek-R1-Zero (arXiv 2501.12948, section 2.2.2), and by the option `form`
the forms of other models. With the templates that open the think tag in the prompt, set `opened`
so that the completion may begin inside it.
"""

from rl_reasoner import Score, reward
from rl_reasoner.errors import check_one_of
from rl_reasoner.language.thinking import OPEN_THINK, TAGS

# The tags that stand once each, in order, and what is between them: "" is blank.
_FORMS = {
    "r1": (TAGS, ("", "chain", "", "answer", "")),
    "think": (TAGS[:2], ("", "chain", "answer")),
    "answer": (TAGS[2:], ("chain", "answer", "")),
}


@reward(policy_text=True)
def format_tags(
    completion: str, opened: bool = False, form: str = "r1", filled: bool = False
) -> Score:
    """1.0 for the form with each of its tags once and in order, else 0.0.

    `form` is "r1" (`<think>…</think><answer>…</answer>`), "think" (`<think>…</think>` and an answer
    without tags) or "answer" (a free chain, then `<answer>…</answer>`). With `filled`, chain and
    answer must not be blank.
    """
    _check_options(form)
    tags, names = _FORMS[form]
    text = OPEN_THINK + completion if opened else completion
    wrong = [tag for tag in tags if text.count(tag) != 1]
    if wrong:
        return Score(0.0, f"{wrong[0]} occurs {text.count(wrong[0])} times, expected once")
    parts, rest = [], text
    for tag in tags:
        part, there, rest = rest.partition(tag)
        parts.append(part)
    blank = [name for name, part in zip(names, [*parts, rest], strict=True) if not part.strip()]
    if not there or blank.count("") != names.count(""):
        return Score(0.0, "tags out of order, or text outside of them")
    blank = [name for name in blank if name]
    if filled and blank:
        return Score(0.0, f"the {blank[0]} is blank")
    return Score(1.0, "think and answer parts in order")


@format_tags.checks
def _check_options(form: str, **others: object) -> None:
    check_one_of("form of format_tags", form, _FORMS)
