"""Units: what counts as the same unit, however it is spelled.

`canonical_unit` turns the words after (or the sign before) a value into one spelling, a product of
base names with powers. Nothing is converted: a centimetre is not a metre. Words that are no known
unit ("people", "as required") stay themselves, without plural and articles.
"""

import re
from functools import lru_cache
from itertools import pairwise

from rl_reasoner.answers.tree import names

_ALIASES = """
mm millimeter millimetre 毫米
cm centimeter centimetre 厘米
dm decimeter decimetre 分米
m meter metre 米
km kilometer kilometre 千米 公里
inch inches in
foot feet ft
yard yd
mile mi
mg milligram 毫克
g gram gramme gm 克
kg kilogram kilo 千克 公斤
ton tonne 吨
pound lb lbs £ gbp sterling
oz ounce
ml milliliter millilitre mL 毫升
l liter litre L 升
gallon gal
second sec s 秒 secs
minute min mins 分钟 分
hour hr h hrs 小时 时
day 天 日
week wk 周
month 月
year yr yrs 年
dollar $ usd US$ bucks 美元
cent ¢
euro € eur 欧元
yuan ¥ rmb cny 元 块
rupee ₹ rs inr
yen 日元 jpy
degree deg ° 度
radian rad
celsius °c degc
fahrenheit °f degf
newton N
joule J
kilojoule kJ
electronvolt eV
kilowatthour kWh
watthour Wh
watt W
kilowatt kW
volt V
ampere amp A
ohm Ω
hertz Hz
kilohertz kHz
megahertz MHz
gigahertz GHz
pascal Pa
kilopascal kPa
megapascal MPa
kilobyte KB kB
megabyte MB
gigabyte GB
terabyte TB
nanometer nanometre nm
micrometer micrometre micron microm
microgram microg
microliter microlitre microl microL
microsecond micros
kiloohm kohm
megaohm Mohm
pint pt
quart qt
rpm
bpm
cc
kelvin K
mol mole
unit units 单位
person people 人 persons
child children
piece 块 个 只 支 本 页 颗 件 条 枚 张 盒 瓶 袋 棵 辆 名 位 元素
"""
_POWERS = dict.fromkeys(("square", "sq", "squared", "平方"), 2)
_POWERS |= dict.fromkeys(("cubic", "cu", "cubed", "立方"), 3)
_COMPOUND = {"mph": "mile/hour", "kph": "km/hour", "kmh": "km/hour", "mps": "m/second"}
_DEGREES_OF = re.compile(r"\bdegrees?\s+(celsius|fahrenheit)\b", re.IGNORECASE)
_EXTENTS = names("long wide tall high deep thick")
_EMPTY = _EXTENTS | names(
    "a an the of all total only about approximately around exactly roughly is are old"
)
_AFTER_A_UNIT = _EXTENTS | _POWERS.keys() | {"per"}
_CASED = {"N", "J", "W", "V", "A", "K", "L", "T", "C", "F"}


def _names() -> dict[str, str]:
    table: dict[str, str] = {}
    for line in _ALIASES.strip().splitlines():
        base, *others = line.split()
        if base == "piece":  # Chinese measure words count things, each its own unit
            table.update({word: word for word in others if not word.isascii()})
        for name in (base, *others):
            table.setdefault(name, base)
            if name.isascii() and len(name) > 2:
                table.setdefault(name + "s", base)
                table.setdefault(name + "es", base)
    return table


_NAMES = _names()
SOFT = names("m g s h L l N J W V A K nm pt qt MB GB KB kB TB eV cc")
"""Letters that may be a bare unit after a number and a space, or variables."""

LETTER_RUNS = frozenset(
    name
    for name in _NAMES
    if name.isalpha() and name.isascii() and len(name) >= 2 and name not in SOFT
) | frozenset(_COMPOUND)
"""Spellings of at least two letters that the lexer reads as a unit after a number."""

MONEY = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yuan", "₹": "rupee", "¢": "cent"}

CURRENCIES = frozenset({"USD", "EUR", "GBP", "CNY", "RMB", "INR", "JPY"})
"""Codes of money, read as words wherever they stand."""

_PART = re.compile(r"[a-zA-Z°Ω$€£¥₹¢\u4e00-\u9fff'’-]+|\^|\*|/|-?\d+|[()]")


def _base(word: str) -> str:
    if word in _NAMES:
        return _NAMES[word]
    low = word.lower()
    if low in _NAMES and word not in _CASED:
        return _NAMES[low]
    if not low.isascii():
        return low
    if low.endswith("ies") and len(low) > 4:
        return low[:-3] + "y"
    if low.endswith("es") and low[:-2].endswith(("s", "x", "ch", "sh")):
        return low[:-2]
    return low[:-1] if low.endswith("s") and not low.endswith("ss") and len(low) > 3 else low


@lru_cache(maxsize=2048)
def canonical_unit(text: str) -> str:
    """One spelling for the unit that `text` names; an empty string where it names none.

    `km/h`, "kilometers per hour" and "km per hr" give the same; "cm^2", "square centimeters" and
    "cm squared" too.
    """
    for chinese, power in (("平方", "square "), ("立方", "cubic "), ("每", " per ")):
        text = text.replace(chinese, power)
    for name, spelled in _COMPOUND.items():
        text = re.sub(rf"\b{name}\b", spelled, text)
    text = _DEGREES_OF.sub(r"\1", text)
    powers: dict[str, int] = {}
    sign, pending, last = 1, 1, ""
    parts = _parts(text)
    for position, part in enumerate(parts):
        if part in ("/", "per"):
            sign = -1
        elif part == "^" or part in "()*":
            continue
        elif part.lstrip("-").isdigit():
            if last and position and parts[position - 1] == "^":
                powers[last] += sign * (int(part[:4]) - 1)
        elif part.lower() in _POWERS:
            if part.lower() in ("squared", "cubed") and last:
                powers[last] += sign * (_POWERS[part.lower()] - 1)
            else:
                pending = _POWERS[part.lower()]
        elif part.lower() not in _EMPTY:
            last = _base(part)
            powers[last] = powers.get(last, 0) + sign * pending
            pending = 1
    if pending > 1:  # "5 cm sq"; "5 square" is in square units
        more = pending - 1 if last else pending
        powers[last or "unit"] = powers.get(last, 0) + sign * more
    return " ".join(f"{name}^{power}" for name, power in sorted(powers.items()) if power)


def _parts(text: str) -> list[str]:
    """The words and signs of a unit; without an "in" that another word follows ("in total")."""
    return [
        part
        for part, after in pairwise([*_PART.findall(text), ""])
        if part.lower() != "in" or not after[:1].isalpha() or after.lower() in _AFTER_A_UNIT
    ]


def is_known_unit(text: str) -> bool:
    """Whether every word of `text` is a unit of the table (no remark in words)."""
    words = [part for part in _parts(text) if part[0].isalpha() or not part.isascii()]
    rest = [w for w in words if w.lower() not in _POWERS and w.lower() not in _EMPTY and w != "per"]
    return bool(rest) and all(
        w in _NAMES or w in _COMPOUND or (w.lower() in _NAMES and w not in _CASED) for w in rest
    )
