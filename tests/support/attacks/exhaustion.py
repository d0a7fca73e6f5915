"""Programs that try to exhaust the host: memory, disk, descriptors, threads, time.

They start as `escapes.PRELUDE` says, and print GOT on success.
"""

# ruff: noqa: E501 - programs as they come

# Programs that keep files which no longer have a name: what they hold is not to be found.
HOLD = """
kept = []
def opened(name):
    return os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR)
def hold(fd):
    kept.append(fd)
    if fd is not None:
        os.write(fd, bytes(4 << 20))
"""
HELD = """
time.sleep(0.2)
got(len(kept)) if len(kept) > 30 else None
"""

RESOURCES = {
    "memory": "x = bytearray(8 << 30); got(len(x))",
    "memory_slowly": "x = []\nwhile len(x) < 5000: x.append(bytes(1 << 20) + b'x')\ngot(len(x))",
    "memory_mapped": "import mmap; m = mmap.mmap(-1, 4 << 30); got(len(m))",
    "memory_files": """
for i in range(60):
    fd = os.memfd_create(str(i))
    os.write(fd, bytes(1 << 20))
got("memory files")
""",
    "memory_pipes": """
import fcntl
kept = []
for i in range(500):
    r, w = os.pipe()
    fcntl.fcntl(w, 1031, 1 << 20)
    os.set_blocking(w, False)
    os.write(w, bytes(1 << 20))
    kept.append((r, w))
got("pipes")
""",
    "disk": """
written = 0
try:
    for i in range(200):
        with open(f"f{i}", "wb") as f:
            written += f.write(bytes(1 << 20))
finally:
    if written > 40 << 20:
        got(written)
""",
    "disk_one_file": "f = open('big', 'wb'); f.truncate(1 << 40); got('sparse')",
    "disk_allocate": "f = open('big', 'wb'); os.posix_fallocate(f.fileno(), 0, 1 << 30); got('allocated')",
    "disk_unlinked": HOLD
    + """
for i in range(50):
    fd = opened(f"f{i}")
    os.remove(f"f{i}") if i % 2 else libc.unlink(f"f{i}".encode())
    hold(fd)
"""
    + HELD,
    "disk_unnamed": HOLD
    + """
for i in range(50):
    hold(os.open(".", os.O_TMPFILE | os.O_RDWR))
"""
    + HELD,
    "disk_renamed_over": HOLD
    + """
for i in range(50):
    hold(opened(f"f{i}"))
    libc.rename(f"f{i}".encode(), b"last")
"""
    + HELD,
    "disk_mapped": HOLD
    + """
for i in range(100):
    fd = opened(f"f{i}")
    hold(fd)
    kept[-1] = libc.mmap(None, ctypes.c_size_t(4096), 1, 1, fd, ctypes.c_long(0))
    os.close(fd)
    kernel(87, 35, f"f{i}".encode()) if X86 else kernel(35, 35, -100, f"f{i}".encode(), 0)
"""
    + HELD,
    "disk_at_once": """
made = 0
while made < 2000:
    fd = os.open(f"f{made}", os.O_CREAT | os.O_RDWR)
    if libc.fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(16 << 20)):
        break
    os.close(fd)
    made += 1
    if made == 30:
        got(made)
""",
    "many_files": """
made = 0
try:
    for i in range(200_000):
        open(str(i), "w").close()
        made = i
finally:
    if made > 150_000:
        got(made)
""",
    "deep_folders": """
made = 0
try:
    for i in range(100_000):
        os.mkdir("d")
        os.chdir("d")
        made = i
finally:
    if made > 90_000:
        got(made)
""",
    "closed_folders": """
for i in range(50):
    os.mkdir(f"d{i}", 0o700)
    open(f"d{i}/f", "w").close()
    os.mkdir(f"d{i}/e", 0)
    try:
        os.chmod(f"d{i}", 0)
    except OSError:
        pass
""",
    "output": "while True: sys.stdout.write('x' * (1 << 20))",
    "errors": "while True: os.write(2, b'x' * (1 << 20))",
    "loop": "while True: pass",
    "loop_threads": "for _ in range(4): threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()",
    "sleep": "time.sleep(1000)",
    "deaf_loop": """
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    try:
        while True:
            pass
    except BaseException:
        pass
""",
    "deaf_exit": """
import atexit
atexit.register(lambda: time.sleep(1000))
""",
    "stop": "os.kill(os.getpid(), signal.SIGSTOP)",
    "pattern": "import re; re.match('(a*)*b', 'a' * 40)",
    "power": "x = 9 ** 9 ** 9",
    "big_print": "print(10 ** 10 ** 8)",
    "threads": """
threading.stack_size(32768)
started = 0
try:
    for i in range(20_000):
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        started = i
finally:
    if started > 5000:
        got(started)
""",
    "descriptors": """
kept = []
try:
    for i in range(10_000):
        kept.append(os.dup(1))
finally:
    if len(kept) > 1000:
        got(len(kept))
""",
    "descriptor_tables": """
threading.stack_size(1 << 16)
made = []
def own():
    kernel(436, 436, 1 << 20, 1 << 20, 2)
    try:
        while len(made) < 5000:
            made.append(os.dup(1))
    except OSError:
        time.sleep(0.1)
for thread in [threading.Thread(target=own) for _ in range(100)]:
    thread.start()
got(len(made)) if len(made) > 1000 else None
""",
    "descriptor_tables_of_threads": """
stack = ctypes.create_string_buffer(1 << 16)
top = ctypes.c_void_p(ctypes.addressof(stack) + (1 << 16) - 64)
for flags in (0x10900, 0x10B00, 0x10D00):
    attempt(lambda: libc.clone(libc.pause, top, flags, None))
""",
    "recursion": "sys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()",
    "crash": "ctypes.string_at(0)",
    "compile_bomb": "eval('(' * 100_000 + ')' * 100_000)",
    "lock_memory": "got('locked') if libc.mlockall(3) == 0 else None",
}
