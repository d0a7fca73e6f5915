"""The tables of combinations in docs/scaling.md, written anew: `python docs/matrix.py`.

tests/project/test_combinations.py fails where the page has other ones.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.combinations import page, tables

MARKS = re.compile(r"(<!-- the combinations -->\n\n).*?(\n<!-- their end -->)", re.DOTALL)

if __name__ == "__main__":
    text = page().read_text(encoding="utf-8")
    page().write_text(MARKS.sub(lambda m: m[1] + tables() + m[2], text), encoding="utf-8")
