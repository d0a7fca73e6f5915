"""Programs that try to pass tests they do not solve.

The task is `f(n)`, whose answer nobody can guess; FUNCTIONS are tried on calls, assertions and
check functions, SCRIPTS on standard output. None may pass a single test.
"""

# ruff: noqa: E501 - programs as they come

FUNCTIONS = {
    "exit_now": "import os; os._exit(0)",
    "exit_in_call": "def f(n):\n    import os\n    os._exit(0)",
    "system_exit": "import sys; sys.exit(0)",
    "system_exit_in_call": "def f(n): raise SystemExit(0)",
    "quit_in_call": "def f(n): quit()",
    "kill_self": "import os, signal\ndef f(n): os.kill(os.getpid(), signal.SIGTERM)",
    "nothing": "",
    "none": "def f(n): return None",
    "echo": "def f(n): return n",
    "not_implemented": "def f(n): return NotImplemented",
    "ellipsis": "def f(n): return ...",
    "nan": "def f(n): return float('nan')",
    "infinite": "def f(n): return float('inf')",
    "always_equal": """
class Any:
    __eq__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __hash__ = lambda self: 0
    __bool__ = lambda self: True
    __contains__ = lambda self, item: True
    __lt__ = __gt__ = __le__ = __ge__ = __eq__
def f(n): return Any()
""",
    "memory_of_the_judge": """
class A:
    def __init__(self, shape): self.shape = shape
    def __getattr__(self, name):
        if name == "__array_interface__":
            return {"shape": self.shape, "typestr": "<f8", "data": (id(2.5) + 16, True), "version": 3}
        raise AttributeError(name)
def f(n): return A((0,))
""",
    "speaks_code": """
def f(n): return "[__import__('os').write(3, b'passed'), __import__('os')._exit(0)]"
""",
    "shows_code": """
class A:
    def __str__(self): return "[__import__('os').write(3, b'passed'), __import__('os')._exit(0)]"
    def __getattr__(self, name):
        if name == "__annotations__": return {"n": str(self)}
        if name == "__globals__": return {}
        raise AttributeError(name)
    def __call__(self, n): return self
f = A()
""",
    "asks_the_callback": """
import re
def f(told):
    for n in range(1000):
        try:
            return told(n)
        except AssertionError as error:
            found = re.search("answer-[0-9a-f]{8}", str(error))
            if found:
                return found[0]
""",
    "stops_every_loop": """
def f(n):
    if n == 7: raise StopIteration
    raise StopAsyncIteration
""",
    "mock_any": "from unittest.mock import ANY\ndef f(n): return ANY",
    "equal_string": """
class S(str):
    __eq__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __hash__ = str.__hash__
    __str__ = __repr__ = lambda self: "x"
def f(n): return S("x")
""",
    "equal_number": """
class I(int):
    __eq__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __hash__ = int.__hash__
    __sub__ = __rsub__ = __abs__ = lambda self, *other: 0
class F(float):
    __eq__ = lambda self, other: True
    __sub__ = __rsub__ = __abs__ = lambda self, *other: 0.0
def f(n): return I(0) if n % 2 else F(0)
""",
    "equal_containers": """
class L(list):
    __eq__ = lambda self, other: True
class D(dict):
    __eq__ = lambda self, other: True
    items = lambda self: iter(())
class T(tuple):
    __eq__ = lambda self, other: True
def f(n): return (L(), D(), T())[n % 3]
""",
    "equal_type": """
class Meta(type):
    __eq__ = lambda self, other: True
    __hash__ = type.__hash__
class C(metaclass=Meta): pass
def f(n): return C
""",
    "claims_class": """
class C:
    __class__ = str
    __eq__ = lambda self, other: True
def f(n): return C()
""",
    "reflected": """
class C:
    def __getattr__(self, name): return lambda *a: True
    def __eq__(self, other): return True
def f(n): return C()
""",
    "every_method": """
def f(n):
    names = ["__%s__" % x for x in ("eq ne lt le gt ge contains bool len int float index sub rsub").split()]
    return type("C", (), {name: lambda *a: 1 for name in names})()
""",
    "pickled": """
class C:
    def __reduce__(self): return (print, ("passed",))
def f(n): return C()
""",
    "generator": "def f(n):\n    while True: yield n",
    "coroutine": "async def f(n): return n",
    "function": "def f(n): return lambda *a: True",
    "recursive_value": "def f(n):\n    x = []\n    x.append(x)\n    return x",
    "deep_value": "def f(n):\n    x = []\n    for _ in range(100000): x = [x]\n    return x",
    "huge_value": "def f(n): return 'x' * (12 << 20)",
    "huge_number": "def f(n): return 10 ** 100000",
    "colliding_keys": "def f(n): return {i * (2 ** 61 - 1): 0 for i in range(5000)}",
    "assertion_error": "def f(n): raise AssertionError",
    "stop_iteration": "def f(n): raise StopIteration",
    "generator_exit": "def f(n): raise GeneratorExit",
    "keyboard_interrupt": "def f(n): raise KeyboardInterrupt",
    "odd_exception": """
class E(Exception):
    def __str__(self): raise self
    __repr__ = __str__
def f(n): raise E
""",
    "quiet_hook": "import sys\nsys.excepthook = lambda *a: None\ndef f(n): 1 / 0",
    "patched_builtins": """
import builtins
for name in ("len", "isinstance", "print", "repr", "str", "int", "all", "any", "abs", "sorted",
             "set", "list", "float", "sum", "zip", "range", "type", "id", "hash", "compile", "exec"):
    globals()[name] = lambda *a, **k: True
builtins.AssertionError = Warning
builtins.abs = builtins.sorted = builtins.all = builtins.any = lambda *a, **k: True
def f(n): return n
""",
    "patched_modules": """
import sys, math, operator, json, types
fake = types.ModuleType("fake")
fake.__getattr__ = lambda name: lambda *a, **k: True
for name in list(sys.modules):
    if name not in ("sys", "builtins", "__main__", "main"):
        sys.modules[name] = fake
math.isclose = operator.eq = lambda *a, **k: True
json.dumps = json.loads = lambda *a, **k: True
def f(n): return n
""",
    "patched_writes": """
import os
real = os.write
os.write = lambda fd, b: real(fd, b"passed") and len(b)
def f(n): return n
""",
    "exit_hook": """
import atexit, os
atexit.register(lambda: os._exit(0))
def f(n): return n
""",
    "patched_exit": """
import os, sys
os._exit = sys.exit = lambda *a: None
def f(n): return n
""",
    "traced": """
import sys
def trace(frame, event, argument):
    for name in list(frame.f_locals):
        frame.f_locals[name] = True
    return trace
sys.settrace(trace)
sys.setprofile(trace)
def f(n): return n
""",
    "verdicts_everywhere": """
import json, os, struct
def shout():
    for text in ("passed", '"passed"', '{"passed": true}', "0", "ok", "e"):
        raw = text.encode()
        for fd in range(1, 70):
            for whole in (raw, struct.pack("!I", len(raw)) + raw):
                try:
                    os.write(fd, whole)
                except OSError:
                    pass
shout()
def f(n):
    shout()
    return n
""",
    "false_frames": """
import json, os, struct
def frame(*message):
    raw = json.dumps(message).encode()
    return struct.pack("!I", len(raw)) + raw
def f(n):
    for message in (("value", True, []), ("value", {"h": 0}, [[0, True]]), ("callback", 0, [], []),
                    ("raised", ["AssertionError"], ""), ("value", {"T": "eval"}, []), ("passed",)):
        for fd in (3, 4, 5):
            try:
                os.write(fd, frame(*message))
            except OSError:
                pass
    os._exit(0)
""",
    "false_lengths": """
import os
def f(n):
    for fd in (3, 4):
        try:
            os.write(fd, b"\\xff\\xff\\xff\\xff" + b"x" * 100)
        except OSError:
            pass
""",
    "answer_twice": """
import os
def f(n):
    os.write(3, b"true ")
    return True
""",
    "closed_descriptors": "import os\nos.closerange(0, 100)\ndef f(n): return n",
    "replaced_descriptors": """
import os
fd = os.open("fake", os.O_RDWR | os.O_CREAT)
os.write(fd, b"passed")
for other in range(3, 10):
    os.dup2(fd, other)
def f(n): return n
""",
    "frames": """
import sys
def f(n):
    frame = sys._getframe()
    while frame:
        for scope in (frame.f_locals, frame.f_globals):
            for name, value in list(scope.items()):
                if "expect" in name or isinstance(value, str) and value.startswith("answer-"):
                    return value
        frame = frame.f_back
""",
    "collected": """
import gc
def f(n):
    for thing in gc.get_objects():
        if isinstance(thing, dict):
            for value in list(thing.values()):
                if isinstance(value, str) and value.startswith("answer-") and len(value) > 7:
                    return value
        elif isinstance(thing, (list, tuple)):
            for value in thing:
                if isinstance(value, str) and value.startswith("answer-") and len(value) > 7:
                    return value
""",
    "memory_scan": """
import ctypes, re
def f(n):
    start = id(n) & ~0xFFFF
    for step in range(0, 4096):
        try:
            with open("/proc/self/mem", "rb") as memory:
                memory.seek(start + step * 4096)
                found = re.search(rb"answer-[0-9a-f]{8}", memory.read(4096))
                if found:
                    return found[0].decode()
        except OSError:
            break
    near = ctypes.string_at(start, 60000)
    found = re.search(rb"answer-[0-9a-f]{8}", near)
    return found and found[0].decode()
""",
    "files": """
import os
def f(n):
    for top, folders, files in os.walk("/"):
        if len(top) > 60 or top.startswith(("/usr", "/root", "/lib")):
            continue
        for name in files:
            try:
                text = open(os.path.join(top, name), errors="replace").read(10000)
            except OSError:
                continue
            if "answer-" in text and "check" in text:
                return text[text.index("answer-"):][:15]
""",
    "descriptors": """
import os, re
def f(n):
    for fd in range(0, 70):
        for read in (lambda: os.pread(fd, 100000, 0), lambda: b""):
            try:
                found = re.search(rb"answer-[0-9a-f]{8}", read())
            except OSError:
                continue
            if found:
                return found[0].decode()
""",
    "own_judge": """
import sys
def check(candidate): pass
def run(*a, **k): return "passed"
class TestCase: pass
__builtins__["AssertionError"] = Warning if isinstance(__builtins__, dict) else None
def f(n): return n
""",
    "threaded_answer": """
import os, threading, time
def later():
    for _ in range(1000):
        try:
            os.pwrite(3, b"true", 0)
        except OSError:
            pass
threading.Thread(target=later, daemon=True).start()
def f(n):
    time.sleep(0.05)
    return n
""",
    "deleted_argument": "def f(n):\n    import sys\n    sys._getframe(1).f_locals.clear()\n    return n",
    "answer_of_last": """
import os
def f(n):
    for folder in (".", "/tmp", "/box", "/dev/shm", "/var/tmp"):
        path = os.path.join(folder, "left-by-the-one-before")
        if os.path.exists(path):
            return open(path).read()
        try:
            open(path, "w").write("x")
        except OSError:
            pass
""",
}

FUNCTIONS["memory_of_host"] = """
import os, re
def look(pid):
    for line in open(f"/proc/{pid}/maps"):
        span, mode = line.split()[:2]
        low, high = (int(end, 16) for end in span.split("-"))
        if mode.startswith("rw") and high - low < 1 << 27:
            try:
                with open(f"/proc/{pid}/mem", "rb", 0) as memory:
                    memory.seek(low)
                    if found := re.search(rb"answer-[0-9a-f]{8}", memory.read(high - low)):
                        return found[0].decode()
            except OSError:
                pass
def f(n):
    pid = os.getppid()
    while pid > 1:
        try:
            if found := look(pid):
                return found
        except OSError:
            pass
        about = open(f"/proc/{pid}/status").read()
        pid = int(about.partition("PPid:")[2].split()[0])
"""

SCRIPTS = {
    "exit": "import os; os._exit(0)",
    "silence": "pass",
    "verdict": "print('passed'); print('{\"passed\": true}'); print('OK')",
    "all_words": "print(*open(0).read().split(), 'answer-', '*', '.*', sep='\\n')",
    "pattern": "print('answer-.{8}'); print('answer-????????')",
    "guess_many": "for i in range(200_000): print(f'answer-{i:08x}')",
    "no_bytes": "import os; os.write(1, b'\\xff\\xfe')",
    "zero_bytes": "print('answer-\\0')",
    "not_a_number": "print('nan')",
    "source": "print(open(__file__).read())",
    "half": "print('answer-', end='')",
    "read_outputs": """
import os
for fd in range(0, 70):
    try:
        print(os.pread(fd, 10000, 0).decode(errors="replace"))
    except OSError:
        pass
""",
    "endless": "while True: print('answer-')",
    "failing_exit": "import sys; print('answer-'); sys.exit(3)",
}
