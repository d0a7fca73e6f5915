"""What the verbs print with: results on standard output, all else on standard error."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

err = Console(stderr=True)
out = Console()
_PIPE = 200  # columns of tables where there is no terminal: a file or a pipe has no edge


def emit(as_json: bool, value: Mapping[str, Any], shown: Any) -> None:
    """Print a verb's result: `value` as JSON, or what a reader sees (`shown`)."""
    if as_json:
        print(json.dumps(value, ensure_ascii=False))
    else:  # a text goes out as it is: no markup, no line broken
        whole = not isinstance(shown, Table)
        width = None if out.is_terminal else _PIPE
        out.print(shown, markup=False, highlight=False, soft_wrap=whole, width=width)


def new_table(*columns: str) -> Table:
    """An empty table of our look, with these columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
