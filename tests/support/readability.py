"""How hard a text is to read: words a sentence, long sentences, Flesch's reading ease.

Of the prose of a document in English: no blocks of code, tables, headings or addresses.

    python tests/support/readability.py README.md docs/*.md     # a line for each
    python tests/support/readability.py README.md docs/*.md --since 317ecee --passages 10

With `--since`, beside what the files were at that commit. `--passages` shows paragraphs whose
sentences have become shorter, with what each was.
"""

import argparse
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

LONG = 30  # words: a sentence that one has to read twice
SAME = 0.5  # from which likeness of its words a paragraph is the one of before
_END = re.compile(r"(?:(?<=[.!?:])|(?<=[.!?]\)))\s+(?=[(\"]?[A-Z])")  # between two sentences


@dataclass(frozen=True)
class Readability:
    """Of one text: `flesch` is about 60 for plain English, 30 for a scientific paper."""

    words: int
    sentences: int
    words_a_sentence: float
    long_sentences: float  # share of 1
    flesch: float


def prose(markdown: str) -> str:
    """What is read aloud of a document, a paragraph or a list item a line."""
    text = re.sub(r"^```.*?^```\n?", "", markdown, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not re.match(r"\s*(\||#|!\[|    \S)", line)]
    text = "\n".join(re.sub(r"^\s*(?:[-*]|\d+\.)\s", "\n", line) for line in lines)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"`([^`]*)`", "Term", text).replace("*", "")


def syllables(word: str) -> int:
    """About how many a word has: groups of vowels, without a silent e."""
    groups = len(re.findall(r"[aeiouy]+", word.lower()))
    return max(1, groups - (word.lower().endswith("e") and not word.lower().endswith("le")))


def readability(markdown: str) -> Readability:
    """Measure a document. A text without a word raises `ValueError`."""
    sentences = [
        words
        for paragraph in re.split(r"\n\s*\n", prose(markdown))
        for sentence in _END.split(" ".join(paragraph.split()))
        if (words := re.findall(r"[A-Za-z][A-Za-z'-]*", sentence))
    ]
    every = [word for words in sentences for word in words]
    if not every:
        raise ValueError("there is no word in it")
    mean = len(every) / len(sentences)
    sound = sum(map(syllables, every)) / len(every)
    long = sum(len(words) > LONG for words in sentences) / len(sentences)
    flesch = 206.835 - 1.015 * mean - 84.6 * sound
    return Readability(len(every), len(sentences), mean, long, flesch)


def row(text: str) -> str:
    """The figures of a document as the cells of a table's row; dashes for one without a word."""
    if not prose(text).strip():
        return "– | – | – | –"
    found = readability(text)
    shares = f"{found.words_a_sentence:.1f} | {found.long_sentences:.0%} | {found.flesch:.0f}"
    return f"{found.words:,} | {shares}"


def at(commit: str, file: str) -> str:
    """A file as it was at a commit; empty where it was not there."""
    command = ["git", "show", f"{commit}:./{file}"]
    return subprocess.run(command, capture_output=True, text=True).stdout


def paragraphs(markdown: str) -> list[list[str]]:
    """The words of each paragraph that is more than a line or two."""
    parts = (part.split() for part in re.split(r"\n\s*\n", prose(markdown)))
    return [words for words in parts if len(words) > LONG]


def shortened(before: str, now: str) -> Iterator[tuple[float, str, str]]:
    """(words a sentence that it has less, what it was, what it is) of each changed paragraph."""
    old = paragraphs(before)
    for words in (part for part in paragraphs(now) if part not in old):
        likeness = [SequenceMatcher(None, part, words).ratio() for part in old]
        if likeness and max(likeness) > SAME:
            was, new = " ".join(old[likeness.index(max(likeness))]), " ".join(words)
            less = readability(was).words_a_sentence - readability(new).words_a_sentence
            yield less, was, new


def main() -> None:
    """Print a table of the files' figures, and passages if they are wanted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", nargs="+")
    parser.add_argument("--since", metavar="COMMIT")
    parser.add_argument("--passages", type=int, default=0, metavar="N")
    given = parser.parse_args()
    cells = "words | words a sentence | over 30 words | Flesch"
    sides = 1 + bool(given.since)
    print(f"| document | {' | '.join(['before: ' + cells, 'now: ' + cells][-sides:])} |")
    print(f"|---|{'---|' * 4 * sides}")
    found: list[tuple[float, str, str, str]] = []
    for file in given.files:
        texts = [Path(file).read_text(encoding="utf-8")]
        if given.since:
            texts.insert(0, at(given.since, file))
            found += [(less, file, was, now) for less, was, now in shortened(*texts)]
        print(f"| {file} | {' | '.join(map(row, texts))} |")
    for _, file, was, now in sorted(found, reverse=True)[: given.passages]:
        print(f"\n{file}\n  before: {was}\n  now: {now}")


if __name__ == "__main__":
    main()
