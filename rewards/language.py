"""Language reward: how much of the chain of thought is in the requested language?

The language-consistency reward of DeepSeek-R1 (arXiv 2501.12948, section 2.3.2): the share of
target-language words in the chain. What counts as a word, and of which language, is described in
docs/rewards-language.md.
"""

from collections.abc import Callable

from rl_reasoner import Column, Score, reward
from rl_reasoner.errors import check_one_of
from rl_reasoner.language.identification import LANGUAGES, language_of, language_share
from rl_reasoner.language.thinking import OPEN_THINK, answer_part, chain_of

_PARTS: dict[str, Callable[[str], str]] = {"chain": chain_of, "answer": answer_part, "all": str}


@reward(on_abstain="ignore", policy_text=True)
def language(
    completion: str,
    prompt: str,
    language: str | None = Column(),  # type: ignore[assignment]
    target: str | None = "",
    part: str = "chain",
    opened: bool = False,
) -> Score:
    """The share, from 0.0 to 1.0, of the words of a part that are in the target language.

    The target is the row's `language` where there is one, else the option `target` (a code such as
    "en" or "zh"), else the language of the prompt. `part` is "chain", "answer" or "all"; with
    `opened`, the chain was begun by the prompt. Abstains where there are no words, or no target
    can be determined.
    """
    _check_options(part, target)
    wanted = language or target or language_of(prompt)
    if not wanted:
        return Score(None, "no target language: none given, and the prompt has no words")
    text = OPEN_THINK + completion if opened else completion
    share = language_share(_PARTS[part](text), wanted)
    if share.value is None:
        return Score(None, f"no words in the {part}")
    counts = ", ".join(f"{count} {code}" for code, count in sorted(share.words.items()))
    return Score(share.value, f"words: {counts}; expected: {wanted}", share.words)


@language.checks
def _check_options(part: str, target: str | None, **others: object) -> None:
    check_one_of("part of reward language", part, _PARTS)
    if target not in ("", None):
        check_one_of("target of reward language", target, LANGUAGES)
