"""What the verbs print with: results on standard output, all else on standard error."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

err = Console(stderr=True)
# a file or a pipe has no edge: tables that go there are not squeezed
out = Console(width=None if sys.stdout.isatty() else 200)


def emit(as_json: bool, value: Mapping[str, Any], shown: Any) -> None:
    """Print a verb's result: `value` as JSON, or what a reader sees (`shown`)."""
    if as_json:
        print(json.dumps(value, ensure_ascii=False), flush=True)
    else:  # a text goes out as it is: no markup, no line broken
        whole = not isinstance(shown, Table)
        out.print(shown, markup=False, highlight=False, soft_wrap=whole)


def new_table(*columns: str) -> Table:
    """An empty table of our look, with these columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
