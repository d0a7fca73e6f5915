"""Unicode mathematics into the ASCII and LaTeX spelling that the lexer reads.

Full-width forms, super- and subscripts, vulgar fractions, Greek letters, mathematical alphabets and
signs; invisible characters vanish. ASCII text passes through untouched.
"""

import re
import unicodedata

_SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "×": r"\times ", "✕": r"\times ",
    "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "•": r"\cdot ", "∗": "*", "÷": r"\div ",
    "⁄": "/", "∕": "/", "√": r"\usqrt ", "∛": r"\ucbrt ", "∞": r"\infty ", "±": r"\pm ",
    "∓": r"\mp ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≦": r"\le ",
    "≧": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≅": r"\cong ", "≡": r"\equiv ", "∼": r"\sim ",
    "∈": r"\in ", "∉": r"\notin ", "∪": r"\cup ", "∩": r"\cap ", "∖": r"\setminus ",
    "∅": r"\emptyset ", "⌀": r"\emptyset ", "ø": r"\emptyset ", "Ø": r"\emptyset ",
    "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ", "∠": r"\angle ", "△": r"\triangle ",
    "°": r"^\circ ", "º": r"^\circ ", "˚": r"^\circ ", "℃": r"^\circ C", "℉": r"^\circ F",
    "′": "'", "″": "''", "’": "'", "‘": "'", "“": '"', "”": '"', "「": '"', "」": '"',
    "⟨": r"\langle ", "⟩": r"\rangle ", "〈": r"\langle ", "〉": r"\rangle ", "⌊": r"\lfloor ",
    "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "∣": "|", "❘": "|", "¦": "|",
    "∶": ":", "…": r"\ldots ", "⋯": r"\ldots ", "、": ",", "，": ",", "。": ".", "｡": ".",
    "；": ";", "：": ":", "！": "!", "？": "?", "（": "(", "）": ")", "【": "[", "】": "]",
    "［": "[", "］": "]", "｛": "{", "｝": "}", "＂": '"', "￥": "¥", "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "→": r"\to ", "⇒": r"\Rightarrow ", "∧": r"\land ", "∨": r"\lor ", "ƒ": "f", "∘": r"\circ ",
    "ℯ": "e", "ⅈ": "i", "ⅇ": "e", "％": "%", "﹪": "%", "＾": "^", "∆": r"\Delta ", "µ": r"\mu ",
    "Ω": r"\Omega ", "ℓ": r"\ell ", "ı": "i", "\u2061": "", "\u2062": "", "\u2063": ",",
    "\u200b": "", "\u200c": "", "\u200d": "", "\u2060": "", "\ufeff": "", "\u00ad": "",
    "\ufe0f": "", "\u200e": "", "\u200f": "",
}  # fmt: skip
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ϵ": "epsilon",
    "ζ": "zeta", "η": "eta", "θ": "theta", "ϑ": "theta", "ι": "iota", "κ": "kappa", "λ": "lambda",
    "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "ς": "sigma",
    "τ": "tau", "υ": "upsilon", "φ": "phi", "ϕ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega",
    "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma",
    "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
GREEK_NAMES = frozenset(_GREEK.values()) | {"varepsilon", "vartheta", "varphi", "varrho", "ell"}
_SUPER = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣʸᵃᵇᵏᵐᵗ", "0123456789+-=()nixyabkmt", strict=True))
_SUB = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₒₓₙₖₘᵢⱼ", "0123456789+-=()aeoxnkmij", strict=True))

_CIRCLED = {chr(0x2460 + n): rf"\textcircled{{{n + 1}}}" for n in range(20)}

_LETTERS = {sign: f"\\{name} " for sign, name in _GREEK.items()}
_TABLE = str.maketrans({**_SIGNS, **_CIRCLED, **_LETTERS})
_SUPERS = re.compile(f"[{re.escape(''.join(_SUPER))}]+")
_SUBS = re.compile(f"[{re.escape(''.join(_SUB))}]+")
_FRACTION = re.compile("[¼-¾⅐-⅞↉]")
_REPEATED = re.compile("((?:[0-9][\u0304\u0305\u0307])+)")


def _fraction(match: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", match[0]).partition("⁄")
    return rf"\frac{{{top}}}{{{bottom}}}"


def _repeated(match: re.Match[str]) -> str:
    return rf"\overline{{{''.join(char for char in match[0] if char.isdigit())}}}"


def ascii_mathematics(text: str) -> str:
    """`text` with Unicode mathematics spelled in ASCII and LaTeX; other scripts stay as they are.

    Bold and italic mathematical alphabets and full-width characters become plain letters.
    """
    if text.isascii():
        return text
    text = _SUPERS.sub(lambda m: "^{" + "".join(_SUPER[c] for c in m[0]) + "}", text)
    text = _SUBS.sub(lambda m: "_{" + "".join(_SUB[c] for c in m[0]) + "}", text)
    text = _REPEATED.sub(_repeated, _FRACTION.sub(_fraction, text))
    text = unicodedata.normalize("NFKC", text.translate(_TABLE))
    return text.translate(_TABLE)  # NFKC may have made new signs (full-width, alphabets)
