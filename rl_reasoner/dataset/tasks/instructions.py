"""The task `instructions`: writing tasks with checkable instructions, for models that can write.

    Write a short text about a river. Use exactly 3 sentences. Do not use any commas.
    写一段关于大海的短文。全文不少于20个汉字，不超过40个汉字。

English and Chinese, one to five instructions that do not contradict each other: each prompt is
drawn together with a response that follows them all, held against the checkers; it is proof that
there is one, not prose to learn from. Each row's `instructions` are for the reward of that name.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from rl_reasoner.dataset.tasks.base import Pick, Problem, Task, picker
from rl_reasoner.language.instructions import parsed, verdicts

Instructions = list[dict[str, Any]]
Added = tuple[str, dict[str, Any]]  # an instruction in words, and as data
_Add = Callable[[Pick], Added]

_TOPICS = {
    "en": (
        *("a river", "the moon", "an old clock", "a winter morning", "a garden", "a long journey"),
        *("bread", "a lost key", "the sea", "a small town", "a library", "a bridge", "rain"),
        *("a mountain path", "a market", "an island", "a train", "a violin", "a lighthouse"),
        *("a forest", "friendship", "a kitchen", "a desert", "a school day", "the stars"),
    ),
    "zh": (
        *("大海", "月亮", "一座老桥", "冬天的早晨", "花园", "旅行", "面包", "小镇", "图书馆"),
        *("下雨", "山路", "集市", "小岛", "火车", "提琴", "灯塔", "森林", "友谊", "厨房", "沙漠"),
        *("星空", "茶", "秋天", "老师", "家乡"),
    ),
}
_ORDERS = {
    "en": ("Write a short text about {}.", "Tell me about {}.", "Say something about {}."),
    "zh": ("写一段关于{}的短文。", "谈谈{}。", "请介绍一下{}。"),
}
_WORDS = {
    "en": ("light", "quiet", "stone", "morning", "window", "green", "summer", "paper", "silver"),
    "zh": ("春天", "石头", "窗户", "朋友", "安静", "绿色", "早晨", "故事", "阳光"),
}
_FILLING = {
    "en": "people walk past and look at it for a while before they go home again",
    "zh": "人们在那里走着看着想着从前的事",
}


def _some(pick: Pick, least: int, span: int) -> int:
    return least + pick(span)


def _two_of(pick: Pick, words: Sequence[str]) -> list[str]:
    first = pick(len(words))
    return [words[first], words[(first + 1 + pick(len(words) - 1)) % len(words)]]


# ------------------------------------------------------------------------------- in English


def _en_words(pick: Pick) -> Added:
    least = 10 * _some(pick, 1, 6)
    if pick(2):
        most = least + 10 * _some(pick, 1, 3)
        text = f"Use between {least} and {most} words."
        return text, {"name": "words", "at_least": least, "at_most": most}
    return f"Use at least {least} words.", {"name": "words", "at_least": least}


def _en_sentences(pick: Pick) -> Added:
    count = _some(pick, 2, 5)
    if pick(2):
        return f"Use exactly {count} sentences.", {"name": "sentences", "exactly": count}
    return f"Use at most {count} sentences.", {"name": "sentences", "at_most": count}


def _en_paragraphs(pick: Pick) -> Added:
    count = _some(pick, 2, 3)
    text = f"Write exactly {count} paragraphs, with a blank line between them."
    return text, {"name": "paragraphs", "exactly": count}


def _en_bullets(pick: Pick) -> Added:
    count = _some(pick, 2, 4)
    text = f"Give exactly {count} bullet points, each on a line that begins with -."
    return text, {"name": "bullets", "exactly": count}


def _en_numbered(pick: Pick) -> Added:
    count = _some(pick, 2, 4)
    text = f"Give a numbered list of exactly {count} items (1. 2. and so on)."
    return text, {"name": "numbered", "exactly": count}


def _en_include(pick: Pick) -> Added:
    words = _two_of(pick, _WORDS["en"])
    return f"Use the words {words[0]} and {words[1]}.", {"name": "include", "words": words}


def _en_exclude(pick: Pick) -> Added:
    words = _two_of(pick, ("very", "nice", "good", "really", "beautiful", "big"))
    text = f"Do not use the words {words[0]} and {words[1]}."
    return text, {"name": "exclude", "words": words}


def _en_keyword(pick: Pick) -> Added:
    word, count = _WORDS["en"][pick(len(_WORDS["en"]))], _some(pick, 2, 2)
    text = f"Use the word {word} exactly {count} times."
    return text, {"name": "keyword", "word": word, "exactly": count}


def _en_case(pick: Pick) -> Added:
    if pick(2):
        return "Write in capital letters only.", {"name": "upper_case"}
    return "Write in lower case only, without any capital letter.", {"name": "lower_case"}


def _en_starts(pick: Pick) -> Added:
    text = ("Long ago", "To begin with", "Every day", "Nobody knows")[pick(4)]
    return f'Begin with the words "{text}".', {"name": "starts_with", "text": text}


def _en_ends(pick: Pick) -> Added:
    text = ("That is all.", "And so it goes.", "The end.", "Who can say?")[pick(4)]
    return f'End with exactly these words: "{text}"', {"name": "ends_with", "text": text}


def _en_quoted(pick: Pick) -> Added:
    return "Put your whole response between double quotation marks.", {"name": "quoted"}


def _en_title(pick: Pick) -> Added:
    return "Give it a title between double angle brackets, <<like this>>.", {"name": "title"}


def _en_postscript(pick: Pick) -> Added:
    return "End with a postscript that begins with P.S. on its own line.", {"name": "postscript"}


def _en_placeholders(pick: Pick) -> Added:
    count = _some(pick, 1, 3)
    text = f"Have at least {count} placeholders in square brackets, such as [name]."
    return text, {"name": "placeholders", "at_least": count}


def _en_no_comma(pick: Pick) -> Added:
    return "Do not use any commas.", {"name": "no_comma"}


def _en_json(pick: Pick) -> Added:
    keys = _two_of(pick, ("title", "summary", "mood", "place"))
    schema: dict[str, Any] = dict.fromkeys(keys, "string") | {"rating": "integer"}
    text = (
        f"Answer with one JSON object alone: {keys[0]} and {keys[1]} are strings, rating is a "
        "whole number."
    )
    return text, {"name": "json", "schema": schema}


def _en_two(pick: Pick) -> Added:
    text = "Give two different responses, with ****** (six asterisks) between them."
    return text, {"name": "two_answers"}


def _en_language(pick: Pick) -> Added:
    return "Answer in Chinese.", {"name": "language", "language": "zh"}


# ------------------------------------------------------------------------------- in Chinese


def _zh_ideographs(pick: Pick) -> Added:
    least = 10 * _some(pick, 1, 6)
    most = least + 10 * _some(pick, 1, 3)
    text = f"全文不少于{least}个汉字，不超过{most}个汉字。"
    return text, {"name": "ideographs", "at_least": least, "at_most": most}


def _zh_sentences(pick: Pick) -> Added:
    count = _some(pick, 2, 5)
    return f"恰好写{count}句话。", {"name": "sentences", "exactly": count}


def _zh_paragraphs(pick: Pick) -> Added:
    count = _some(pick, 2, 3)
    return f"分成{count}段，段与段之间空一行。", {"name": "paragraphs", "exactly": count}


def _zh_bullets(pick: Pick) -> Added:
    count = _some(pick, 2, 4)
    return f"列出{count}个要点，每个要点一行，以 - 开头。", {"name": "bullets", "exactly": count}


def _zh_numbered(pick: Pick) -> Added:
    count = _some(pick, 2, 4)
    return f"写成有{count}条的编号列表（1. 2. ……）。", {"name": "numbered", "exactly": count}


def _zh_include(pick: Pick) -> Added:
    words = _two_of(pick, _WORDS["zh"])
    return f"必须用到“{words[0]}”和“{words[1]}”。", {"name": "include", "words": words}


def _zh_exclude(pick: Pick) -> Added:
    words = _two_of(pick, ("非常", "美丽", "很", "十分", "漂亮"))
    return f"不要用“{words[0]}”和“{words[1]}”。", {"name": "exclude", "words": words}


def _zh_keyword(pick: Pick) -> Added:
    word, count = _WORDS["zh"][pick(len(_WORDS["zh"]))], _some(pick, 2, 2)
    text = f"“{word}”这个词恰好出现{count}次。"
    return text, {"name": "keyword", "word": word, "exactly": count}


def _zh_starts(pick: Pick) -> Added:
    text = ("从前", "有一天", "每到夜里", "首先")[pick(4)]
    return f"以“{text}”开头。", {"name": "starts_with", "text": text}


def _zh_ends(pick: Pick) -> Added:
    text = ("就是这样。", "谢谢。", "故事完了。", "谁知道呢？")[pick(4)]
    return f"最后以“{text}”结束全文。", {"name": "ends_with", "text": text}


def _zh_title(pick: Pick) -> Added:
    return "加一个标题，写在双尖括号里，例如<<标题>>。", {"name": "title"}


def _zh_postscript(pick: Pick) -> Added:
    text = "最后另起一行，写一个以“附言：”开头的附言。"
    return text, {"name": "postscript", "marker": "附言："}


def _zh_no_comma(pick: Pick) -> Added:
    return "全文不要用逗号。", {"name": "no_comma"}


def _zh_language(pick: Pick) -> Added:
    return "请用英文回答。", {"name": "language", "language": "en"}


# ------------------------------------------------------------------------------ combinations

_ADDS: dict[str, dict[str, _Add]] = {
    "en": {
        "words": _en_words, "sentences": _en_sentences, "paragraphs": _en_paragraphs,
        "bullets": _en_bullets, "numbered": _en_numbered, "json": _en_json,
        "two_answers": _en_two, "include": _en_include, "exclude": _en_exclude,
        "keyword": _en_keyword, "case": _en_case, "starts_with": _en_starts,
        "ends_with": _en_ends, "quoted": _en_quoted, "title": _en_title,
        "postscript": _en_postscript, "placeholders": _en_placeholders,
        "no_comma": _en_no_comma, "language": _en_language,
    },
    "zh": {
        "ideographs": _zh_ideographs, "sentences": _zh_sentences, "paragraphs": _zh_paragraphs,
        "bullets": _zh_bullets, "numbered": _zh_numbered, "include": _zh_include,
        "exclude": _zh_exclude, "keyword": _zh_keyword, "starts_with": _zh_starts,
        "ends_with": _zh_ends, "title": _zh_title, "postscript": _zh_postscript,
        "no_comma": _zh_no_comma, "language": _zh_language,
    },
}  # fmt: skip
# What does not go together: kinds of form, and what a form or a language leaves no room for.
_FORMS = {"paragraphs", "bullets", "numbered", "json", "two_answers"}
_APART: dict[str, set[str]] = {
    "json": set(_ADDS["en"]) - {"exclude"} - _FORMS,
    "two_answers": {"quoted", "title", "postscript", "sentences", "starts_with", "ends_with"},
    "quoted": {"starts_with", "ends_with", "title", "postscript", "bullets", "numbered"},
    "postscript": {"ends_with", "paragraphs", "sentences"},
    "title": {"starts_with", "sentences", "paragraphs"},
    "sentences": {"bullets", "numbered", "paragraphs"},
    "bullets": {"starts_with", "ends_with"},
    "numbered": {"starts_with", "ends_with"},
    "language": set(_ADDS["en"]) | set(_ADDS["zh"]),
    "keyword": {"include"},
}


def together(one: str, other: str) -> bool:
    """Whether two kinds of instructions can be followed by one response."""
    forms = {one, other} <= _FORMS
    return not (forms or other in _APART.get(one, ()) or one in _APART.get(other, ()))


def _instructions(level: int, pick: Pick) -> Problem | None:
    """`level` instructions about a topic; None where a drawn one does not go with the others."""
    tongue = ("en", "zh")[pick(2)]
    adds = _ADDS[tongue]
    topic = _TOPICS[tongue][pick(len(_TOPICS[tongue]))]
    order = _ORDERS[tongue][pick(len(_ORDERS[tongue]))]
    kinds: list[str] = []
    for _ in range(level):
        kind = list(adds)[pick(len(adds))]
        if kind in kinds or not all(together(kind, other) for other in kinds):
            return None
        kinds.append(kind)
    seed = pick(2**60)
    added = [adds[kind](picker(f"instructions|{seed}|{kind}")) for kind in kinds]
    instructions = [told for _, told in added]
    answer = response(instructions, tongue)
    if not all(followed for followed, _ in verdicts(answer, parsed(instructions), loose=False)):
        return None
    joined = (" " if tongue == "en" else "").join(
        [order.format(topic), *(said for said, _ in added)]
    )
    told = json.dumps(sorted(instructions, key=lambda one: str(one["name"])), ensure_ascii=False)
    columns = {"instructions": instructions, "language": tongue}
    return Problem("instructions", joined, "", answer, level, f"{topic}|{told}", columns)


# ---------------------------------------------------------------------------------- responses


def response(instructions: Instructions, tongue: str) -> str:
    """A response made to follow all of `instructions`, in the language of the prompt `tongue`."""
    args = {str(one["name"]): one for one in instructions}
    if "language" in args:
        return _Writer({}, args["language"]["language"]).text()
    if "json" in args:
        schema = args["json"]["schema"]
        return json.dumps({key: 3 if kind == "integer" else "calm" for key, kind in schema.items()})
    return _Writer(args, tongue).text()


class _Writer:
    """Writes plain sentences, with what the instructions `args` want put into them."""

    def __init__(self, args: dict[str, dict[str, Any]], tongue: str) -> None:
        self.args = args
        self.chinese = tongue == "zh"
        words = args.get("include", {}).get("words", [])
        keyword = args.get("keyword")
        self.wanted = [*words, *([keyword["word"]] * keyword["exactly"] if keyword else [])]
        self.wanted += [
            f"[name {n}]" for n in range(args.get("placeholders", {}).get("at_least", 0))
        ]

    def text(self) -> str:
        """The response."""
        args = self.args
        count = args.get("sentences", {}).get("exactly") or args.get("sentences", {}).get(
            "at_most", 3
        )
        marks = {"bullets": "- ", "numbered": "{}. "}
        listed = next((name for name in marks if name in args), None)
        blocks = args["paragraphs"]["exactly"] if "paragraphs" in args else 1
        parts = args[listed]["exactly"] if listed else blocks if blocks > 1 else count
        parts = max(parts, 2) if "two_answers" in args else parts
        pieces = self._pieces(parts)
        if listed:
            text = "\n".join(marks[listed].format(n) + piece for n, piece in enumerate(pieces, 1))
        elif blocks > 1:
            text = "\n\n".join(pieces)
        elif "two_answers" in args:
            text = f"{pieces[0]}\n******\n{self._joined(pieces[1:])}"
        else:
            text = self._joined(pieces)
        return self._dressed(text)

    def _joined(self, pieces: Sequence[str]) -> str:
        return ("" if self.chinese else " ").join(pieces)

    def _pieces(self, count: int) -> list[str]:
        """`count` sentences, as long together as asked, with the first and last words asked."""
        starts = self.args.get("starts_with", {}).get("text")
        ends = self.args.get("ends_with", {}).get("text")
        size = self.args.get("ideographs" if self.chinese else "words", {})
        fixed = len(ends.split() if not self.chinese else ends) if ends else 0
        total = size.get("at_least", 0) + 4
        own = count - 1 if ends and count > 1 else count
        each = max(4, -(-max(0, total - fixed) // own))
        made = []
        for number in range(own):
            units = self._units(starts if number == 0 else None, each, number, own)
            made.append(self._sentence(units))
        if ends:
            made = [*made, ends] if count > 1 else [ends]
        return made

    def _units(self, starts: str | None, size: int, number: int, own: int) -> list[str]:
        """The words (or characters) of one sentence."""
        split: Callable[[str], list[str]] = list if self.chinese else str.split
        first = split(starts) if starts else split("这里") if self.chinese else ["here"]
        mine = self.wanted[number::own]
        inner = [unit for word in mine for unit in (split(word) if "[" not in word else [word])]
        filling = split(_FILLING["zh" if self.chinese else "en"])
        rest = [filling[at % len(filling)] for at in range(max(1, size - len(first) - len(inner)))]
        joined = []
        for at, unit in enumerate(inner):  # apart, so that no two make one word
            joined += [unit] if self.chinese else [unit, "and"][: 2 - (at == len(inner) - 1)]
        return [*first, *joined, *rest]

    def _sentence(self, units: Sequence[str]) -> str:
        if self.chinese:
            return "".join(units) + "。"
        text = " ".join(units) + "."
        return text[0].upper() + text[1:]

    def _dressed(self, text: str) -> str:
        args = self.args
        if "title" in args:
            text = f"<<{'小记' if self.chinese else 'Notes'}>>\n\n{text}"
        if "postscript" in args:
            said = "附言：再见。" if self.chinese else "P.S. write soon."
            text = f"{text}\n\n{said}"
        if "quoted" in args:
            text = f'"{text}"'
        if "upper_case" in args:
            return text.upper()
        return text.lower() if "lower_case" in args else text


INSTRUCTION_TASK = Task(
    "instructions",
    "writing tasks with checkable instructions, English and Chinese; level: instructions",
    range(1, 4),
    range(4, 6),
    _instructions,
    judge="instructions",
)
