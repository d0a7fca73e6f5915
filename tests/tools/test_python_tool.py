"""Python for a policy: a session keeps its state, holds nothing of the host, and always answers."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rl_reasoner import sandbox
from rl_reasoner.sandbox.levels import LEVELS
from rl_reasoner.tools.python import MOST_BLOCKS, PythonSession, python
from rl_reasoner.tools.tool import ToolLimits, ToolResult

try:
    STRONG = LEVELS.index(sandbox.strength().level) <= LEVELS.index("landlock")
except sandbox.SandboxUnavailable:
    STRONG = False
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STRONG, reason="there is no strong sandbox here"),
]


def told(*blocks: str, **limits: float) -> ToolResult:
    """What the last of the blocks of a fresh session gives."""
    session = PythonSession(ToolLimits(**limits))  # type: ignore[arg-type]
    results = [session.run(block) for block in blocks]
    return results[-1]


def test_a_session_keeps_names_functions_imports_and_files() -> None:
    session = PythonSession()
    assert session.run("import math\ndef double(n):\n    return 2 * n\nx = 4").text == "(no output)"
    assert session.run("open('note', 'w').write('kept')\nx += 1\nprint(double(x))").text == "10"
    assert session.run("math.floor(7.5), x, open('note').read()").text == "(7, 5, 'kept')"
    session.close()
    assert "NameError" in session.run("x").text


def test_output_is_shown_once_and_in_order() -> None:
    session = PythonSession()
    code = "import os, sys\nprint('one')\nprint('two', file=sys.stderr)\nprint('three')\n'four'"
    assert session.run(code).text == "one\ntwo\nthree\n'four'"
    assert session.run("None").text == "(no output)"
    assert session.run("os.write(1, b'low\\n'); print('high')").text == "low\nhigh"


def test_no_session_sees_another() -> None:
    one, other = PythonSession(), PythonSession()
    one.run("secret = 41\nimport builtins, random\nbuiltins.leak = 1\nopen('left', 'w').write('x')")
    seen = other.run("import os\n'secret' in globals(), 'leak' in dir(__builtins__), os.listdir()")
    assert seen.text == "(False, False, [])"
    assert one.run("secret").text == "41"


def test_an_error_shows_the_lines_of_the_policys_own_blocks() -> None:
    session = PythonSession()
    session.run("import json\ndef read(text):\n    return json.loads(text)")
    result = session.run("y = 1\nread('{')")
    assert result.kind == "failed"
    assert [line for line in result.text.splitlines() if "File" in line] == [
        '  File "<block 2>", line 2, in <module>',
        '  File "<block 1>", line 3, in read',
    ]
    assert "    return json.loads(text)\n           ^^^^^^^^^^^^^^^^\n" in result.text
    assert result.text.splitlines()[-1].startswith("json.decoder.JSONDecodeError: ")
    assert "main.py" not in result.text
    assert session.run("y").text == "1"  # what a block did before its error stays done


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("1/0", "failed", "ZeroDivisionError: division by zero"),
        ("x =", "failed", "SyntaxError: invalid syntax"),
        ("raise SystemExit('enough')", "failed", "SystemExit: enough"),
        ("raise KeyboardInterrupt", "failed", "KeyboardInterrupt"),
        ("def f(): return f()\nf()", "failed", "RecursionError"),
        (
            "class E(Exception):\n    def __str__(self): 1/0\nraise E",
            "failed",
            "E: <exception str() ",
        ),
        ("a = [0] * 10**9", "failed", "MemoryError"),
        ("input()", "failed", "EOFError"),
        ("(" * 5000, "failed", "Error"),
        ("x = '\0'", "failed", "null bytes"),
        ("import os; os._exit(0)", "died", "ended with exit code 0"),
        ("import os; print('done', flush=True); os._exit(64)", "died", "ended with exit code 64"),
        ("import os; os._exit(65)", "died", "ended with exit code 65"),
        ("import ctypes; ctypes.string_at(0)", "died", "was killed by signal 11"),
        ("print('x' * 10_000_000)", "cut", "characters cut]"),
        ("print('x' * 40_000_000)", "failed", "File too large"),
        ("print('a\\x00b\\x1b[31m')", "ok", "a\ufffdb\ufffd[31m"),
        ("print('\\ud800')", "ok", "\\ud800"),
    ],
)
def test_whatever_a_block_does_there_is_an_answer(code: str, kind: str, text: str) -> None:
    session = PythonSession(ToolLimits(memory_mb=256, output_chars=500))
    session.run("x = 5")
    result = session.run(code)
    assert result.kind == kind
    assert text in result.text
    assert len(result.text) < 800
    assert session.run("x").text == "5"


def test_a_block_that_is_stopped_leaves_the_state_before_it() -> None:
    session = PythonSession(ToolLimits(timeout_s=1.0))
    session.run("x = 5")
    result = session.run("print('so far'); x = 6\nwhile True: pass")
    assert result.kind == "timeout"
    assert result.text.startswith("so far\nTimeoutError: stopped after 1 s")
    assert session.run("x").text == "5"


def test_each_block_has_the_whole_time() -> None:
    session = PythonSession(ToolLimits(timeout_s=0.6))
    spin = "import time\nend = time.process_time() + 0.35\nwhile time.process_time() < end: pass\n"
    assert [session.run(f"{spin}{n}").text for n in range(3)] == ["0", "1", "2"]


def test_nothing_of_the_host_is_there(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("secret")
    tries = f"""
import os, socket, subprocess
def tried(action):
    try:
        return bool(action())
    except Exception:
        return False
[
    dict(os.environ),
    tried(lambda: open({str(file)!r}).read()),
    tried(lambda: os.listdir({str(tmp_path)!r})),
    tried(lambda: socket.create_connection(("127.0.0.1", 22), 1)),
    tried(lambda: subprocess.run(["true"])),
    tried(lambda: os.fork() or os._exit(0)),
    tried(lambda: os.kill(os.getppid(), 0) or True),
    tried(lambda: __import__("rl_reasoner")),
]
"""
    assert told(tries).text == str([{}, *[False] * 7])
    assert os.environ  # there would have been something to see


def test_numpy_and_sympy_are_there_where_they_are_named() -> None:
    session = PythonSession()
    code = "import math, sympy\nn = sympy.Symbol('n')\nsympy.summation(n, (n, 1, 10))"
    assert session.run(code).text == "55"
    assert session.run("import numpy as np\nint(np.arange(4).sum()), n").text == "(6, n)"


def test_the_same_blocks_give_the_same_text_in_every_run() -> None:
    blocks = (
        "import random, secrets, uuid\nimport numpy as np",
        "random.random(), secrets.token_hex(4), uuid.uuid4(), {'a', 'b', 'c', 'd'}, hash('a')",
        "np.random.rand(), np.random.default_rng().random(), random.random()",
    )
    one, other = PythonSession(), PythonSession()
    with ThreadPoolExecutor(2) as threads:  # at once: in two processes
        texts = [*threads.map(lambda s: [s.run(block).text for block in blocks], (one, other))]
    assert texts[0] == texts[1]
    assert len(texts[0][1]) > 60


def test_a_session_has_an_end() -> None:
    session = PythonSession()
    session._blocks = ["pass"] * (MOST_BLOCKS - 1)  # as if it had run them: it runs them again
    assert session.run("1").text == "1"
    last = session.run("2")
    assert (last.kind, last.text) == ("failed", "python failed: a session has at most 64 blocks")


def test_the_tool_is_called_as_any_other() -> None:
    assert python.body == "code"
    assert python.result(python.check({"code": "6*7"})) == "42"
    assert "numpy and sympy" in python.description
