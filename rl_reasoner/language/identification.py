"""Which languages a text is written in, word by word: the share of a target language.

Scripts decide where they can: Han is Chinese unless kana stand in the sentence, and so on. Between
languages of one script the commonest words of each decide, sentence by sentence; a sentence
without any counts for the target. What is of no language is left out: formulas, code, numbers,
variables, abbreviations, names, quotations, addresses. Linear in the text, never raises on it.
Knows nothing of rewards.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from rl_reasoner.errors import unknown
from rl_reasoner.language.units import IDEOGRAPHS, normalised

# The commonest words of languages that share a script.
_COMMON = {
    "en": "the of and to in is that it for was on are as with be this have from or by not but we "
    "so what all were when there can an which their if has more will about how then them these "
    "let first next now thus hence therefore because since however wait maybe should need check "
    "answer find get gives gets our you your i a he she they his her its at into than also just "
    "step final number does do did been would could means equals total each times plus minus",
    "de": "der die das und ist nicht von mit den dem des ein eine einen einem einer im auf für "
    "sich wir also dass als auch es an werden aus bei nach wird sind oder wenn dann nur noch wie "
    "über so zum zur haben hat ich sie er man zuerst jetzt daher antwort ergibt mal zahl müssen",
    "fr": "le la les de des et est un une du en que qui dans pour pas sur au aux par plus nous on "
    "il elle ce cette avec se ne donc sont ou si mais alors comme fait être avons d'abord ensuite "
    "réponse calculons nombre c'est l'on je vous ils leur fois deux puis obtient",
    "es": "el la los las de y es un una del en que por para con no se lo al como más su entonces "
    "primero luego pero si son o cuando donde tenemos hay está esto nosotros respuesta número "
    "porque ahora también muy sus este esta sumamos obtenemos veces",
    "it": "il lo la gli le di e è un una del della in che per con non si al come più su quindi "
    "prima poi ma se sono o quando dove abbiamo questo questa numero risposta perché ora anche "
    "dei delle nel nella volte ottiene dobbiamo",
    "pt": "o a os as de e é um uma do da em que por para com não se ao como mais seu então "
    "primeiro depois mas são ou quando onde temos este esta número resposta porque agora também "
    "dos das no na nos vezes obtemos",
    "nl": "de het een en is van in dat op te voor met niet zijn we wij aan er om dus eerst dan "
    "maar als of wanneer waar hebben deze dit getal antwoord omdat nu ook uit wordt naar keer "
    "krijgen moeten",
    "ru": "и в не на что с по это как мы а то но к из у за от же так для есть тогда если ответ "
    "число получаем сначала потом теперь нужно раз или значит его она они он равно",
    "uk": "і в не на що з по це як ми а то але до із у за від ж так для є тоді якщо відповідь "
    "число отримуємо спочатку потім тепер треба або його вона вони він та також дорівнює",
}
_SCRIPTS = {  # script -> its characters, and the languages that are written with it
    "han": (IDEOGRAPHS, ("zh", "ja")),
    "hangul": ("\u1100-\u11ff\u3130-\u318f\uac00-\ud7af", ("ko",)),
    "latin": ("A-Za-zÀ-ÖØ-öø-ɏḀ-ỿ\u0300-\u036f", ("en", "de", "fr", "es", "it", "pt", "nl")),
    "cyrillic": ("\u0400-\u052f", ("ru", "uk")),
    "arabic": ("\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefe", ("ar",)),
    "hebrew": ("\u0590-\u05ff", ("he",)),
    "greek": ("\u0370-\u03ff\u1f00-\u1fff", ("el",)),
    "devanagari": ("\u0900-\u097f", ("hi",)),
    "thai": ("\u0e00-\u0e7f", ("th",)),
}
LANGUAGES = {language: script for script, (_, own) in _SCRIPTS.items() for language in own}
"""Code of each known language -> its script."""
_TITLES = """
Chinese Japanese Korean English German French Spanish Italian Portuguese Dutch Russian Ukrainian
Arabic Hebrew Greek Hindi Thai
"""
NAMES = dict(zip(LANGUAGES, _TITLES.split(), strict=True))
"""Code of each known language -> its name in English."""
_OF_WORD = {language: frozenset(text.split()) for language, text in _COMMON.items()}
_WORD = re.compile(
    "|".join(
        rf"(?P<{script}>[{own}]+)" if script != "latin" else
        rf"(?P<latin>[{own}][{own}0-9_]*(?:['’.-][{own}][{own}0-9_]*)*)"
        for script, (own, _) in _SCRIPTS.items()
    )
)  # fmt: skip
_KANA = re.compile("[\u3040-\u30fa\u30fc-\u30ff]")
_SENTENCE = re.compile(r"[^.!?。！？…\n]*[.!?。！？…\n]*")
# What is of no language: between which marks it stands, at how many characters at most, whether
# over several lines.
_MARKED = {
    "```": ("```", 20_000, True),
    "~~~": ("~~~", 20_000, True),  # where it begins a line: in Chinese, ~~~ is a tone
    "`": ("`", 400, False),
    "$$": ("$$", 4000, True),
    "$": ("$", 1000, False),
    "\\[": ("\\]", 4000, True),
    "\\(": ("\\)", 1000, False),
    '"': ('"', 300, False),
    "“": ("”", 300, False),
    "「": ("」", 300, False),
    "『": ("』", 300, False),
    "《": ("》", 100, False),
    "«": ("»", 300, False),
}
_OPENS = re.compile(
    "|".join(rf"^[ \t]{{0,12}}{mark}" if mark == "~~~" else re.escape(mark) for mark in _MARKED),
    re.MULTILINE,
)
_NO_LANGUAGE = re.compile(  # LaTeX commands, tags, addresses
    r"\\[A-Za-z]+|</?[A-Za-z][\w-]{0,30}>|https?://[^\s\u3000-\u9fff]{1,2000}"
    r"|(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,64}\.[\w.]{1,64}"
)
_NO_WORDS = """
sin cos tan cot sec csc log ln exp lim max min mod gcd lcm sqrt det dim ker arg inf sup frac
abs floor ceil sinh cosh tanh arcsin arccos arctan
mm cm dm km mg kg ml kwh kw hz khz mhz ghz kb mb gb tb ms px pm am
"""
_FUNCTIONS = frozenset(_NO_WORDS.split())
_LONGEST_RUN_OF_NAMES = 4
_MOST = 200_000  # characters of a text that are read


@dataclass(frozen=True)
class LanguageShare:
    """How much of a text is in the target language: `value` (None: it has no words), and counts."""

    value: float | None
    words: dict[str, int]


def check_language(language: str) -> str:
    """`language`; raises `UserError` where its code is not known."""
    if language not in LANGUAGES:
        raise unknown("language", language, LANGUAGES)
    return language


def language_share(text: str, target: str) -> LanguageShare:
    """The share of the words of `text` that are in the language `target`.

    R1's measure of language consistency (arXiv 2501.12948, section 2.3.2). Two Chinese characters
    or kana in a row count as one word, as most Chinese words have two. Raises `UserError` for an
    unknown language.
    """
    check_language(target)
    counts: Counter[str] = Counter()
    for script, runs, sentence in _runs(
        _NO_LANGUAGE.sub("\x00", _unmarked(normalised(text[:_MOST])))
    ):
        kana = script == "han" and bool(_KANA.search(sentence))
        words = list(_counted(script, runs, target))
        if words:
            counts[_language(script, words, kana, target)] += len(words)
    total = counts.total()
    return LanguageShare(counts[target] / total if total else None, dict(counts))


def language_of(text: str) -> str | None:
    """The language that most words of `text` are in; None where it has none."""
    counts: Counter[str] = Counter()
    for language in dict.fromkeys(own[0] for _, own in _SCRIPTS.values()):
        counts |= Counter(language_share(text, language).words)
    return max(counts, key=lambda language: counts[language]) if counts else None


def _unmarked(text: str) -> str:
    """`text` without what is enclosed by the marks of formulas, code and quotations."""
    kept, at = [], 0
    while opened := _OPENS.search(text, at):
        close, most, lines = _MARKED[opened[0].lstrip(" \t")]
        start = opened.end()
        end = text.find(close, start, start + most)
        whole = end >= 0 and (lines or text.find("\n", start, end) < 0)
        kept.append(text[at : opened.start()])
        at = end + len(close) if whole else start
        if whole:
            kept.append("\x00")
    return "".join([*kept, text[at:]])


def _runs(text: str) -> Iterator[tuple[str, list[tuple[str, bool]], str]]:
    """By sentence and script: its words in order, each with whether the word before it is adjacent.

    Words of another script, formulas and the like lie between words that are not adjacent.
    """
    for match in _SENTENCE.finditer(text):
        sentence = match[0]
        by_script: dict[str, list[tuple[str, bool]]] = {}
        last, end = "", 0
        for word in _WORD.finditer(sentence):
            script = str(word.lastgroup)
            beside = script == last and not sentence[end : word.start()].strip(" ,'’-")
            by_script.setdefault(script, []).append((word[0], beside))
            last, end = script, word.end()
        for script, words in by_script.items():
            yield script, words, sentence


def _counted(script: str, words: list[tuple[str, bool]], target: str) -> Iterator[str]:
    """The words that count; two characters of Han are one."""
    if script == "han":
        for text, _ in words:
            yield from (text[i : i + 2] for i in range(0, len(text), 2))
    elif script != "latin":
        yield from (text for text, _ in words)
    else:
        runs: list[list[str]] = []
        for text, beside in words:
            if beside:
                runs[-1].append(text)
            else:
                runs.append([text])
        for run in runs:
            if not _named(run, target):
                yield from (text for text in run if not _symbol(text))


def _named(run: list[str], target: str) -> bool:
    """Whether a few words in a row are a name: all begin with a capital, none is a common word."""
    common = (_OF_WORD["en"], _OF_WORD.get(target, frozenset()))
    return len(run) <= _LONGEST_RUN_OF_NAMES and all(
        word[0].isupper() and not any(word.lower() in words for words in common) for word in run
    )


def _symbol(word: str) -> bool:
    """Whether a word in Latin letters is of no language: a variable, an abbreviation, a unit."""
    inner = word[1:]
    return (
        len(word) == 1
        or any(c.isdigit() or c == "_" for c in word)
        or (word.isupper() and len(word) <= 6)
        or (inner != inner.lower() and inner != inner.upper())  # camelCase
        or word.lower() in _FUNCTIONS
    )


def _language(script: str, words: list[str], kana: bool, target: str) -> str:
    """The language of a sentence's words of one script."""
    own = _SCRIPTS[script][1]
    if script == "han":
        return "ja" if kana else "zh"
    if len(own) == 1:
        return own[0]
    default = target if target in own else own[0]
    low = [word.lower().replace("’", "'") for word in words]
    hits = {language: sum(word in _OF_WORD[language] for word in low) for language in own}
    best = max(hits.values())
    return default if hits[default] == best else max(hits, key=lambda language: hits[language])
