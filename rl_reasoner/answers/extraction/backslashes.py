"""Commands with doubled backslashes (`3\\\\sqrt{13}`), as JSON and some models write them.

A doubled backslash before a command's name is read as a single one: to TeX it is a row break before
a word that is no mathematics. Row breaks keep theirs, and so does all that stands in a matrix,
unless the matrix itself is written so (`\\\\begin{pmatrix}1\\\\\\\\2\\\\end{pmatrix}`).
"""

import re

from rl_reasoner.answers.parsing.glyphs import GREEK_NAMES
from rl_reasoner.answers.parsing.vocabulary import (
    ALIAS,
    FUNCTIONS,
    PLAIN_COMMANDS,
    RELATIONS,
    STYLE,
    TEXTS,
)
from rl_reasoner.answers.tree import names

_COMMANDS = frozenset(
    FUNCTIONS | STYLE | TEXTS | GREEK_NAMES | {*RELATIONS, *ALIAS, *PLAIN_COMMANDS}
    | names(
        "frac sqrt binom sum prod int lim infty pi cup cap pm mp mathbb begin end boxed fbox circ"
        " quad qquad angle triangle ldots overline pmod mod setminus emptyset forall exists nabla"
        " partial not hat vec land lor wedge vee neg"
    )
)  # fmt: skip
_RUN = re.compile(r"(\\++)([a-zA-Z]++|.?)", re.DOTALL)


def undoubled(text: str) -> str:
    """`text` with single backslashes before its commands; linear in its length."""
    if "\\\\" not in text:
        return text
    runs = [(len(run[1]), run[2]) for run in _RUN.finditer(text)]
    known = [size for size, name in runs if name in _COMMANDS]
    if known and all(size % 2 == 0 for size in known):
        return _RUN.sub(lambda run: "\\" * ((len(run[1]) + 1) // 2) + run[2], text)
    return "".join(_parts(text))


def _parts(text: str) -> list[str]:
    """The pieces of a text in which some commands are doubled and some are not."""
    parts, at = [], 0
    inside: list[bool] = []  # of each environment that is open, whether it is doubled
    for run in _RUN.finditer(text):
        size, name = len(run[1]), run[2]
        if name == "end" and inside:
            doubled = inside.pop()
        elif inside:
            doubled = inside[-1]
        else:
            money = name == "$" and text[run.end() : run.end() + 1].isdecimal()
            doubled = size == 2 and (name in _COMMANDS or money or name in ("{", "}", "%"))
        if name == "begin":
            inside.append(doubled)
        kept = (size + 1) // 2 if doubled else size
        parts += [text[at : run.start()], "\\" * kept]
        at = run.start(2)
    return [*parts, text[at:]]
