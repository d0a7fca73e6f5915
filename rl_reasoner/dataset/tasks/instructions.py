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


def _two_of(pick: Pick, words: Sequence[str]) -> list[str]:
    first = pick(len(words))
    return [words[first], words[(first + 1 + pick(len(words) - 1)) % len(words)]]


# ------------------------------------------------------------------- instructions by their form


def _always(text: str, name: str, **args: Any) -> _Add:
    """An instruction without choices."""
    return lambda pick: (text, {"name": name, **args})


def _count(text: str, name: str, span: int, least: int = 2, bound: str = "exactly") -> _Add:
    """A number of something: one of `span` numbers from `least` on."""

    def add(pick: Pick) -> Added:
        count = least + pick(span)
        return text.format(count), {"name": name, bound: count}

    return add


def _one(text: str, name: str, texts: Sequence[str]) -> _Add:
    """One of the `texts` at a fixed place."""

    def add(pick: Pick) -> Added:
        chosen = texts[pick(len(texts))]
        return text.format(chosen), {"name": name, "text": chosen}

    return add


def _two(text: str, name: str, words: Sequence[str]) -> _Add:
    """Two of the `words`, used or avoided."""

    def add(pick: Pick) -> Added:
        chosen = _two_of(pick, words)
        return text.format(*chosen), {"name": name, "words": chosen}

    return add


def _keyword(text: str, words: Sequence[str]) -> _Add:
    """One of the `words`, used two or three times."""

    def add(pick: Pick) -> Added:
        word, count = words[pick(len(words))], 2 + pick(2)
        return text.format(word, count), {"name": "keyword", "word": word, "exactly": count}

    return add


def _en_words(pick: Pick) -> Added:
    least = 10 * (1 + pick(6))
    if pick(2):
        most = least + 10 * (1 + pick(3))
        text = f"Use between {least} and {most} words."
        return text, {"name": "words", "at_least": least, "at_most": most}
    return f"Use at least {least} words.", {"name": "words", "at_least": least}


def _zh_ideographs(pick: Pick) -> Added:
    least = 10 * (1 + pick(6))
    most = least + 10 * (1 + pick(3))
    text = f"全文不少于{least}个汉字，不超过{most}个汉字。"
    return text, {"name": "ideographs", "at_least": least, "at_most": most}


def _en_sentences(pick: Pick) -> Added:
    count = 2 + pick(5)
    if pick(2):
        return f"Use exactly {count} sentences.", {"name": "sentences", "exactly": count}
    return f"Use at most {count} sentences.", {"name": "sentences", "at_most": count}


def _en_case(pick: Pick) -> Added:
    if pick(2):
        return "Write in capital letters only.", {"name": "upper_case"}
    return "Write in lower case only, without any capital letter.", {"name": "lower_case"}


def _en_json(pick: Pick) -> Added:
    keys = _two_of(pick, ("title", "summary", "mood", "place"))
    schema: dict[str, Any] = dict.fromkeys(keys, "string") | {"rating": "integer"}
    text = (
        f"Answer with one JSON object alone: {keys[0]} and {keys[1]} are strings, rating is a "
        "whole number."
    )
    return text, {"name": "json", "schema": schema}


_ADDS: dict[str, dict[str, _Add]] = {
    "en": {
        "words": _en_words,
        "sentences": _en_sentences,
        "paragraphs": _count("Write exactly {} paragraphs, with a blank line between them.",
                             "paragraphs", 3),
        "bullets": _count("Give exactly {} bullet points, each on a line that begins with -.",
                          "bullets", 4),
        "numbered": _count("Give a numbered list of exactly {} items (1. 2. and so on).",
                           "numbered", 4),
        "json": _en_json,
        "two_answers": _always(
            "Give two different responses, with ****** (six asterisks) between them.",
            "two_answers"),
        "include": _two("Use the words {} and {}.", "include", _WORDS["en"]),
        "exclude": _two("Do not use the words {} and {}.", "exclude",
                        ("very", "nice", "good", "really", "beautiful", "big")),
        "keyword": _keyword("Use the word {} exactly {} times.", _WORDS["en"]),
        "case": _en_case,
        "starts_with": _one('Begin with the words "{}".', "starts_with",
                            ("Long ago", "To begin with", "Every day", "Nobody knows")),
        "ends_with": _one('End with exactly these words: "{}"', "ends_with",
                          ("That is all.", "And so it goes.", "The end.", "Who can say?")),
        "quoted": _always("Put your whole response between double quotation marks.", "quoted"),
        "title": _always("Give it a title between double angle brackets, <<like this>>.", "title"),
        "postscript": _always("End with a postscript that begins with P.S. on its own line.",
                              "postscript"),
        "placeholders": _count("Have at least {} placeholders in square brackets, such as [name].",
                               "placeholders", 3, least=1, bound="at_least"),
        "no_comma": _always("Do not use any commas.", "no_comma"),
        "language": _always("Answer in Chinese.", "language", language="zh"),
    },
    "zh": {
        "ideographs": _zh_ideographs,
        "sentences": _count("恰好写{}句话。", "sentences", 5),
        "paragraphs": _count("分成{}段，段与段之间空一行。", "paragraphs", 3),
        "bullets": _count("列出{}个要点，每个要点一行，以 - 开头。", "bullets", 4),
        "numbered": _count("写成有{}条的编号列表（1. 2. ……）。", "numbered", 4),
        "include": _two("必须用到“{}”和“{}”。", "include", _WORDS["zh"]),
        "exclude": _two("不要用“{}”和“{}”。", "exclude", ("非常", "美丽", "很", "十分", "漂亮")),
        "keyword": _keyword("“{}”这个词恰好出现{}次。", _WORDS["zh"]),
        "starts_with": _one("以“{}”开头。", "starts_with", ("从前", "有一天", "每到夜里", "首先")),
        "ends_with": _one("最后以“{}”结束全文。", "ends_with",
                          ("就是这样。", "谢谢。", "故事完了。", "谁知道呢？")),
        "title": _always("加一个标题，写在双尖括号里，例如<<标题>>。", "title"),
        "postscript": _always("最后另起一行，写一个以“附言：”开头的附言。", "postscript",
                              marker="附言："),
        "no_comma": _always("全文不要用逗号。", "no_comma"),
        "language": _always("请用英文回答。", "language", language="en"),
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
        placeholders = args.get("placeholders", {}).get("at_least", 0)
        self.wanted += [f"[name {n}]" for n in range(placeholders)]

    def text(self) -> str:
        """The response."""
        args = self.args
        sentences = args.get("sentences", {})
        count = sentences.get("exactly") or sentences.get("at_most", 3)
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
    "writing tasks with checkable instructions; English and Chinese; level: instructions",
    range(1, 4),
    range(4, 6),
    _instructions,
    judge="instructions",
)
