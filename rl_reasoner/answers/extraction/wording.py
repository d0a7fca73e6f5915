"""Answers that are words: texts, yes and no, choices, dates, times of day, set phrases.

Everything here works on spelling; whether two texts mean one thing beyond case, styling, articles
and full stops is not asked.
"""

import re

from rl_reasoner.answers.parsing.glyphs import ascii_mathematics

_PHRASES = {
    r"\mathbb{R}": (
        "all real numbers|all reals|real numbers|the set of all real numbers|any real number|"
        "every real number|the real numbers|reals|all real values|the set of real numbers|"
        "set of all real numbers|set of real numbers|all x|全体实数|实数集|all real number|"
        "r (all real numbers)|all real x|all real numbers x|x is any real number|所有实数"
    ),
    r"\emptyset": (
        "no solution|no solutions|no real solution|no real solutions|empty set|null set|"
        "there is no solution|there are no solutions|no solution exists|无解|空集|has no solution|"
        "no real roots|no roots|no solutions exist|there are no real solutions|void set"
    ),
    r"\mathrm{DNE}": (
        "dne|does not exist|undefined|not defined|doesn't exist|do not exist|不存在|"
        "the limit does not exist|limit does not exist|is undefined|无意义|d.n.e|nonexistent|"
        "it does not exist|无定义|not exist"
    ),
    r"\infty": (
        "infinity|inf|positive infinity|plus infinity|+infinity|infinite|正无穷|正无穷大|无穷大|"
        "+inf|oo|+oo"
    ),
    r"-\infty": "negative infinity|minus infinity|-infinity|-inf|负无穷|负无穷大|-oo",
    "yes": "是|是的|yes",
    "no": "否|不是|no",
}
_MEANING = {
    phrase: meaning for meaning, phrases in _PHRASES.items() for phrase in phrases.split("|")
}
_TEXT_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|tt|up|sc)?|mathrm|mathbf|mathit|mathsf|mbox|hbox|emph|bm|"
    r"boldsymbol|operatorname|underline|pmb|mathtt|textsc)\s*+\*?(?=\s*+\{)"
)
_SPACING = re.compile(r"\\(?:[,;:! ]|q?quad(?![a-zA-Z])|left(?![a-zA-Z])|right(?![a-zA-Z]))|~")
_DECORATION = re.compile(r"\$|\*\*|`|\"|(?<!\\)\\[()\[\]]|\\displaystyle|^[#>\s]+")
_ALL_EXCEPT = re.compile(
    r"(?:all|any) real (?:numbers?|values)(?: x)?,? (?:except|but|other than)"
    r"(?: for)?(?: [a-z] ?= ?| )(.+)"
)
_ALL_WITH = re.compile(
    r"(?:all|any)(?: real)?(?: numbers?| values)?(?: of)?(?: ([a-z]),?(?: such that| where| with))?"
    r" ([a-z] ?(?:\\(?:neq?|[lg]eq?|[lg]eqslant|[lg]t)(?![a-z])|[<>]|!=).+)"
)
_ARTICLE = re.compile(r"^(?:the|a|an)\s+(?=\S)", re.IGNORECASE)
_CLOSING = re.compile(r"(?<=[^\W\d_])!+$|(?<!\.)\.+$")
_LONG_WORD = re.compile(r"(?<![\\a-zA-Z])[^\W\d_]{2,}")
_WORDS_ONLY = re.compile(r"[^\W\d_]+(?:[\s'.,&/-]+[^\W\d_]+)*")
_TIME = re.compile(
    r"(?<![\d:])(\d{1,2})(?::(\d{2}))?(?::(\d{2}))?\s*([ap])\s?\.?\s?m\b\.?", re.IGNORECASE
)
_CLOCK = re.compile(r"\d{1,2}:0\d(?::\d{2})?")
_MONTH = re.compile(
    r"\b(jan(?=\b|uary\b)|feb(?=\b|ruary\b)|mar(?=\b|ch\b)|apr(?=\b|il\b)|may(?=\b)|jun(?=e?\b)"
    r"|jul(?=y?\b)|aug(?=\b|ust\b)|sep(?=t?\b|tember\b)|oct(?=\b|ober\b)|nov(?=\b|ember\b)"
    r"|dec(?=\b|ember\b))[a-z]*\.?",
    re.IGNORECASE,
)
_OF_DATES = re.compile(r"(?:mon|tues|wednes|thurs|fri|satur|sun)day|[ap]m|[\d:]+(?:[ap]m)?")
_CHOICE = re.compile(
    r"^(?i:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice|选项|答案|选)\s*(?:is|[:：是为])?\s*)?"
    r"(?:\(([A-J])\)|\[([A-J])\]|([A-J])(?![\w'^_({\[+*/=<>!|]))\s*"
    r"(?:[.,;)、]|\s-\s|:(?=\s|$)|\s|$)\s*(.*)$",
    re.DOTALL,
)
_SECOND_CHOICE = re.compile(r"^(?:(?:and|or|和|或|&|/)\b|\(?[A-J]\)?(?:[.,:;)\s]|$))")
_TAKEN_BACK = re.compile(r"is\s+(?:not|wrong|incorrect|false)\b|isn't(?!\w)|(cannot|can't)(?!\w)")
_ROMAN = re.compile(r"[IVX]{1,4}\b")
_OPTION_TEXT = re.compile(  # "(B) I and II only", "(B) A triangle"
    r"(?!I\W*$)[IVX]{1,4}(?:(?:,|\s(?:and|or|&))*\s[IVX]{1,4})*(?:\sonly)?\.?"
    r"|A\s(?!(?:and|or|is|are|but|not|nor|vs)\b)[a-z].*"
)
_SAID_OF_I = re.compile(r"(?:is|only|alone|holds?|because|since|as)\b")
_LETTER_OF_CHOICE = re.compile(r"(?<![\w'\\])(?:[B-HJ](?![\w'])|A(?!\s*[\w']))")
_PARTED = re.compile(r"[,;、&()]|and|和")
_BETWEEN_NAMES = re.compile(r"(?:(?<!\s)\s++)?,\s*(?:and\s+)?|(?<!\s)\s+and\s+|、|和")
_COUNTING = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty
"""
_NUMBER_WORDS = {word: str(number) for number, word in enumerate(_COUNTING.split())}


def unstyled(text: str) -> str:
    """`text` without styling commands, dollars, bold marks and needless white space."""
    text = " ".join(ascii_mathematics(text).split())
    text = _DECORATION.sub(" ", text.replace("\\!", "").replace("{:}", ":"))
    if "\\" in text:
        text = _SPACING.sub(" ", text)
        if _TEXT_COMMAND.search(text):
            text = _TEXT_COMMAND.sub(" ", text)
            text = re.sub(r"(?<![\\_^}a-zA-Z])\s?\{([^{}\\]*)\}", r" \1", text)
    return " ".join(text.split())


def _folded(match: re.Match[str]) -> str:
    return match[0].lower()


def words(text: str) -> str:
    """`text` as it is compared with another text: words in lower case, single letters kept.

    Surrounding articles and the final stop are dropped.
    """
    plain = _CLOSING.sub("", unstyled(text).strip(" ,;:"))
    if plain.startswith("(") and plain.endswith(")"):
        plain = plain[1:-1]
    return _ARTICLE.sub("", _LONG_WORD.sub(_folded, plain)).strip("' ")


def meant(text: str) -> str:
    """`text`, or the mathematics or word that a set phrase in it stands for."""
    if len(text) > 80:
        return text
    if text.strip(" $") in (r"\mathbf{R}", r"\mathrm{R}", r"\mathbf R"):
        return r"\mathbb{R}"
    plain = unstyled(text).strip(" .,;:!").lower().removeprefix("the ")
    conditioned = _ALL_WITH.fullmatch(plain)
    if conditioned and conditioned[1] in (None, conditioned[2][0]):
        return conditioned[2]
    left_out = _ALL_EXCEPT.fullmatch(plain)
    if left_out:
        return rf"\mathbb{{R}} \setminus \{{{left_out[1]}\}}"
    return _MEANING.get(plain, text)


def is_wordy(text: str) -> bool:
    """Whether `text` is words and nothing else, one of them of three letters at least."""
    plain = unstyled(text).strip(" .,;:!?()")
    if not _WORDS_ONLY.fullmatch(plain):
        return False
    return any(
        len(word) > 2 and (not word.isascii() or re.search("[aeiouyAEIOUY]", word))
        for word in re.findall(r"[^\W\d_]+", plain)
    ) or plain.lower() in ("yes", "no")


def number_word(text: str) -> str:
    """The digits for a number spelled as one word ("seven"), or an empty string."""
    return _NUMBER_WORDS.get(words(text), "")


def time_of_day(text: str) -> str:
    """`text` with its time of day spelled one way ("4:45pm"), or an empty string without one."""
    plain = unstyled(text)
    if _CLOCK.fullmatch(plain):
        return plain
    if len(plain) > 120 or not _TIME.search(plain):
        return ""

    def spelled(match: re.Match[str]) -> str:
        """The time, spelled one way."""
        minute, second = match[2] or "00", f":{match[3]}" if match[3] else ""
        return f"{int(match[1])}:{minute}{second}{match[4].lower()}m"

    return dated(words(_TIME.sub(spelled, plain)))


def dated(text: str) -> str:
    """`text` with a date in it spelled one way: of one alone, the words in alphabetical order."""
    if not _MONTH.search(text) or not re.search(r"\d", text):
        return text
    text = _MONTH.sub(lambda m: m[1].lower(), text)
    text = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b", "", text.lower())
    parts = re.findall(r"[\w:]+", re.sub(r"\b(?:of|on|the|at)\b", " ", text))
    others = [part for part in parts if not _OF_DATES.fullmatch(part)]
    return " ".join(sorted(parts) if len(others) == 1 else parts)  # 5 and 3, not 3 and 5


def name_list(text: str) -> tuple[str, ...]:
    """The names of a list of words in order of the alphabet; empty where it is no such list."""
    parts = _BETWEEN_NAMES.split(unstyled(text).strip(" ."))
    if len(parts) < 2 or not all(is_wordy(part) for part in parts):
        return ()
    return tuple(sorted(words(part) for part in parts))


def choice(text: str, *, marked_only: bool = False) -> tuple[str, str] | None:
    """The letter of a multiple choice and the option text behind it; None where it is no choice.

    `B`, `(B)`, `B.`, `B. any text`, "Option B". Two letters are no choice. With `marked_only` a
    letter before more text needs brackets or a mark: "A circle" and `I, II` are no options.
    """
    if len(text) > 400:
        return None
    plain = unstyled(text).strip()
    choice = _CHOICE.match(plain)
    if choice is None:
        return None
    letter = choice[1] or choice[2] or choice[3]
    rest = choice[4].strip()
    marked = bool(choice[1] or choice[2]) or not plain.startswith(letter)
    behind_mark = plain[1:2] in ".:)、"
    told = (marked or behind_mark) and _OPTION_TEXT.fullmatch(rest)
    if _SECOND_CHOICE.match(rest) and not told:
        return None
    if _ROMAN.match(rest) and (letter == "I" or not (told or behind_mark)):
        return None
    if plain[:2] == "I " and rest[:1].islower() and not _SAID_OF_I.match(rest):
        return None  # "I am not sure"
    # "D) cannot be determined" is what the option says
    taken_back = None if behind_mark else _TAKEN_BACK.match(rest)
    if taken_back and not (taken_back[1] and (choice[1] or choice[2])):
        return None
    if marked or not rest or behind_mark:
        return letter, rest
    bracketed = rest[0] == "(" and rest.endswith(")")
    if marked_only or not (plain[1:2] in ",;" or rest[0].isalpha() or bracketed):
        return None
    others = any(found[0] != letter for found in _LETTER_OF_CHOICE.finditer(rest))
    return None if others else (letter, rest)


def choice_letters(text: str) -> str:
    """Several choices as they stand ("ACD" for `A, C, D`), or an empty string."""
    plain = unstyled(text).strip(" .()")
    if not re.fullmatch(r"\(?[A-J]\)?(?:(?:\s|,|;|、|and|和|&)*\(?[A-J]\)?){1,9}", plain):
        return ""
    capitals = [char for char in plain if char.isupper()]
    return "".join(capitals) if len(set(capitals)) == len(capitals) else ""


def has_ordered_letters(text: str) -> bool:
    """Whether joined letters are a word or an order (`CBAD`): choices are joined as in `ACD`.

    Two letters that are no text may be a segment, or a product.
    """
    letters = choice_letters(text)
    if len(letters) < 3 and not _TEXT_COMMAND.search(text):
        return False
    return letters != "".join(sorted(letters)) and not _PARTED.search(unstyled(text))
