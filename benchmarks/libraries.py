"""What this project computes itself, beside the libraries that it could take it from.

    python benchmarks/libraries.py statistics    # scipy, of the extra dev
    python benchmarks/libraries.py languages     # py3langid, lingua-language-detector: if installed

Statistics: the largest difference of the figures on random inputs, and seconds at 10,000 problems.
Languages: how far the share of a target language is from the true one. A library decides between
the languages of one script, in place of the common words; all else stays. Texts are those of the
tests, chains mixed of their sentences in two languages with formulas between, and the solutions of
MATH-500 beside the checkout (`../shared/data`), which are English.
"""

import importlib
import importlib.util
import json
import random
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rl_reasoner.evaluation import statistics
from rl_reasoner.language import identification

TEXTS = Path(__file__).parent.parent / "tests" / "language"
MATH = Path(__file__).parent.parent.parent / "shared" / "data" / "math500.jsonl"
FORMULAS = ("$x^2+3x=7$. ", "3+4=7. ", "\\(\\frac{1}{2}\\) ", "x = 5. ", "`print(3)` ", "")
SHORTEST = 12  # letters that a library is asked about: below, a sentence counts for the target


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def timed(work: Callable[[], object]) -> tuple[object, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def compare_statistics() -> None:
    stats, seconds = timed(lambda: importlib.import_module("scipy.stats"))
    print(f"import scipy.stats: {seconds:.1f} s, {memory():.0f} MB in all")
    rng = np.random.default_rng(0)
    apart = {"Wilson": 0.0, "McNemar": 0.0, "sign flips": 0.0}
    for _ in range(500):
        n = int(rng.integers(1, 5000))
        k, only_a, only_b = (int(rng.integers(0, most)) for most in (n + 1, 300, 300))
        few = rng.choice([-0.5, 0.0, 0.25, 0.75], int(rng.integers(2, 9)))
        flipped = stats.permutation_test((few,), np.mean, permutation_type="samples")
        theirs = {
            "Wilson": stats.binomtest(k, n).proportion_ci(0.95, "wilson").low,
            "McNemar": stats.binomtest(only_a, max(1, only_a + only_b)).pvalue,
            "sign flips": flipped.pvalue,
        }
        ours = {
            "Wilson": statistics.wilson(k, n)[0],
            "McNemar": statistics.mcnemar(only_a, only_b),
            "sign flips": statistics.sign_flips(few.tolist()),
        }
        apart = {name: max(most, abs(ours[name] - theirs[name])) for name, most in apart.items()}
    print("largest difference:", ", ".join(f"{name} {value:.0e}" for name, value in apart.items()))
    a, b = (rng.binomial(8, rng.beta(0.5, 0.5, 10_000)) / 8 for _ in "ab")
    drawn = {"n_resamples": 10_000, "batch": 500, "rng": np.random.default_rng(0)}
    flips = {"permutation_type": "samples", **drawn}
    for name, ours, theirs in (
        ("bootstrap", lambda: statistics.bootstrap(a.tolist()), lambda: resampled(stats, a, drawn)),
        (
            "sign flips",
            lambda: statistics.sign_flips((a - b).tolist()),
            lambda: stats.permutation_test((a - b,), np.mean, **flips).pvalue,
        ),
    ):
        (x, ours_s), (y, theirs_s) = timed(ours), timed(theirs)
        print(f"{name}, 10,000 problems: ours {x} in {ours_s:.3f} s, scipy {y} in {theirs_s:.1f} s")
    print("20 right of 20: ours", statistics.bootstrap([1.0] * 20), "scipy (1.0, 1.0)")


def resampled(stats: Any, values: Any, drawn: dict[str, Any]) -> tuple[float, ...]:
    found = stats.bootstrap((values,), np.mean, method="percentile", **drawn)
    return tuple(map(float, found.confidence_interval))


def memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def py3langid() -> Callable[[str, tuple[str, ...]], str]:
    from py3langid import rank

    return lambda text, own: next(language for language, _ in rank(text) if language in own)


def lingua() -> Callable[[str, tuple[str, ...]], str]:
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    def code(language: str) -> IsoCode639_1:
        return getattr(IsoCode639_1, language.upper())

    made = {
        own: LanguageDetectorBuilder.from_iso_codes_639_1(*map(code, own)).build()
        for _, own in identification._SCRIPTS.values()
        if len(own) > 1 and "zh" not in own
    }

    def ask(text: str, own: tuple[str, ...]) -> str:
        language = made[own].detect_language_of(text)
        return language.iso_code_639_1.name.lower() if language else own[0]

    return ask


def compare_languages() -> None:
    common_words = identification._language
    for name, load in (("common words", None), ("py3langid", py3langid), ("lingua", lingua)):
        if load and not importlib.util.find_spec(name):
            print(f"{name}: not installed")
            continue
        before, start = memory(), time.perf_counter()
        ask = load() if load else None
        if ask:
            ask("The first question loads the model.", identification._SCRIPTS["latin"][1])
        started = time.perf_counter() - start, memory() - before

        def decided(script: str, words: list[str], kana: bool, target: str, ask=ask) -> str:
            own = identification._SCRIPTS[script][1]
            text = " ".join(words)
            if ask is None or script == "han" or len(own) == 1:
                return common_words(script, words, kana, target)
            if len(text) < SHORTEST:
                return target if target in own else own[0]
            return ask(text, own)

        identification._language = decided
        print(
            f"{name}: loaded in {started[0]:.1f} s, {started[1]:.0f} MB more",
            *measured(),
            sep="\n  ",
        )
    identification._language = common_words


def measured() -> list[str]:
    """A line for each kind of text."""
    near = []
    for row in rows_of(TEXTS / "language_texts.jsonl"):
        share, true = identification.language_share(row["text"], row["target"]).value, row["share"]
        near.append(share is true or (None not in (share, true) and abs(share - true) <= 0.12))
    lines = [f"  texts of the tests: {sum(near)} of {len(near)} within 0.12"]
    errors, seconds = timed(mixed)
    each = f"{1e6 * seconds / len(errors):.0f} us each"
    lines.append(f"  mixed chains: mean error {sum(errors) / len(errors):.4f}, {each}")
    texts = [row["solution"] for row in rows_of(MATH)] if MATH.is_file() else []
    if texts:
        shares = [identification.language_share(text, "en").value for text in texts]
        known = [share for share in shares if share is not None]
        below, mean = sum(share < 0.95 for share in known), sum(known) / len(known)
        lines.append(f"  MATH-500: {mean:.4f} English, below 0.95 in {below} of {len(known)}")
    return lines


def mixed() -> list[float]:
    """The errors on chains of a target language with sentences of English or Chinese."""
    sentences = {row["language"]: row["sentences"] for row in rows_of(TEXTS / "sentences.jsonl")}
    rng, errors = random.Random(0), []
    for target in ("en", "zh", "de", "fr", "es", "it", "pt", "nl", "ru", "uk"):
        for other in [each for each in ("en", "zh") if each != target]:
            for _ in range(60):
                chain, counts = "", {target: 0, other: 0}
                for _ in range(rng.randint(3, 10)):
                    language = rng.choice([target, target, target, other])
                    sentence = rng.choice(sentences[language])
                    counts[language] += len(re.findall(r"[^\W\d_一-鿿]+|[一-鿿]{1,2}", sentence))
                    chain += f"{sentence} {rng.choice(FORMULAS)}"
                share = identification.language_share(chain, target).value or 0.0
                errors.append(abs(share - counts[target] / sum(counts.values())))
    return errors


if __name__ == "__main__":
    for which in sys.argv[1:] or ("statistics", "languages"):
        {"statistics": compare_statistics, "languages": compare_languages}[which]()
