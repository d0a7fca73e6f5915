"""Words that deny, bound or change a value make no equal of it, in each language with a cue."""

import pytest

from rl_reasoner.answers import verify

CUES = {
    "en": ("The answer is {}.", "<answer>{}</answer>", "#### {}", r"\boxed{{\text{{{}}}}}"),
    "de": ("Die Antwort ist {}.", "Antwort: {}", r"\boxed{{\text{{{}}}}}"),
    "fr": ("La réponse est {}.", "Réponse : {}", r"\boxed{{\text{{{}}}}}"),
    "es": ("La respuesta es {}.", "Respuesta: {}", r"\boxed{{\text{{{}}}}}"),
    "it": ("La risposta è {}.",),
    "pt": ("A resposta é {}.",),
    "ru": ("Ответ: {}.",),
    "zh": (
        "答案是{}。",
        "答案：{}",
        "最终答案：{}",
        r"\boxed{{\text{{{}}}}}",
        "<answer>{}</answer>",
    ),
    "ja": ("答えは{}。",),
    "ko": ("정답은 {}.",),
}
CHANGED = {
    "en": (
        *("over 12", "under 12", "above 12", "below 12", "exceeding 12", "at least 12 red apples"),
        *(
            "anything but 12",
            "everything except 12",
            "any number but 12",
            "other than 12",
            "half 12",
        ),
        *(
            "not 12",
            "twice as many as 12",
            "wrong: 12",
            "12 is wrong",
            "12, at least",
            "12 plus one",
        ),
        *("12 doubled", "12 apples doubled", "12 halved", "12 times two", "12 increased by 3"),
        *("4 more than the first number", "12 less than x", "12 reduced by one", "12 (wrong)"),
        *("12 is not the answer", "12 incorrect", "12 at most", "12 too many", "over $12$"),
    ),
    "de": (
        *("nicht 12", "keine 12", "mindestens 12", "höchstens 12 Äpfel", "mehr als 12", "über 12"),
        *("die Hälfte von 12", "das Doppelte von 12", "ungleich 12", "alles außer 12", "minus 12"),
        *("12 plus eins", "12 verdoppelt", "12 ist falsch", "12 oder mehr", "12 mal zwei"),
    ),
    "fr": (
        *(
            "au moins 12",
            "au plus 12",
            "plus de 12",
            "moins de 12 pommes",
            "pas 12",
            "tout sauf 12",
        ),
        *(
            "tout sauf 12",
            "la moitié de 12",
            "le double de 12",
            "deux fois 12",
            "autre que 12",
            "moins 12",
        ),
        *("12 plus un", "12 doublé", "12 est faux", "12 de plus que x", "12 ou plus"),
    ),
    "es": (
        *("al menos 12", "más de 12", "menos de 12", "no 12", "todo menos 12", "como mínimo 12"),
        *("la mitad de 12", "el doble de 12", "distinto de 12", "hasta 12"),
        *("12 más uno", "12 es incorrecto", "12 o más", "12 menos que x"),
    ),
    "it": ("almeno 12", "non 12", "la metà di 12", "più di 12", "12 è sbagliato"),
    "pt": ("pelo menos 12", "não 12", "a metade de 12", "mais de 12", "12 está errado"),
    "ru": ("не 12", "не менее 12", "больше 12", "половина от 12", "12 неверно"),
    "zh": (
        *(
            "至少 12",
            "至少12个",
            "大于 12",
            "超过12",
            "不到12",
            "小于12",
            "最多12",
            "不是12",
            "并非12",
        ),
        *(
            "12 的一半",
            "12的两倍",
            "12的平方",
            "12的三分之一",
            "12以上",
            "12个以上",
            "12多",
            "12减去一",
        ),
        *("不到12", "最多12", "12 是错的", "12 不对", "12个以上", "12多", "负12", "不等于12"),
    ),
    "ja": ("少なくとも12", "12以上", "12の半分", "12ではない"),
    "ko": ("최소 12", "12 이상", "12의 절반"),
}
KEPT = {
    "en": (
        *(
            "12, not 13",
            "exactly 12",
            "about 12",
            "12 more apples",
            "12 (as required)",
            "12 in total",
        ),
        *(
            "about 12",
            "12, at least for positive x",
            "12 meters above the ground",
            "12 over the whole year",
        ),
        *("12 times a week", "12 plus tax", "12 apples more than Bob has", "12, which is over 10"),
        *("12 inches cubed", "the next number is $12$ more than x", "12 (not counting the driver)"),
    ),
    "de": ("12, nicht 13", "12 Äpfel", "12 Meter mehr", "etwa 12"),
    "fr": ("donc 12", "12 mètres", "12 pommes", "12 fois"),
    "es": ("12 manzanas", "12 metros más alto", "12 veces"),
    "zh": ("12个", "12 倍", "12，大于 10", "12，而不是 13", "共有12人", "增加12元", "12边形"),
    "ru": ("12 метров",),
}


def placed(table: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """Every phrase in every place of its language."""
    return [(cue, said) for language, all_said in table.items() for said in all_said
            for cue in CUES[language]]  # fmt: skip


@pytest.mark.parametrize(("cue", "said"), placed(CHANGED))
def test_a_word_that_changes_a_value_makes_no_equal_of_it(cue: str, said: str) -> None:
    score = verify(cue.format(said), "4" if said.startswith("4 ") else "12")
    assert score.value == 0.0, score.reason


@pytest.mark.parametrize(("cue", "said"), placed(KEPT))
def test_a_word_that_changes_nothing_keeps_it(cue: str, said: str) -> None:
    if "boxed" in cue and not said[:2].isdigit():
        pytest.skip("words before the value of a box")
    if "boxed" in cue and any(mark in said for mark in (",", "，", "(not")):
        pytest.skip("a sentence in a box")
    score = verify(cue.format(said), "12")
    assert score.value == 1.0, score.reason


@pytest.mark.parametrize("said", ["is wrong", "plus one", "doubled", "的一半", "est faux", "no"])
@pytest.mark.parametrize("box", [r"\boxed{{5 \text{{ {} }}}}", r"\boxed{{5\text{{{}}}}}"])
def test_words_behind_the_value_of_a_box(box: str, said: str) -> None:
    score = verify(box.format(said), "5")
    assert score.value == 0.0, score.reason


@pytest.mark.parametrize(
    "sentence",
    [
        *("Hence it is not $12$.", "So, over $12$.", "Therefore, at least $12$ apples."),
        *("Thus the answer is under $12$.", "So 4 more than $12$.", r"\boxed{\text{Wrong: }12}"),
        *("Donc au moins $12$.", "因此大于 $12$。", "At least $12$ is the answer."),
    ],
)
def test_a_last_sentence_too(sentence: str) -> None:
    score = verify(sentence, "12")
    assert score.value == 0.0, score.reason


@pytest.mark.parametrize(
    ("sentence", "gold"),
    [
        ("Thus the next multiple of 3 is $3-1=2$ more than 412.", "2"),
        ("Therefore it leaves a remainder of $3$ when divided by 6.", "3"),
        ("So $75\\%$ is not filler.", "75\\%"),
        ("Thus, at most $3$ colors may be used.", "3"),
        ("The answer is Not a function.", "Not a function"),
        ("The answer is not a function.", "not a function"),
        ("The answer is neither.", "neither"),
        ("The answer is no.", "no"),
        ("答案：不是", "不是"),
        ("The answer is at least 12.", "at least 12"),
    ],
)
def test_what_only_looks_like_a_change(sentence: str, gold: str) -> None:
    score = verify(sentence, gold)
    assert score.value == 1.0, score.reason
