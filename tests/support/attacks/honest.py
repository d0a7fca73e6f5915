"""Programs that solve their tests, in ways that sandboxes tend to break: all must pass.

Each is a program and its tests.
"""

# ruff: noqa: E501 - programs as they come

from typing import Any

_ADD = {"stdin": "3 4\n", "stdout": "7"}


def _adds(program: str) -> tuple[str, list[Any]]:
    return program, [_ADD]


def _says(program: str, said: str) -> tuple[str, list[Any]]:
    return program, [{"stdin": "", "stdout": said}]


READING = {
    "input": _adds("a, b = map(int, input().split()); print(a + b)"),
    "open_zero": _adds("print(sum(map(int, open(0).read().split())))"),
    "buffer": _adds("import sys; print(sum(map(int, sys.stdin.buffer.read().split())))"),
    "readline": _adds(
        "import sys\ninput = sys.stdin.readline\na, b = map(int, input().split())\nprint(a + b)"
    ),
    "lines": _adds("import sys\nfor line in sys.stdin: print(sum(map(int, line.split())))"),
    "os_read": _adds("import os; print(sum(map(int, os.read(0, 10 ** 6).split())))"),
    "dev_stdin": _adds("print(sum(map(int, open('/dev/stdin').read().split())))"),
    "fileinput": _adds(
        "import fileinput\nfor line in fileinput.input(): print(sum(map(int, line.split())))"
    ),
    "mapped": _adds(
        "import mmap\nm = mmap.mmap(0, 0, prot=mmap.PROT_READ)\nprint(sum(map(int, m[:].split())))"
    ),
    "fdopen": _adds("import os; print(sum(map(int, os.fdopen(0).read().split())))"),
    "bytes_io": _adds(
        "import io, os, sys\nsys.stdin = io.BytesIO(os.read(0, os.fstat(0).st_size))\n"
        "print(sum(map(int, sys.stdin.readline().split())))"
    ),
    "select": _adds(
        "import select, sys\nselect.select([sys.stdin], [], [], 1)\nprint(sum(map(int, input().split())))"
    ),
    "until_eof": _adds(
        "t = 0\ntry:\n    while True: t += sum(map(int, input().split()))\nexcept EOFError:\n    print(t)"
    ),
    "closing": _adds(
        "import sys\nwith sys.stdin as i, sys.stdout as o: print(sum(map(int, next(i).split())), file=o)"
    ),
    "large": (
        "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
        [{"stdin": "1 " * 600_000, "stdout": "600000"}],
    ),
    "unicode": ("print(input()[::-1])", [{"stdin": "żółw 🐢", "stdout": "🐢 włóż"}]),
}

WRITING = {
    "os_write": _says("import os; os.write(1, b'7\\n')", "7"),
    "buffer": _says("import sys; sys.stdout.buffer.write(b'7')", "7"),
    "replaced": _says(
        "import atexit, io, sys\nsys.stdout = io.StringIO()\n"
        "atexit.register(lambda: sys.__stdout__.write(sys.stdout.getvalue()))\nprint(7)",
        "7",
    ),
    "fast_writer": _says(
        """
import os, sys
from io import BytesIO, IOBase
class FastIO(IOBase):
    def __init__(self, file):
        self._fd = file.fileno()
        self.buffer = BytesIO()
        self.write = self.buffer.write
    def flush(self):
        os.write(self._fd, self.buffer.getvalue())
        self.buffer.truncate(0), self.buffer.seek(0)
class Wrapper(IOBase):
    def __init__(self, file):
        self.buffer = FastIO(file)
        self.flush = self.buffer.flush
        self.write = lambda s: self.buffer.write(s.encode("ascii"))
sys.stdout = Wrapper(sys.stdout)
print(7)
""",
        "7",
    ),
    "opened_one": _says("out = open(1, 'w')\nout.write('7')", "7"),
    "line_by_line": _says("for i in range(3): print(i, end=' ', flush=True)", "0 1 2"),
    "much": _says("print('x' * 3_000_000)", "x" * 3_000_000),
    "trailing": _says("print('7  \\n\\n\\n')", "7"),
    "crlf": _says("print('7\\r\\n8\\r')", "7\n8"),
    "errors_too": _says("import sys\nprint('note', file=sys.stderr)\nprint(7)", "7"),
    "logging": _says("import logging\nlogging.warning('careful')\nprint(7)", "7"),
    "warning": _says("import warnings\nwarnings.warn('careful')\nprint(7)", "7"),
    "tolerance": (
        "print(1 / 3, 2 / 3)",
        [{"stdin": "", "stdout": "0.333333\n0.666667", "tolerance": 1e-5}],
    ),
    "other_lines": _says("print(1, 2, 3)", "1\n2\n3"),
}

ENDING = {
    "exit": _says("print(7); exit()", "7"),
    "quit": _says("print(7); quit(0)", "7"),
    "sys_exit": _says("import sys; print(7); sys.exit(0)", "7"),
    "os_exit": _says("import os; print(7, flush=True); os._exit(0)", "7"),
    "raise_exit": _says("print(7); raise SystemExit", "7"),
    "atexit": _says("import atexit; atexit.register(print, 7)", "7"),
    "thread_after": _says(
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print(7))).start()",
        "7",
    ),
    "daemon_thread": _says(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()\nprint(7)",
        "7",
    ),
    "finalizer": _says("class C:\n    def __del__(self): print(7)\nc = C()", "7"),
    "main_guard": _says("def main(): print(7)\nif __name__ == '__main__': main()", "7"),
    "own_hook": _says("import sys\nsys.excepthook = lambda *a: print('no')\nprint(7)", "7"),
}

RUNNING = {
    "recursion_thread": _says(
        "import sys, threading\nsys.setrecursionlimit(10 ** 6)\nthreading.stack_size(1 << 27)\n"
        "def f(n): return n and 1 + f(n - 1)\n"
        "t = threading.Thread(target=lambda: print(f(50_000)))\nt.start()\nt.join()",
        "50000",
    ),
    "recursion": _says(
        "import sys\nsys.setrecursionlimit(10 ** 6)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(20_000))",
        "20000",
    ),
    "recursion_cached": _says(
        "import sys\nfrom functools import lru_cache\nsys.setrecursionlimit(10 ** 6)\n"
        "@lru_cache(None)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(15_000))",
        "15000",
    ),
    "recursion_caught": _says("def f(): f()\ntry: f()\nexcept RecursionError: print(7)", "7"),
    "recursion_near_limit": _says("def f(n): return n and 1 + f(n - 1)\nprint(f(990))", "990"),
    "stack_limit": _says(
        "import resource\nresource.setrlimit(resource.RLIMIT_STACK, (1 << 26, resource.RLIM_INFINITY))\nprint(7)",
        "7",
    ),
    "threads": _says(
        "from concurrent.futures import ThreadPoolExecutor as P\nwith P(40) as p: print(sum(p.map(int, '1' * 200)))",
        "200",
    ),
    "asyncio": _says(
        "import asyncio\nasync def f(): await asyncio.sleep(0.01); return 7\nprint(asyncio.run(f()))",
        "7",
    ),
    "alarm": _says(
        "import signal\ndef late(*a): print(7); raise SystemExit\nsignal.signal(signal.SIGALRM, late)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.05)\nwhile True: pass",
        "7",
    ),
    "signal_self": _says(
        "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *a: print(7))\nos.kill(os.getpid(), signal.SIGUSR1)",
        "7",
    ),
    "memory": _says("x = bytearray(300 << 20)\nprint(len(x) >> 20)", "300"),
    "memory_error": _says("try: bytearray(9 << 40)\nexcept MemoryError: print(7)", "7"),
    "sleep": _says("import time; time.sleep(0.3); print(7)", "7"),
    "faulthandler": _says("import faulthandler; faulthandler.enable(); print(7)", "7"),
    "no_collector": _says("import gc; gc.disable(); print(7)", "7"),
    "clock": _says(
        "import time\nt = time.perf_counter(), time.process_time(), time.thread_time()\nprint(7)",
        "7",
    ),
    "random": _says("import random\nrandom.seed(1)\nprint(random.randrange(10 ** 6))", "140891"),
    "eval_own": _says("print(eval('3 + 4')); exec('x = 1')", "7"),
    "pipes": _says(
        "import os\nr, w = os.pipe()\nos.write(w, b'7')\nprint(os.read(r, 9).decode())", "7"
    ),
    "socket_pair": _says(
        "import socket\na, b = socket.socketpair()\na.sendall(b'7')\nprint(b.recv(9).decode())", "7"
    ),
    "ctypes": _says("import ctypes\nprint(ctypes.CDLL(None).abs(-7))", "7"),
    "platform": _says("import platform, uuid\nuuid.uuid4()\nprint(platform.system())", "Linux"),
    "processors": _says(
        "import os, multiprocessing\nprint(multiprocessing.cpu_count() > 0)", "True"
    ),
}

LIBRARY = {
    "dataclass": _says(
        "from dataclasses import dataclass, field\n@dataclass(order=True)\nclass P:\n    x: int\n    y: list = field(default_factory=list)\n"
        "print(P(1))",
        "P(x=1, y=[])",
    ),
    "pickle": _says("import pickle\nclass C: x = 7\nprint(pickle.loads(pickle.dumps(C())).x)", "7"),
    "future": _says(
        "from __future__ import annotations\ndef f(x: Unknown) -> 7: ...\nprint(7)", "7"
    ),
    "source": _says("import inspect\ndef f(): return 7\nprint(len(inspect.getsource(f)))", "18"),
    "own_file": _says("print(open(__file__).read()[:5])", "print"),
    "traceback": _says(
        "import traceback\ntry: 1 / 0\nexcept Exception: print('1 / 0' in traceback.format_exc())",
        "True",
    ),
    "sqlite": _says(
        "import sqlite3\nprint(sqlite3.connect(':memory:').execute('select 3 + 4').fetchone()[0])",
        "7",
    ),
    "hashes": _says(
        "import hashlib, zlib\nprint(zlib.crc32(hashlib.md5(b'x').digest()) > 0)", "True"
    ),
    "zone": _says(
        "from datetime import datetime\nfrom zoneinfo import ZoneInfo\n"
        "print(datetime(2020, 7, 1, tzinfo=ZoneInfo('Europe/Paris')).utcoffset())",
        "2:00:00",
    ),
    "decimal": _says(
        "from decimal import *\ngetcontext().prec = 30\nprint(Decimal(1) / 7)",
        "0.142857142857142857142857142857",
    ),
    "late_imports": _says(
        "import unittest, argparse, csv, html, xml.etree.ElementTree, email, urllib.parse, secrets, tkinter.constants\nprint(7)",
        "7",
    ),
    "work_folder": _says(
        "import os\nopen('note', 'w').write('7')\nos.mkdir('d')\nos.rename('note', 'd/note')\n"
        "print(open('d/note').read(), os.listdir())",
        "7 ['d']",
    ),
    "temporary": _says(
        "import tempfile\nwith tempfile.NamedTemporaryFile('w+') as f:\n    f.write('7')\n    f.seek(0)\n    print(f.read())",
        "7",
    ),
    "temporary_folder": _says(
        "import tempfile, os, shutil, pathlib\nwith tempfile.TemporaryDirectory() as d:\n"
        "    p = pathlib.Path(d, 'a'); p.mkdir(); (p / 'f').write_text('x' * 9)\n    (p / 'f').rename(p / 'g')\n"
        "    shutil.move(str(p / 'g'), d)\n    shutil.rmtree(p)\n    print(os.listdir(d))\n"
        "with tempfile.TemporaryFile() as f:\n    f.write(b'7'); f.seek(0); print(f.read())\nprint(os.listdir())",
        "['g']\nb'7'\n[]",
    ),
    "removal": _says(
        """
import os
def write(name, text):
    with open(name, "w") as f:
        f.write(text)
def refused(action, *args):
    try:
        action(*args)
    except OSError as error:
        return type(error).__name__, str(error)
for i in range(40):  # more than there is room for at once
    write("big", "x" * (1 << 20))
    os.remove("big")
write("a", "a"); write("b", "b")
held = open("b")
os.replace("a", "b")
print(open("b").read(), held.read(), os.listdir())
os.rename("b", "b"); os.mkdir("d"); os.mkdir("e"); os.rename("d", "e"); os.rename("b", "e/b")
os.symlink("e/b", "link"); os.unlink("link"); os.link("e/b", "other"); os.unlink(b"other")
print(open("e/b").read(), os.listdir())
print(refused(os.remove, "none"), refused(os.remove, "e")[0], refused(os.rename, "none", "n"))
write("f", ""); print(refused(os.rename, "e", "f")[0], refused(os.rmdir, "e")[0])
fd = os.open("e", os.O_RDONLY)
os.rename("b", "c", src_dir_fd=fd, dst_dir_fd=fd); os.unlink("c", dir_fd=fd); os.rmdir("e"); os.remove("f")
print(os.listdir())
""",
        "a b ['b']\na ['e']\n('FileNotFoundError', \"[Errno 2] No such file or directory: 'none'\") IsADirectoryError "
        "('FileNotFoundError', \"[Errno 2] No such file or directory: 'none' -> 'n'\")\n"
        "NotADirectoryError OSError\n[]",
    ),
    "empty_folder": _says("import os\nprint(os.listdir('.'))", "[]"),
    "crlf_source": _says("x = 7\r\nif x:\r\n    print(x)\r\n", "7"),
    "tabs": _says("if 1:\n\tprint(7)", "7"),
    "cookie": _says("# -*- coding: latin-1 -*-\nprint('é')", "é"),
    "byte_order_mark": _says("\ufeffprint(7)", "7"),
    "numpy": _says("import numpy as np\nprint(int(np.arange(5).sum() - 3))", "7"),
    "sympy": _says(
        "from sympy import symbols, expand\nx = symbols('x')\nprint(expand((x + 1) ** 2))",
        "x**2 + 2*x + 1",
    ),
}

_SEVEN: list[Any] = [
    {"call": "f", "args": [7], "expected": 7},
    "assert f(7) == 7",
    "def check(c):\n    assert c(7) == 7\ncheck(f)",
]

CALLED = {
    "noisy": ("print('hello')\ndef f(n):\n    print('called')\n    return n", _SEVEN),
    "guarded_input": (
        "def f(n): return n\nif __name__ == '__main__': print(f(int(input())))",
        _SEVEN,
    ),
    "guarded_unittest": (
        "import unittest\ndef f(n): return n\nif __name__ == '__main__': unittest.main()",
        _SEVEN,
    ),
    "closure": ("def make():\n    k = 1\n    return lambda n: n * k\nf = make()", _SEVEN),
    "global_state": (
        "seen = []\ndef f(n):\n    global seen\n    seen = seen + [n]\n    return seen[-1]",
        _SEVEN,
    ),
    "cached": ("import functools\n@functools.cache\ndef f(n): return n", _SEVEN),
    "partial": ("import functools\nf = functools.partial(lambda a, n: n, 1)", _SEVEN),
    "callable_object": ("class F:\n    def __call__(self, n): return n\nf = F()", _SEVEN),
    "numpy_scalar": ("import numpy as np\ndef f(n): return np.int64(n)", _SEVEN),
    "enumeration": (
        "import enum\nclass E(enum.IntEnum):\n    A = 7\ndef f(n): return E(n)",
        _SEVEN,
    ),
    "fraction": ("from fractions import Fraction\ndef f(n): return Fraction(14, 2)", _SEVEN),
    "whole_float": ("def f(n): return 7.0", _SEVEN),
    "hidden_catch": ("def f(n):\n    try: return n\n    finally: pass", _SEVEN),
    "method": (
        "class Solution:\n    def f(self, n): return n\n    @staticmethod\n    def g(n): return n",
        [
            {"call": "Solution.f", "args": [7], "expected": 7},
            {"call": "Solution.g", "kwargs": {"n": 7}, "expected": 7},
            {"call": "Solution().f", "args": [7], "expected": 7},
            {"call": "Solution().g", "args": [7], "expected": 7},
            "assert Solution().f(7) == 7",
            "def check(c):\n    assert c(7) == 7\ncheck(Solution().f)",
        ],
    ),
    "containers": (
        "from collections import *\nP = namedtuple('P', 'x y')\n"
        "def counter(s): return Counter(s)\ndef lists(s):\n    d = defaultdict(list)\n    d[1].append(s)\n    return d\n"
        "def point(): return P(1, 2)\ndef sets(): return {frozenset({1}), (2, 'x')}\ndef order(): return OrderedDict(b=1, a=2)",
        [
            "assert counter('aab') == {'a': 2, 'b': 1}",
            "assert lists('x') == {1: ['x']}",
            "assert point() == (1, 2)",
            {"call": "point", "expected": [1, 2]},
            "def c():\n    assert sets() == {frozenset({1}), (2, 'x')}\nc()",
            "assert dict(order()) == {'a': 2, 'b': 1}",
            "assert Counter('aab') == counter('aab')",
        ],
    ),
    "numbers": (
        "def big(): return 3 ** 10000\ndef c(): return 1 + 2j\ndef third(): return 1 / 3\ndef inf(): return float('inf')",
        [
            f"assert big() == {3**2000} * 3 ** 8000",
            {"call": "big", "expected": 3**10000},
            "assert c() == 1 + 2j",
            {"call": "third", "expected": 0.33333, "tolerance": 1e-4},
            "assert inf() == float('inf')",
            "assert abs(third() - 0.3333) < 1e-3",
            "assert math.isclose(third(), 1 / 3)",
        ],
    ),
    "text": (
        "def f(s): return s + '\\udc80é\\0'\ndef b(x): return bytearray(x)",
        [
            {"call": "f", "args": ["a"], "expected": "a\udc80é\0"},
            "assert b(b'xy') == b'xy'",
        ],
    ),
    "in_place": (
        "def sort(x): x.sort()\ndef fill(d): d['a'] = 1\ndef cut(x):\n    x[:] = sorted(set(x))\n    return len(x)",
        [
            "x = [3, 1]\nsort(x)\nassert x == [1, 3]",
            "def check(c):\n    d = {}\n    c(d)\n    assert d == {'a': 1}\ncheck(fill)",
            "x = [2, 1, 2]\nk = cut(x)\nassert x[:k] == [1, 2]",
        ],
    ),
    "objects": (
        "class Node:\n    def __init__(self, v, left=None): self.v, self.left = v, left\n"
        "def depth(n): return 1 + depth(n.left) if n else 0\ndef first(n): return n\n"
        "class Stack:\n    def __init__(self): self.x = []\n    def push(self, v): self.x.append(v)\n"
        "    def pop(self): return self.x.pop()\n    def __len__(self): return len(self.x)\n    def __getitem__(self, i): return self.x[i]",
        [
            "n = Node(1, Node(2))\nassert depth(n) == 2 and n.left.v == 2",
            "n = Node(1)\nn.left = Node(5)\nassert depth(n) == 2 and first(n) is n",
            "s = Stack()\ns.push(1); s.push([2])\nassert len(s) == 2 and s[1] == [2] and s.pop() == [2] and list(s) == [1]",
        ],
    ),
    "raising": (
        "class Mine(ValueError): pass\ndef f(n):\n    if n < 0: raise Mine('negative')\n    return n",
        [
            "try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert 'negative' in str(e)",
            "try:\n    f(-1)\nexcept Exception:\n    pass\nelse:\n    assert False",
        ],
    ),
    "functions_given": (
        "def apply(f, xs): return [f(x) for x in xs]\ndef compose(f, g): return lambda x: f(g(x))\ndef kinds(xs, t): return [x for x in xs if isinstance(x, t)]",
        [
            "assert apply(lambda x: x + 1, [1, 2]) == [2, 3]",
            "assert apply(str, [1, 2]) == ['1', '2']",
            "assert compose(lambda x: x + 1, abs)(-3) == 4",
            "assert kinds([1, 'a', 2.0], str) == ['a']",
        ],
    ),
    "generators": (
        "def count():\n    n = 0\n    while True:\n        yield n\n        n += 1\ndef pairs(x): return zip(x, x[1:])",
        [
            "g = count()\nassert [next(g) for _ in range(3)] == [0, 1, 2]",
            "assert list(pairs([1, 2, 3])) == [(1, 2), (2, 3)]",
            "assert set(map(tuple, pairs([1, 2]))) == {(1, 2)}",
        ],
    ),
    "builtin_name": (
        "def sum(a, b): return a * b",
        ["assert sum(3, 4) == 12", {"call": "sum", "args": [3, 4], "expected": 12}],
    ),
    "nothing": (
        "def f(): pass",
        [{"call": "f", "expected": None}, "assert f() is None", "assert f() == None"],
    ),
    "large_answer": (
        "def f(n): return list(range(n))",
        [{"call": "f", "args": [200_000], "expected": list(range(200_000))}],
    ),
    "random_test": (
        "def f(x): return sorted(x)",
        [
            "import random\nfor _ in range(50):\n    x = [random.random() for _ in range(20)]\n    assert f(list(x)) == sorted(x)"
        ],
    ),
}

_TEN: list[Any] = [
    "import threading\nseen = []\ndef use(n):\n    for i in range(30): seen.append(f(i) == i * i)\n"
    "ts = [threading.Thread(target=use, args=(n,)) for n in range(8)]\n"
    "[t.start() for t in ts]\n[t.join() for t in ts]\nassert len(seen) == 240 and all(seen)",
    "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(8) as p:\n"
    "    assert list(p.map(f, range(60))) == [n * n for n in range(60)]",
    "import threading\nfor n in range(300):\n    t = threading.Thread(target=f, args=(n,))\n    t.start(); t.join()",
    "import asyncio\nasync def main():\n    return await asyncio.gather(*[asyncio.to_thread(f, n) for n in range(9)])\n"
    "assert asyncio.run(main()) == [n * n for n in range(9)]",
]

THREADED = {
    "plain": ("def f(n): return n * n", _TEN),
    "locked": (
        "import threading\nlock = threading.RLock()\ndef f(n):\n    with lock: return n * n",
        _TEN,
    ),
    "in_order": (
        "import threading\nclass Foo:\n    def __init__(self): self.a, self.b = threading.Event(), threading.Event()\n"
        "    def first(self, p): p(); self.a.set()\n    def second(self, p): self.a.wait(); p(); self.b.set()\n"
        "    def third(self, p): self.b.wait(); p()",
        [
            "import threading\nfoo, out = Foo(), []\npairs = ((foo.third, 'c'), (foo.second, 'b'), (foo.first, 'a'))\n"
            "ts = [threading.Thread(target=m, args=(lambda s=s: out.append(s),)) for m, s in pairs]\n"
            "[t.start() for t in ts]\n[t.join() for t in ts]\nassert out == ['a', 'b', 'c']"
        ],
    ),
    "queue": (
        "import queue\nq = queue.Queue(1)\ndef put(x): q.put(x)\ndef get(): return q.get()",
        [
            "import threading\nout = []\nt = threading.Thread(target=lambda: out.extend(get() for _ in range(20)))\n"
            "t.start()\nfor n in range(20): put(n)\nt.join()\nassert out == list(range(20))",
            "import threading\nt = threading.Timer(0.1, put, [5])\nt.start()\nassert get() == 5",
        ],
    ),
    "own_threads": (
        "import threading\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "def each(g, xs):\n    with ThreadPoolExecutor(8) as p: return list(p.map(g, xs))\n"
        "def later(g, s): threading.Timer(s, g).start()",
        [
            "assert each(lambda x: x * x, list(range(40))) == [x * x for x in range(40)]",
            "import time\nout = []\nlater(lambda: out.append(1), 0.05)\ntime.sleep(0.3)\nassert out == [1]",
            "assert each(lambda x: each(abs, [x]), [-1, -2]) == [[1], [2]]",
        ],
    ),
    "in_place": (
        "def sort(x): x.sort()",
        [
            "import threading\nx = [3, 1]\nt = threading.Thread(target=sort, args=(x,))\n"
            "t.start(); t.join()\nassert x == [1, 3]"
        ],
    ),
}

HONEST: dict[str, tuple[str, list[Any]]] = {
    f"{group}/{name}": pair
    for group, programs in (
        ("reading", READING),
        ("writing", WRITING),
        ("ending", ENDING),
        ("running", RUNNING),
        ("library", LIBRARY),
        ("called", CALLED),
        ("threaded", THREADED),
    )
    for name, pair in programs.items()
}
