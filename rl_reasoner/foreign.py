"""What others wrote: JSON and YAML read within bounds, texts made fit to be shown.

A run folder, a recipe, a row or a completion may come from anywhere. What cannot be read, or would
unfold to more than a reader bears (brackets without end, numbers of thousands of digits, aliases of
aliases), is a ValueError or a `UserError`, before anything is made of it.
"""

import json
import math
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from rl_reasoner.errors import UserError

MOST_DIGITS = 300  # of a whole number: a float has some more
MOST_DEPTH = 64  # lists and objects within each other
MOST_VALUES = 100_000  # of a YAML text, aliases unfolded
MOST_YAML = 1 << 20  # bytes
# Control characters (tab and newline aside) and lone surrogates: neither HTML nor UTF-8 can hold
# them. The bidirectional overrides go too: with them a text can read as other than it is.
_UNSHOWABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)


def json_value(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError where it is none, or out of bounds."""
    try:
        value = json.loads(text, parse_int=_whole)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    brackets = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    if sum(map(text.count, brackets)) > MOST_DEPTH:  # type: ignore[arg-type]
        _check_depth(value)
    return value


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong with a text whose bytes are not UTF-8, and what to do."""
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start}): save it as UTF-8"


def json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `UserError` where there is none that can be read."""
    try:
        value = json_value(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: {not_utf8(error)}") from error
    except ValueError as error:
        raise UserError(f"{file}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value


def number(value: Any) -> float | None:
    """`value` as a float when it is a finite number, otherwise None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` when it is a mapping, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def printable(text: str) -> str:
    """`text` with line ends made "\\n" and every character that cannot be shown made "\\ufffd"."""
    return _UNSHOWABLE.sub("\ufffd", text.replace("\r\n", "\n"))


def printable_json(text: str) -> str:
    """A JSON text with every character that cannot be shown as JSON's own escape: equal values."""
    return _UNSHOWABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def yaml_value(text: str, loader: type[yaml.SafeLoader]) -> tuple[yaml.Node | None, Any]:
    """The node of a YAML text as it is written, for places in it, and its value.

    Raises `yaml.YAMLError` where it is none or out of bounds: with `problem`, mostly with its mark.
    """
    if len(text) > MOST_YAML:
        raise yaml.MarkedYAMLError(problem=f"more than {MOST_YAML:,} characters")
    reader = loader(text)
    try:
        node = reader.get_single_node()
        if node is None:
            return None, None
        _count(node, {}, ())
        written = deepcopy(node)  # the value is made by merging `<<` into the nodes
        return written, reader.construct_document(node)
    except yaml.YAMLError:
        raise
    except RecursionError as error:
        raise yaml.MarkedYAMLError(problem=_TOO_DEEP) from error
    except Exception as error:  # a tag on a text that it does not suit makes it raise anything
        raise yaml.MarkedYAMLError(problem=f"an impossible value: {error}") from error
    finally:
        reader.dispose()


_TOO_DEEP = f"nested more than {MOST_DEPTH} deep"


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a whole number of {len(digits):,} digits")
    return int(digits)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEPTH):
        inner = [v.values() if isinstance(v, Mapping) else v for v in level]
        level = [v for part in inner for v in part if isinstance(v, (dict, list))]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _count(node: yaml.Node, counted: dict[int, int], above: tuple[int, ...]) -> int:
    """How many values a node unfolds to; one that is aliased counts each time, and is walked once.

    Raises `yaml.YAMLError` where they are too many, within each other or without end.
    """
    if id(node) in counted:
        return counted[id(node)]
    if id(node) in above or len(above) >= MOST_DEPTH:
        raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=node.start_mark)
    if isinstance(node, yaml.ScalarNode):
        number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if number and len(node.value) > MOST_DIGITS:
            said = f"a number of {len(node.value):,} digits"
            raise yaml.MarkedYAMLError(problem=said, problem_mark=node.start_mark)
    pairs = isinstance(node, yaml.MappingNode)
    inner = [n for pair in node.value for n in pair] if pairs else node.value
    parts = inner if isinstance(node, yaml.CollectionNode) else ()
    size = 1 + sum(_count(part, counted, (*above, id(node))) for part in parts)
    if size > MOST_VALUES:
        said = f"aliases that unfold to more than {MOST_VALUES:,} values"
        raise yaml.MarkedYAMLError(problem=said, problem_mark=node.start_mark)
    counted[id(node)] = size
    return size
