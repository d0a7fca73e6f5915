"""The named sets of problems: their cards, where their rows are, and reading them.

A name stands for a file here (shipped, or in the folder `$RL_REASONER_DATA`), else for a data set
on the hub, where there is one; `read_rows` reads either. Nothing of another's set comes with the
package: cards hold no rows. Knows nothing of models.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rl_reasoner.dataset.readers import FORMS, ending, file_rows, saved_folder
from rl_reasoner.dataset.tasks.generate import TASKS
from rl_reasoner.errors import UserError, did_you_mean, first_line, nearest
from rl_reasoner.paths import file_meant, room
from rl_reasoner.recipe.data import FileData
from rl_reasoner.types import Row


@dataclass(frozen=True)
class Card:
    """What one should know of a set before reading a figure on it.

    `size` and `defects` are of the set as it is published, before the lint of a load; `prompt` says
    which prompt template suits; `files` are further names of its local file; `hub` is its place on
    the hub, None where it has none that this package reads.
    """

    about: str
    size: int
    split: str
    answers: str
    licence: str
    source: str
    prompt: str = "auto, or boxed for a chat model"
    defects: str = ""
    files: tuple[str, ...] = ()
    hub: FileData | None = None


def _hub(path: str, split: str = "test", config: str | None = None, **columns: str) -> FileData:
    return FileData(path=path, config=config, split=split, columns=columns, on_bad_row="skip")


def _aime(year: int, hub: FileData | None = None) -> Card:
    return Card(
        about=f"AIME {year}",
        size=30,
        split="all",
        answers="a whole number from 0 to 999",
        licence="unclear (problems by the MAA)",
        source="MAA",
        defects="30 problems: one seed has a standard deviation of several points",
        hub=hub,
    )


_INTEGER = "a whole number"
_ANSWERS = {"functions": "tests"} | dict.fromkeys(
    ("instructions", "instructions_tiny"), "instructions, one of many responses that follow them"
)
_OWN = {
    "programming": "short Python functions; on numbers, text and lists",
    "word_problems": "word problems in English, on ten subjects",
}
"""What a set that no generator made is about."""
_CODE = "auto; a chat model is to answer with a fenced Python block"

CARDS = {
    "gsm8k": Card(
        "word problems of primary school, English", 1319, "test", _INTEGER, "MIT",
        "openai/grade-school-math", hub=_hub("openai/gsm8k", config="main", problem="question"),
    ),
    "math500": Card(
        "500 problems of MATH's test split; five levels, seven subjects", 500, "test",
        "an expression", "MIT", "openai/prm800k", hub=_hub("HuggingFaceH4/MATH-500"),
        defects="42 problems with figures as code; a part of math: never train on math's test",
    ),
    "math": Card(
        "competition problems; five levels, seven subjects", 5000, "test", "an expression", "MIT",
        "hendrycks/math",
        hub=_hub("DigitalLearningGmbH/MATH-lighteval", answer="solution", subject="type"),
        defects="419 problems with figures as code; one problem is also in the train split, and "
        "170 share half of their 13-grams with it",
    ),
    "aime24": _aime(2024, _hub("HuggingFaceH4/aime_2024", "train")),
    "aime25": _aime(2025, _hub("math-ai/aime25")),
    "aime26": _aime(2026),
    "amc23": Card(
        "AMC 12 of 2022 and 2023; the options left out", 40, "all", "a number",
        "unclear (problems by the MAA)", "QwenLM/Qwen2.5-Math",
        hub=_hub("math-ai/amc23", problem="question"), defects="40 problems: wide intervals",
    ),
    "minerva": Card(
        "undergraduate problems of science", 272, "test", "a number with unit, or an expression",
        "non-commercial (MIT OpenCourseWare)", "google-research (Minerva)",
        files=("minerva_math",), hub=_hub("math-ai/minervamath", problem="question"),
        defects="5 golds that a plain parser cannot read",
    ),
    "olympiadbench": Card(
        "olympiad problems; open-ended, text only, English", 675, "test",
        "one or several expressions", "unclear", "OpenBMB/OlympiadBench",
        defects="94 golds hold several answers; figures left out",
    ),
    "svamp": Card(
        "word problems with changed wording", 1000, "all", "a number", "MIT", "arkilpatel/SVAMP",
        hub=_hub("ChilleD/SVAMP", problem="question_concat", answer="Answer"),
        defects="chal-680 has a wrong gold; the hub's test split has 300 of the 1,000",
    ),
    "asdiv": Card(
        "word problems of primary school; in many kinds", 2215, "all", "a number, word or time",
        "non-commercial or unclear (CC BY-NC 4.0)", "chaochun/nlu-asdiv-dataset",
        defects="131 golds are not plain numbers; 115 problems share a 13-gram with svamp",
    ),
    "multiarith": Card(
        "word problems of two steps", 600, "all", _INTEGER, "unclear",
        "QwenLM/Qwen2.5-Math", hub=_hub("ChilleD/MultiArith", problem="question",
                                        answer="final_ans"),
        defects="20 repeated problems; a part of mawps",
    ),
    "mawps": Card(
        "word problems of one or two steps", 2065, "test", "a number", "unclear",
        "QwenLM/Qwen2.5-Math", defects="87 repeated problems, one of them with another gold",
    ),
    "college_math": Card(
        "exercises of open college textbooks", 2717, "test", "an expression",
        "mixed, given in each row's source; 809 rows non-commercial", "QwenLM/Qwen2.5-Math",
        defects="24 problems occur with different golds",
    ),
    "cmath": Card(
        "word problems of Chinese primary school; six grades", 600, "test", "a number or fraction",
        "MIT or BSD", "XiaoMi/cmath", hub=_hub("weitianwen/cmath", problem="question",
                                               answer="golden"),
        defects="31 golds are fractions, some unreduced",
    ),
    "mgsm_zh": Card(
        "250 of gsm8k's test problems, in Chinese", 250, "test", _INTEGER, "unclear",
        "google-research/url-nlp", hub=_hub("juletxara/mgsm", config="zh", problem="question",
                                            answer="answer_number"),
        defects="translated from gsm8k: never train on gsm8k's test",
    ),
    "gsm_hard": Card(
        "gsm8k's test problems with large numbers", 1319, "test", "a number", "Apache-2.0",
        "reasoning-machines/pal", hub=_hub("reasoning-machines/gsm-hard", "train",
                                           problem="input", answer="target"),
        defects="146 negative golds and 277 with a fraction, where the story allows none; "
        "329 problems are gsm8k's own",
    ),
    "gsm_plus": Card(
        "gsm8k's test problems; changed in eight ways", 2400, "testmini",
        "a number, or None where it cannot be answered", "unclear", "qtli/GSM-Plus",
        files=("gsm_plus_mini",), hub=_hub("qintongli/GSM-Plus", "testmini", problem="question"),
        defects="300 golds are the word None, which no verifier of numbers judges",
    ),
    "humaneval": Card(
        "Python functions to be completed", 164, "test", "tests", "MIT", "openai/human-eval",
        prompt=f"{_CODE}, a base model continues the function",
        hub=_hub("openai/openai_humaneval", tests="test"),
    ),
    "mbpp": Card(
        "short Python functions; from one sentence and a test", 974, "all splits (hub: test)",
        "tests", "CC BY 4.0", "google-research", prompt=_CODE,
        hub=_hub("google-research-datasets/mbpp", config="full", problem="text",
                 tests="test_list"),
        defects="4 texts occur twice, 3 of them across train and test; the first test is shown",
    ),
    "code_contests_stdio": Card(
        "programs that read and print; on graphs and trees; hard", 181, "all",
        "tests of input and output", "CC BY 4.0", "google-deepmind/code_contests", prompt=_CODE,
        defects="a right program may print another valid answer",
    ),
}  # fmt: skip


def _public(name: str) -> Card | None:
    """The card of a public set, by any of its names."""
    named = (c for title, c in CARDS.items() if name in (title, f"{title}_test", *c.files))
    return next(named, None)


def card_of(name: str) -> Card | None:
    """The card of a set: a public one, or one of the project's own; None for other files."""
    if (card := _public(name)) is not None:
        return card
    own = room("data") / f"{Path(name).stem}.jsonl"
    if own.is_file() and find_set(name) == own:
        with own.open(encoding="utf-8") as file:
            size = sum(1 for _ in file)
        task, _, split = own.stem.rpartition("_")
        made = task in TASKS
        return Card(
            about=generated_words(task) if made else _OWN.get(own.stem, own.stem),
            size=size,
            split=split if made else "all",
            answers=_ANSWERS.get(task, "a number or expression"),
            licence="Apache-2.0",
            source="made for this project, see data/DATASHEET.md",
            prompt="plain",
        )
    return None


def generated_words(task: str) -> str:
    """What a card says of a set that a task's generator made."""
    return f"problems of the task {task}"


def set_names() -> list[str]:
    """Names of the sets that have a card, are shipped, or lie in `$RL_REASONER_DATA`."""
    here = {path.stem for folder in _set_folders() for path in folder.glob("*.jsonl")}
    return sorted(here | CARDS.keys())


def how_to_get(place: str, split: str = "test") -> str:
    """How to get a public set that is not here, by its name or place on the hub; else ""."""
    for name, card in CARDS.items():
        if place == name or (card.hub is not None and card.hub.path == place):
            if split != "test":
                return (
                    f"give a file of its {split} rows: --data.path FILE --data.config null "
                    "--data.columns '{}' (if its columns are called problem and answer)"
                )
            return (
                f"put {name}.jsonl into a folder and name that in RL_REASONER_DATA "
                "(eval: or in --data-dir)"
            )
    return ""


def _set_folders() -> list[Path]:
    own = os.environ.get("RL_REASONER_DATA")
    return [room("data"), *([Path(own).expanduser()] if own else [])]


def find_set(name: str) -> Path | None:
    """The file of a set: a path, or the name of a set that is here; None where there is none.

    A folder that datasets' `save_to_disk` wrote counts as a file. NAME stands for NAME.jsonl,
    NAME_test.jsonl or a further name on its card.
    """
    path = Path(name).expanduser()
    if path.is_file() or (name and saved_folder(path)):
        return path
    others: Iterable[str] = CARDS[name].files if name in CARDS else ()
    stems = (name, f"{name}_test", *others)
    named = (folder / f"{stem}.jsonl" for folder in _set_folders() for stem in stems)
    return next((file for file in named if file.is_file()), None)


def set_data(name: str) -> FileData:
    """Where the problems of a set come from: a file here, else the hub.

    Bad rows of a public set are skipped, with a warning: its card tells of them. Bad rows of any
    other are the reader's to mend.
    """
    card = _public(name)
    if card is None:
        return FileData(path=name, split="test")
    if card.hub is not None and find_set(name) is None:
        return card.hub
    return FileData(path=name, split="test", on_bad_row="skip")


# ----------------------------------------------------------------------------------- reading


def read_rows(name: str, config: str | None = None, split: str = "train") -> list[Row]:
    """Read the rows of a file, a saved folder, a shipped set or a hub data set, unchanged.

    Raises `UserError` when it is not found, empty, or broken (with the line).
    """
    path = find_set(name)
    if path is None:
        return _hub_rows(name, config, split)
    try:
        rows = list(file_rows(path, split))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not rows:
        raise UserError(f"{path} is empty: there is no row in it")
    return rows


def check_set(name: str) -> None:
    """Raise `UserError` where `name` is no set, no file, and no place on a hub; asks no hub."""
    card = CARDS.get(name)
    if find_set(name) is not None or (card is not None and card.hub is not None):
        return
    looks_like_file = ending(Path(name)) in FORMS or name.startswith(("/", "~", "."))
    if card is not None:
        hint = how_to_get(name)
        raise UserError(f"the set {name!r} does not come with the package: {hint}")
    if name and Path(name).expanduser().is_dir():  # datasets would walk through all of it
        forms = ", ".join(FORMS)
        raise UserError(
            f"{name} is a folder: give a file in it ({forms}), or a folder that datasets' "
            "save_to_disk wrote"
        )
    meant = file_meant(name, FORMS)
    misspelt = meant and nearest(ending(Path(name)), FORMS)  # `.cvs`; others may be on a hub
    if looks_like_file or misspelt or name.count("/") != 1:
        near = meant or did_you_mean(Path(name).stem, set_names())
        raise UserError(f"there is no data file or set {name!r}.{near}")


def _hub_rows(name: str, config: str | None, split: str) -> list[Row]:
    check_set(name)
    hint, meant = how_to_get(name, split), file_meant(name, FORMS)
    from datasets import load_dataset

    from rl_reasoner import hub

    try:
        with hub.access("dataset", name):
            return [dict(row) for row in load_dataset(name, config, split=split)]
    except Exception as error:  # datasets' own errors are many and share no base class
        why = "" if isinstance(error, hub.NotThereError) else f"{type(error).__name__}: "
        raise UserError(
            f"data set {name!r} (split {split!r}) is neither a file nor available on the hub: "
            f"{why}{first_line(error)}{hint and f'. Or {hint}'}{meant and f'.{meant}'}"
        ) from error
