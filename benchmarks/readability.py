"""How easy the documents are to read, now and at an earlier commit; and passages of both.

    python benchmarks/readability.py              # the pages as they are
    python benchmarks/readability.py 83be789      # beside what they were at that commit
    python benchmarks/readability.py 83be789 --passages 10

Prose alone is measured: no code, tables, headings, links' targets or formulas. A sentence ends at a
full stop, colon, question or exclamation mark, or with its paragraph or item. "Flesch" is Flesch's
reading ease (206.835 - 1.015 words a sentence - 84.6 syllables a word): 30 to 50 is a paper, 60 to
70 plain English. Syllables are counted by groups of vowels, so compare two versions, not two
languages. A passage is a paragraph whose sentences have become shorter, with what it was.
"""

import argparse
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in ("evaluation", "forecasts", "grpo", "moe", "r1", "reliability")
    ),
    *(f"docs/{name}.md" for name in ("sandbox", "scaling", "trainer", "verifier")),
    *(f"docs/{name}.md" for name in ("hacking-meter", "judges", "audit")),
    *(f"docs/tutorials/{name}.md" for name in ("first-run", "own-reward", "evaluate")),
)
LONG = 25  # words, from which a sentence counts as long
SAME = 0.5  # how like its words a paragraph has to be to what it was


@dataclass(frozen=True)
class Measure:
    """Figures of a text: words, sentences, syllables, and how many sentences are long."""

    words: int
    sentences: int
    syllables: int
    long: int

    @property
    def length(self) -> float:
        """Words a sentence."""
        return self.words / max(self.sentences, 1)

    @property
    def flesch(self) -> float:
        """Flesch's reading ease."""
        return 206.835 - 1.015 * self.length - 84.6 * self.syllables / max(self.words, 1)

    def shown(self) -> str:
        """The cells of a table's row."""
        share = 100 * self.long / max(self.sentences, 1)
        return f"{self.words:,} | {self.length:.1f} | {share:.0f}% | {self.flesch:.0f}"


def paragraphs(text: str) -> Iterator[str]:
    """The prose of a document: paragraphs and items of lists, each in one line."""
    text = re.sub(r"^```.*?^```$|\$\$.*?\$\$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(?:#|\||!\[| {4}\S).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^\s*(?:[-*]|\d+\.)\s", "\n", text, flags=re.MULTILINE)
    for block in re.split(r"\n\s*\n", text):
        if line := " ".join(block.split()):
            yield line


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph, those with a word in them."""
    plain = re.sub(r"[*_]", "", re.sub(r"`[^`]*`|\$[^$]*\$", "code", paragraph))
    found = re.split(r"(?<=[.?!:])[)\"]?\s+(?=[A-Z`\"(]|code\b)", plain)
    return [one for one in found if words(one)]


def words(text: str) -> list[str]:
    """The words of a text; figures are none."""
    return re.findall(r"[A-Za-z]+(?:['-][A-Za-z]+)*", text)


def syllables(word: str) -> int:
    """About how many syllables a word has."""
    plain = re.sub(r"(?:[^laeiouy]es|ed|[^laeiouy]e)$", "", word.lower())
    return max(1, len(re.findall(r"[aeiouy]+", plain)))


def measured(text: str) -> Measure:
    """The figures of a document's prose."""
    said = [words(one) for part in paragraphs(text) for one in sentences(part)]
    return Measure(
        sum(map(len, said)),
        len(said),
        sum(syllables(word) for one in said for word in one),
        sum(len(one) > LONG for one in said),
    )


def at(commit: str, page: str) -> str:
    """A page as it was at a commit; empty where it was not there."""
    command = ["git", "-C", str(ROOT), "show", f"{commit}:{page}"]
    return subprocess.run(command, capture_output=True, text=True).stdout


def passages(page: str, before: str, now: str) -> Iterator[tuple[float, str, str, str]]:
    """(how much shorter the sentences are, page, what it was, what it is) of changed paragraphs."""
    old = [part for part in paragraphs(before) if len(words(part)) > LONG]
    for part in paragraphs(now):
        if not LONG < len(words(part)) < 5 * LONG or part in old:
            continue
        like = [SequenceMatcher(None, words(one), words(part)).ratio() for one in old]
        if like and max(like) > SAME:
            was = old[like.index(max(like))]
            yield measured(was).length - measured(part).length, page, was, part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("commit", nargs="?", help="an earlier commit to compare with")
    parser.add_argument("--passages", type=int, default=0, help="so many, before and after")
    given = parser.parse_args()
    cells = "words | words a sentence | long ones | Flesch"
    sides = ("before: ", "now: ") if given.commit else ("",)
    print("| page | " + " | ".join(side + cells for side in sides) + " |")
    print("|---|" + "---|" * 4 * len(sides))
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
    earlier = {page: at(given.commit, page) for page in PAGES} if given.commit else {}
    for page, text in texts.items():
        was = earlier.get(page, "")
        shown = [measured(was).shown() if was else "– | – | – | –"] if given.commit else []
        print(f"| {page} | {' | '.join([*shown, measured(text).shown()])} |")
    changed = (one for page in earlier for one in passages(page, earlier[page], texts[page]))
    once = {was: (page, now) for _, page, was, now in sorted(changed)}  # the greatest change
    best = reversed([*once.items()][len(once) - given.passages :])
    for number, (was, (page, now)) in enumerate(best, 1):
        print(f"\n{number}. {page}\n\n   before: {was}\n\n   now: {now}")


if __name__ == "__main__":
    main()
