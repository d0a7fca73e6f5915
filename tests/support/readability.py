"""How hard a text is to read: words a sentence, long sentences, Flesch's reading ease.

Of the prose of a document in English: no blocks of code, tables, headings or addresses.
`python tests/support/readability.py FILE …` prints a line for each.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LONG = 30  # words: a sentence that one has to read twice


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
    return re.sub(r"`([^`]*)`", "term", text).replace("*", "")


def syllables(word: str) -> int:
    """About how many a word has: groups of vowels, without a silent e."""
    groups = len(re.findall(r"[aeiouy]+", word.lower()))
    return max(1, groups - (word.lower().endswith("e") and not word.lower().endswith("le")))


def readability(markdown: str) -> Readability:
    """Measure a document. A text without a word raises `ValueError`."""
    sentences = [
        words
        for paragraph in re.split(r"\n\s*\n", prose(markdown))
        for sentence in re.split(r"(?<=[.!?:])\s+(?=[A-Z])", " ".join(paragraph.split()))
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


def main(files: Sequence[str]) -> None:
    """Print a table of the files' figures."""
    print("| document | words | words a sentence | over 30 words | Flesch |\n|---|---|---|---|---|")
    for file in files:
        found = readability(Path(file).read_text(encoding="utf-8"))
        shares = f"{found.words_a_sentence:.1f} | {found.long_sentences:.0%} | {found.flesch:.0f}"
        print(f"| {file} | {found.words} | {shares} |")


if __name__ == "__main__":
    main(sys.argv[1:])
