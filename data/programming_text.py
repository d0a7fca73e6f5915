"""Programming problems about text."""

from programming import problem


@problem(1, (4, "Open door"), (0, ""), (0, "rhythm"), (5, "aEiOu"), (4, "Queue"), (1, "a-b-c"))
def count_vowels(text: str) -> int:
    """Count the letters a, e, i, o and u in `text`, small or capital."""
    return sum(letter in "aeiou" for letter in text.lower())


@problem(
    1,
    (True, "Never odd or even!"),
    (False, "palindrome"),
    (True, ""),
    (True, "?!"),
    (True, "1a2-A1"),
    (False, "ab"),
)
def is_palindrome(text: str) -> bool:
    """Tell whether the letters and digits of `text` read the same from both sides.

    All other characters and the case of letters are ignored; with none left it does.
    """
    kept = [character.lower() for character in text if character.isalnum()]
    return kept == kept[::-1]


@problem(
    1,
    ("A.B.L.", "ada byron lovelace"),
    ("P.", "Plato"),
    ("", ""),
    ("X.Y.", "  xi   yu "),
    ("J.", "jean-luc"),
)
def initials(name: str) -> str:
    """Return the capital first letter of each word of `name`, each with a full stop after it.

    Words are separated by one or more spaces.
    """
    return "".join(f"{word[0].upper()}." for word in name.split())


@problem(
    2,
    ("a3b1c2", "aaabcc"),
    ("", ""),
    ("z1", "z"),
    ("A1a1", "Aa"),
    ("x12", "x" * 12),
    ("a1b1a1b1", "abab"),
)
def run_lengths(text: str) -> str:
    """Replace each run of one letter in `text` by the letter and the length of the run."""
    from itertools import groupby

    return "".join(f"{letter}{len(list(run))}" for letter, run in groupby(text))


@problem(
    2, ("aaabcc", "a3b1c2"), ("", ""), ("z", "z1"), ("x" * 12, "x12"), ("qQ", "q1Q1"), ("m", "m1n0")
)
def expand_runs(code: str) -> str:
    """Undo a run-length code: letters, each followed by the decimal number of its repetitions."""
    import re

    return "".join(letter * int(times) for letter, times in re.findall(r"(\D)(\d+)", code))


@problem(
    1,
    ("Khoor, Zruog!", "Hello, World!", 3),
    ("abc", "xyz", 3),
    ("xyz", "abc", -3),
    ("Same", "Same", 26),
    ("", "", 5),
    ("Bb", "Aa", 53),
)
def shift_letters(text: str, by: int) -> str:
    """Move each letter A-Z and a-z of `text` on by `by` places in the alphabet, in a circle.

    `by` may be negative or more than 26. Case is kept, all other characters stay.
    """
    shifted = ""
    for letter in text:
        if letter.isascii() and letter.isalpha():
            first = ord("A" if letter.isupper() else "a")
            letter = chr(first + (ord(letter) - first + by) % 26)
        shifted += letter
    return shifted


@problem(
    1,
    ("e", "Cheese tree"),
    ("", ""),
    ("", "123 !"),
    ("a", "bA"),
    ("z", "zzZ y"),
    ("b", "cbcb"),
)
def commonest_letter(text: str) -> str:
    """Return the letter a-z that occurs most often in `text`, counting capitals as small letters.

    Of several take the first in the alphabet; with no letter at all return "".
    """
    letters = sorted(letter for letter in text.lower() if "a" <= letter <= "z")
    return max(letters, key=letters.count, default="")


@problem(
    1,
    ("stop reading this", "this reading stop"),
    ("", ""),
    ("one", "one"),
    ("b a", "  a   b "),
    ("d c b a", "a b c d"),
)
def reverse_words(text: str) -> str:
    """Return the words of `text` in reverse order, with one space between them and none around."""
    return " ".join(reversed(text.split()))


@problem(
    1,
    (True, "Listen", "Silent"),
    (False, "apple", "papels"),
    (True, "", ""),
    (True, "dormitory", "dirty room"),
    (False, "aab", "abb"),
    (False, "a", ""),
)
def is_anagram(first: str, second: str) -> bool:
    """Tell whether both texts consist of the same letters, each as often, in any order.

    Spaces and the case of letters are ignored.
    """
    return sorted(first.lower().replace(" ", "")) == sorted(second.lower().replace(" ", ""))


@problem(
    2,
    (True, "f(a[1], {x: 2})"),
    (False, "(]"),
    (True, ""),
    (False, "(("),
    (False, "())("),
    (False, "([)]"),
    (True, "no brackets"),
)
def is_balanced(text: str) -> bool:
    """Tell whether the brackets (), [] and {} in `text` are closed in the right order.

    All other characters are ignored.
    """
    closing = {"(": ")", "[": "]", "{": "}"}
    due: list[str] = []
    for character in text:
        if character in closing:
            due.append(closing[character])
        elif character in closing.values() and (not due or due.pop() != character):
            return False
    return not due


@problem(
    1,
    ("jumps", "a fox jumps"),
    ("", ""),
    ("one", "one two six"),
    ("bc", "a bc"),
    ("well-made", "well-made things"),
)
def longest_word(text: str) -> str:
    """Return the longest word of `text` (words are separated by spaces), the first of several.

    A text without words gives "".
    """
    return max(text.split(), key=len, default="")


@problem(
    2,
    ("the *** sat on the ***", "the cat sat on the mat", ["cat", "mat"]),
    ("concat", "concat", ["cat"]),
    ("*** ***", "Cat cAT", ["cat"]),
    ("", "", ["a"]),
    ("same", "same", []),
    ("* b", "a b", ["a", "c"]),
)
def censor(text: str, words: list[str]) -> str:
    """Replace each word of `text` that is in `words` by as many stars as it has letters.

    Words are separated by single spaces and are compared without regard to case. A word is
    replaced only as a whole.
    """
    hidden = {word.lower() for word in words}
    return " ".join("*" * len(w) if w.lower() in hidden else w for w in text.split(" "))


@problem(
    3,
    (["the quick", "brown fox", "jumps"], "the quick brown fox jumps", 10),
    ([], "", 5),
    (["a", "b"], "a b", 1),
    (["a b"], "a b", 3),
    (["enormously", "big"], "enormously big", 4),
    (["x yy", "zz"], " x   yy zz ", 5),
)
def wrap(text: str, width: int) -> list[str]:
    """Break `text` into lines of at most `width` characters, as many words on each as fit.

    Words are separated by one or more spaces, on a line by exactly one. A word longer than `width`
    has a line for itself.
    """
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


@problem(
    1,
    ({"to": 2, "be": 2, "or": 1, "not": 1}, "To be, or not to be."),
    ({}, ""),
    ({}, "... !"),
    ({"a": 3}, "a A,a"),
    ({"b2b": 1}, "B2B"),
)
def word_counts(text: str) -> dict[str, int]:
    """Map each word of `text`, in small letters, to how often it occurs.

    A word is a run of letters a-z, small or capital, and digits; everything else separates words.
    """
    import re
    from collections import Counter

    return dict(Counter(re.findall(r"[a-z0-9]+", text.lower())))


@problem(
    2,
    ("max_word_length", "maxWordLength"),
    ("x", "x"),
    ("", ""),
    ("point2_d", "Point2D"),
    ("a_b_c", "aBC"),
    ("already_snake", "already_snake"),
)
def to_snake_case(name: str) -> str:
    """Turn a name in camel case into small letters, with "_" before what was a capital letter.

    No "_" is put at the start.
    """
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
    return snake if name.startswith("_") else snake.removeprefix("_")


@problem(
    1,
    ("inter", ["internet", "interval", "interest"]),
    ("", []),
    ("", ["a", "b"]),
    ("one", ["one"]),
    ("", ["", "abc"]),
    ("ab", ["ab", "abc", "abd"]),
)
def common_prefix(words: list[str]) -> str:
    """Return the longest text with which all of `words` begin; without words it is ""."""
    prefix = words[0] if words else ""
    for word in words:
        while not word.startswith(prefix):
            prefix = prefix[:-1]
    return prefix


@problem(
    2,
    ({"a": ["1", "3"], "b": ["2"]}, "a=1&b=2&a=3"),
    ({}, ""),
    ({"k": [""]}, "k="),
    ({"flag": [""]}, "flag"),
    ({"x": ["1=2"]}, "x=1=2"),
    ({"a": ["1"]}, "&a=1&&"),
)
def parse_query(query: str) -> dict[str, list[str]]:
    """Map the names in a query like "a=1&b=2" to the lists of their values, in order.

    The first "=" of a part ends its name. A part without "=" is a name with the value "", and
    empty parts are skipped.
    """
    values: dict[str, list[str]] = {}
    for part in query.split("&"):
        if part:
            name, _, value = part.partition("=")
            values.setdefault(name, []).append(value)
    return values


@problem(2, (3, "abcab"), (0, ""), (1, "aaaa"), (4, "abcdbe"), (3, "dvdf"), (7, "abba cdef"))
def longest_distinct(text: str) -> int:
    """Return the length of the longest piece of `text` in which no character occurs twice."""
    start = longest = 0
    last: dict[str, int] = {}
    for place, character in enumerate(text):
        start = max(start, last.get(character, -1) + 1)
        last[character] = place
        longest = max(longest, place - start + 1)
    return longest


@problem(
    3,
    (3, "kitten", "sitting"),
    (0, "", ""),
    (4, "", "four"),
    (0, "same", "same"),
    (1, "cat", "cut"),
    (2, "ab", "ba"),
    (3, "saturday", "sunday"),
)
def edit_distance(first: str, second: str) -> int:
    """Return the least number of edits that turn `first` into `second`.

    An edit inserts, deletes or replaces one character.
    """
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        above, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            cost = min(row[j] + 1, row[j - 1] + 1, above + (a != b))
            above, row[j] = row[j], cost
    return row[-1]


@problem(
    2,
    (-1, "1.2", "1.10"),
    (0, "1.0", "1"),
    (1, "2", "1.9.9"),
    (0, "3.04", "3.4.0"),
    (-1, "0.9", "1.0"),
    (1, "1.0.1", "1"),
)
def compare_versions(first: str, second: str) -> int:
    """Return -1, 0 or 1 for a first version that is older than, as old as or newer than the second.

    Versions are whole numbers joined by dots and are compared number by number; missing numbers
    count as 0.
    """
    from itertools import zip_longest

    for a, b in zip_longest(first.split("."), second.split("."), fillvalue="0"):
        if int(a) != int(b):
            return -1 if int(a) < int(b) else 1
    return 0
