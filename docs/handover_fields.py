"""The table of fields in docs/handover.md, written anew: `python docs/handover_fields.py`.

tests/handover/test_handover.py fails where the page has another one.
"""

import re
from pathlib import Path

from rl_reasoner.handover.fields import field_table
from rl_reasoner.handover.verl import FIELDS

PAGE = Path(__file__).parent / "handover.md"

if __name__ == "__main__":
    made = field_table(FIELDS)
    marks = re.compile(r"(<!-- the table of fields -->\n\n).*?(\n<!-- its end -->)", re.DOTALL)
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(marks.sub(lambda m: m[1] + made + m[2], text), encoding="utf-8")
