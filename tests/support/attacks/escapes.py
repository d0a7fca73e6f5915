"""Programs that try to leave the jail, see the host, or (`exhaustion`) exhaust it: each prints GOT.

A program reads what there is to attack from standard input (see `PRELUDE`): a file with a secret, a
folder that anyone may write to, listeners of the test, process ids. `SEEN` has what the level
"landlock" says it does not hold.
"""

# ruff: noqa: E501 - programs as they come

from support.attacks import exhaustion

PRELUDE = """
import ctypes, json, os, signal, socket, struct, sys, threading, time
T = json.loads(sys.stdin.read() or "{}")
X86 = sys.maxsize > 2**32 and os.uname().machine == "x86_64"
libc = ctypes.CDLL(None, use_errno=True)
def got(what):
    print("GOT", what, flush=True)
def kernel(x86, arm, *args):
    return libc.syscall(ctypes.c_long(x86 if X86 else arm), *args)
def attempt(action, *args, **kwargs):
    try:
        found = action(*args, **kwargs)
    except BaseException:
        return None
    if found is not None and found is not False and found != -1:
        got(repr(found)[:200])
    return found
"""

FILES = {
    "read_secret": "attempt(lambda: open(T['secret']).read())",
    "read_relative": "attempt(lambda: open('../' * 40 + T['secret'][1:]).read())",
    "read_through_proc_root": """
for who in ("self", "1", str(T["host"]), str(os.getppid())):
    attempt(lambda: open(f"/proc/{who}/root{T['secret']}").read())
    attempt(lambda: open(f"/proc/{who}/cwd/..{T['secret']}").read())
""",
    "read_passwd": "attempt(lambda: open('/etc/passwd').read()); attempt(lambda: open('/etc/shadow').read())",
    "read_environments": """
for who in ("self", "1", str(T["host"]), str(os.getppid())):
    attempt(lambda: open(f"/proc/{who}/environ", "rb").read() or None)
    attempt(lambda: open(f"/proc/{who}/cmdline", "rb").read() or None)
    attempt(lambda: open(f"/proc/{who}/maps", "rb").read() or None)
    attempt(lambda: open(f"/proc/{who}/mem", "rb") and True)
""",
    "read_environment": "attempt(lambda: dict(os.environ) or None)",
    "read_system": """
for path in ("/proc/meminfo", "/proc/mounts", "/proc/self/mountinfo", "/proc/kallsyms",
             "/sys/kernel/notes", "/proc/cmdline", "/etc/hostname", "/etc/resolv.conf"):
    attempt(lambda: open(path, "rb").read())
""",
    "list_host": """
for folder in ("/home", "/root", "/etc", "/var", "/proc", "/sys", "/usr/bin", T["folder"]):
    # The way to Python's own folders may be seen, empty but for it.
    attempt(lambda: [n for n in os.listdir(folder) if f"{folder}/{n}/" not in os.__file__] or None)
""",
    "walk_for_secret": """
for top, folders, files in os.walk("/"):
    for name in files:
        if name == "secret.txt":
            got(top)
""",
    "symlink_out": "os.symlink(T['secret'], 'link'); attempt(lambda: open('link').read())",
    "hard_link_in": "attempt(lambda: os.link(T['secret'], 'link')); attempt(lambda: open('link').read())",
    "rename_in": "attempt(lambda: os.rename(T['secret'], 'mine') or True)",
    "open_by_folder": """
fd = os.open(os.path.dirname(T["secret"]), os.O_PATH)
attempt(lambda: os.read(os.open("secret.txt", os.O_RDONLY, dir_fd=fd), 100))
attempt(lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))
""",
    "change_folder": """
os.chdir(os.path.dirname(T["secret"]))
attempt(lambda: open("secret.txt").read())
""",
    "chroot_out": """
os.mkdir("jail")
fd = os.open(".", os.O_RDONLY)
attempt(lambda: os.chroot("jail") or True)
os.fchdir(fd)
for _ in range(40):
    os.chdir("..")
attempt(lambda: os.chroot(".") or True)
attempt(lambda: open(T["secret"]).read())
""",
    "file_handle": """
handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
mount = ctypes.c_int()
attempt(lambda: kernel(303, 264, -100, T["secret"].encode(), handle, ctypes.byref(mount), 0))
attempt(lambda: kernel(304, 265, -100, handle, 0))
""",
    "inherited_descriptors": """
for fd in range(3, 2000):
    try:
        info = os.fstat(fd)
    except OSError:
        continue
    got((fd, info))
""",
    "write_secret": "attempt(lambda: open(T['secret'], 'a').write('x'))",
    "write_folder": "attempt(lambda: open(T['folder'] + '/mine', 'w').write('x'))",
    "truncate_secret": """
attempt(lambda: os.truncate(T["secret"], 0) or True)
attempt(lambda: open(T["secret"], "r+").truncate(0) or True)
""",
    "change_mode": "attempt(lambda: os.chmod(T['secret'], 0o777) or True)",
    "change_owner": "attempt(lambda: os.chown(T['secret'], os.getuid(), -1) or True)",
    "change_times": "attempt(lambda: os.utime(T['secret'], (1, 1)) or True)",
    "change_device_times": """
for name in ("null", "zero", "full", "random", "urandom"):
    attempt(lambda: os.utime(f"/dev/{name}") or True)
    attempt(lambda: os.utime(f"/dev/{name}", (1, 1)) or True)
""",
    "change_attributes": "attempt(lambda: os.setxattr(T['secret'], 'user.mine', b'x') or True)",
    "remove_secret": "attempt(lambda: os.unlink(T['secret']) or True)",
    "make_folder": "attempt(lambda: os.mkdir(T['folder'] + '/mine') or True)",
    "make_link": "attempt(lambda: os.symlink('/', T['folder'] + '/mine') or True)",
    "make_fifo": "attempt(lambda: os.mkfifo(T['folder'] + '/mine') or True)",
    "make_device": "attempt(lambda: os.mknod('device', 0o60666, os.makedev(8, 0)) or True)",
    "shared_memory": """
attempt(lambda: open("/dev/shm/mine", "w").write("x"))
attempt(lambda: __import__("multiprocessing.shared_memory").shared_memory.SharedMemory(create=True, size=9))
attempt(lambda: kernel(29, 194, 0, 4096, 0o1600))
""",
    "raw_devices": """
for path in ("/dev/mem", "/dev/kmem", "/dev/kmsg", "/dev/sda", "/dev/vda", "/dev/fuse", "/dev/tty"):
    attempt(lambda: os.open(path, os.O_RDONLY))
""",
    "change_library": """
attempt(lambda: open(os.__file__, "a").write("# mine"))
attempt(lambda: open(os.path.dirname(os.__file__) + "/mine.py", "w").write("x"))
attempt(lambda: os.rename(os.__file__, os.__file__ + ".old") or True)
""",
    "site_packages": """
import glob
for path in sys.path:
    attempt(lambda: glob.glob(path + "/site-packages/*/*.py") or None)
""",
    "mounts": """
attempt(lambda: libc.mount(b"none", b".", b"tmpfs", 0, None))
attempt(lambda: libc.mount(b"/", b".", None, 4096, None))
attempt(lambda: libc.umount2(b"/box", 2))
attempt(lambda: kernel(155, 41, b".", b"."))
attempt(lambda: kernel(428, 428, -100, b"/", 1))
attempt(lambda: kernel(430, 430, b"tmpfs", 0))
""",
}

NETWORK = {
    "tcp": "attempt(lambda: socket.create_connection(('127.0.0.1', T['port']), 2) and True)",
    "udp": "attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', T['port'])))",
    "tcp6": "attempt(lambda: socket.socket(socket.AF_INET6).connect(('::1', T['port'])) or True)",
    "listen": """
s = attempt(lambda: socket.socket())
attempt(lambda: s.bind(("0.0.0.0", 0)) or True)
""",
    "names": "attempt(lambda: socket.getaddrinfo('example.com', 80))",
    "abstract_socket": "attempt(lambda: socket.socket(socket.AF_UNIX).connect('\\0' + T['abstract']) or True)",
    "unix_path": "attempt(lambda: socket.socket(socket.AF_UNIX).connect(T['socket']) or True)",
    "datagram_from_pair": """
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
attempt(lambda: a.sendto(b"x", T["datagram"]))
attempt(lambda: a.sendmsg([b"x"], [], 0, T["datagram"]))
attempt(lambda: a.connect(T["datagram"]) or True)
""",
    "stream_pair_elsewhere": """
a, b = socket.socketpair()
attempt(lambda: a.connect(T["socket"]) or True)
attempt(lambda: a.sendto(b"x", T["socket"]))
attempt(lambda: a.sendmsg([b"x"], [], 0, T["datagram"]))
attempt(lambda: a.bind("/tmp/mine") or True)
""",
    "odd_families": """
for family, kind in ((16, 3), (17, 3), (38, 5), (40, 1), (2, 3), (10, 3)):
    attempt(lambda: socket.socket(family, kind) and True)
""",
    "raw_calls": """
attempt(lambda: kernel(41, 198, 2, 1, 0))
attempt(lambda: kernel(53, 199, 1, 2, 0, (ctypes.c_int * 2)()))
""",
}

PROCESSES = {
    "fork": "attempt(os.fork)",
    "vfork": "attempt(lambda: kernel(58, 1071, 0))",
    "clone_raw": "attempt(lambda: kernel(56, 220, 17, 0, 0, 0, 0))",
    "clone3_raw": "attempt(lambda: kernel(435, 435, ctypes.create_string_buffer(struct.pack('8Q', 0, 0, 0, 0, 17, 0, 0, 0)), 64))",
    "subprocess": "import subprocess; attempt(lambda: subprocess.check_output(['/bin/sh', '-c', 'id']))",
    "system": "attempt(lambda: os.system('true') == 0)",
    "spawn": "attempt(lambda: os.posix_spawn(sys.executable or '/bin/true', ['x'], {}))",
    "exec_self": "attempt(lambda: os.execv('/bin/sh', ['sh', '-c', 'echo GOT shell']))",
    "exec_memory": """
fd = attempt(lambda: os.memfd_create("mine"))
attempt(lambda: kernel(322, 281, fd or 0, b"", None, None, 0x1000))
""",
    "multiprocessing": """
import multiprocessing
attempt(lambda: multiprocessing.get_context("fork").Process(target=int).start() or True)
""",
    "daemon": """
try:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        os._exit(0)
    got("daemon")
except OSError:
    pass
""",
    "new_session": "attempt(lambda: os.setsid() or True); attempt(lambda: os.setpgid(0, 0) or True)",
    "kill_host": "attempt(lambda: os.kill(T['host'], 0) or True); attempt(lambda: os.kill(T['host'], 9) or True)",
    "kill_bystander": "attempt(lambda: os.kill(T['bystander'], 9) or True)",
    "kill_parent": "attempt(lambda: os.kill(os.getppid(), 9) or True)",
    "kill_all": """
for group in (-1, 0, 1):
    attempt(lambda: os.kill(group, 9) or True)
attempt(lambda: os.killpg(0, 9) or True)
""",
    "thread_kill": "attempt(lambda: kernel(234, 131, T['bystander'], T['bystander'], 9))",
    "queue_signal": "attempt(lambda: kernel(129, 138, T['bystander'], 9, ctypes.create_string_buffer(128)))",
    "pidfd_signal": """
fd = attempt(lambda: os.pidfd_open(T["bystander"]))
attempt(lambda: kernel(424, 424, fd or 0, 9, None, 0))
""",
    "owner_signal": """
import fcntl
a, b = socket.socketpair()
attempt(lambda: fcntl.fcntl(a, fcntl.F_SETOWN, T["bystander"]) == 0 and "owner")
attempt(lambda: fcntl.ioctl(a, 0x8901, struct.pack("i", T["bystander"])) and "owner")
""",
    "trace": """
for pid in (os.getppid(), T["bystander"], T["host"]):
    attempt(lambda: kernel(101, 117, 16, pid, 0, 0))
    attempt(lambda: kernel(101, 117, 0x4206, pid, 0, 0))
""",
    "read_memory": """
buffer = ctypes.create_string_buffer(8)
class V(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
mine = V(ctypes.addressof(buffer), 8)
far = V(id(buffer), 8)
for pid in (os.getppid(), T["bystander"]):
    attempt(lambda: kernel(310, 270, pid, ctypes.byref(mine), 1, ctypes.byref(far), 1, 0))
""",
    "ask_of_others": """
for pid in (os.getppid(), T["bystander"], T["host"]):
    attempt(os.getpgid, pid)
    attempt(os.getsid, pid)
    attempt(os.sched_getaffinity, pid)
    attempt(os.getpriority, os.PRIO_PROCESS, pid)
    attempt(time.clock_gettime, (~pid << 3) | 2)
    attempt(time.clock_getres, (~pid << 3) | 2)
    if kernel(274, 100, pid, ctypes.byref(ctypes.c_void_p()), ctypes.byref(ctypes.c_size_t())) == 0:
        got(pid)
""",
    "steal_descriptor": """
fd = attempt(lambda: os.pidfd_open(os.getppid()))
attempt(lambda: kernel(438, 438, fd or 0, 3, 0))
""",
    "others_limits": """
import resource
for pid in (os.getppid(), T["bystander"]):
    attempt(lambda: resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1)))
    attempt(lambda: os.sched_setaffinity(pid, {0}) or True)
    attempt(lambda: os.setpriority(os.PRIO_PROCESS, pid, 19) or True)
""",
    "raise_limits": """
import resource
for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
    attempt(lambda: resource.setrlimit(kind, (resource.RLIM_INFINITY,) * 2) or True)
""",
    "gain_rights": """
attempt(lambda: os.setuid(0) or True if os.getuid() else None)
attempt(lambda: os.setgroups([0]) or True)
attempt(lambda: libc.prctl(38, 0, 0, 0, 0))
attempt(lambda: libc.prctl(4, 1, 0, 0, 0))
attempt(lambda: libc.prctl(1, 0, 0, 0, 0))
attempt(lambda: libc.capset(ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0)),
                            ctypes.create_string_buffer(b"\\xff" * 24)))
""",
    "namespaces": """
for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000):
    attempt(lambda: libc.unshare(flag))
attempt(lambda: libc.setns(0, 0))
""",
    "kernel_doors": """
attempt(lambda: kernel(425, 425, 8, ctypes.create_string_buffer(120)))
attempt(lambda: kernel(321, 280, 0, ctypes.create_string_buffer(120), 120))
attempt(lambda: kernel(298, 241, ctypes.create_string_buffer(128), 0, -1, -1, 0))
attempt(lambda: kernel(323, 282, 0))
attempt(lambda: kernel(248, 217, b"user", b"mine", b"x", 1, -4))
attempt(lambda: kernel(250, 219, 0, -4, 1))
attempt(lambda: kernel(135, 92, 0x0040000))
attempt(lambda: kernel(317, 277, 1, 0, None))
attempt(lambda: kernel(253, 26))
attempt(lambda: kernel(300, 262, 0, 0))
""",
    "other_tables": """
if X86:
    attempt(lambda: libc.syscall(ctypes.c_long(0x40000000 | 57)))
    import mmap
    page = mmap.mmap(-1, 4096, prot=7)
    # mov eax, 2 (fork of the 32-bit table); int 0x80; ret
    page.write(b"\\xb8\\x02\\x00\\x00\\x00\\xcd\\x80\\xc3")
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    attempt(ctypes.CFUNCTYPE(ctypes.c_int)(start))
""",
    "terminal_input": """
import fcntl
for fd in (0, 1, 2):
    attempt(lambda: fcntl.ioctl(fd, 0x5412, b"x"))
""",
    "host_name": """
for name in (lambda: os.uname().nodename, socket.gethostname):
    attempt(lambda: name() if name() not in ("sandbox", "") else None)
attempt(lambda: libc.sethostname(b"mine", 4))
""",
    "command_line": """
for argument in sys.orig_argv + sys.argv:
    if "rl_reasoner" in argument or "rl-sandbox" in argument:
        got(argument)
""",
}

ESCAPES = {
    f"{group}/{name}": program
    for group, programs in (
        ("files", FILES),
        ("network", NETWORK),
        ("processes", PROCESSES),
        ("resources", exhaustion.RESOURCES),
    )
    for name, program in programs.items()
}

# What a level may leave to be seen where it says so, by the word of the gap that says it.
SEEN = {
    "stat_secret": ("stat", "attempt(lambda: os.stat(T['secret']).st_size)"),
    "exists": ("stat", "attempt(lambda: os.path.exists(T['folder']))"),
    "link": ("links", "attempt(lambda: os.readlink(T['link']))"),
    "process_exists": (
        "processes",
        "attempt(lambda: os.stat(f'/proc/{T[\"bystander\"]}').st_uid + 1)",
    ),
}
