"""The jail a zygote builds around itself, and the cell each program enters.

`build` runs once in a zygote: it leaves the host (namespaces and a root of its own, or Landlock).
`Jail.enter` runs in each fork: a fresh work folder, no privileges, limits, the system-call filter.
Levels: "namespaces", "landlock", "seccomp", "process" (see docs/sandbox.md for what each holds).
Runs with the standard library alone and loads as little of it as it can: every module costs each
fork time.
"""

# A zygote does not load pathlib: each fork would pay for it.
# ruff: noqa: PTH102, PTH103, PTH110, PTH112, PTH114, PTH115, PTH116, PTH120, PTH123, PTH208, PTH211

import math
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass

from rl_reasoner.sandbox import linux, removal, seccomp

QUOTA_BYTES, QUOTA_FILES = 16 << 20, 2048
MAX_OPEN_FILES = 64
MAX_THREADS = 128
_LEFT_TO_OTHERS = 64  # of a user's processes, where a limit counts all of them
_STACK_BYTES = 120 << 20  # the gap that the kernel leaves below a stack is 128 MB
_NOBODY = 65534
_FIRST_JOB_UID = 1_900_000_000  # above every range that distributions hand out
_PID_MARK = 0xFEEDBEEF
_BOX = "/box"
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_HIDDEN = ("site-packages", "dist-packages")


@dataclass
class JailLimits:
    """What one program may use: seconds of CPU, bytes of memory beyond the zygote's own."""

    cpu_s: float
    memory: int


@dataclass
class Jail:
    """A zygote's jail, ready for programs to enter."""

    level: str
    readable: list[str]
    scratch: str  # the host folder that holds the boxes; empty in namespaces
    uid: int | None  # the user a program becomes; None: stays the user it is
    private_count: bool  # whether RLIMIT_NPROC counts this jail's processes alone
    own_memory: int  # bytes of address space of the zygote itself
    filter: bytes  # the system-call filter, the program's process id left open
    proc: int | None  # the zygote's own view of /proc, to ask how long programs waited

    def box(self, number: int) -> str:
        """Make the folder of job `number`, which holds its program and its work folder."""
        if self.level == "namespaces":
            return _BOX
        box = f"{self.scratch}/{number}"
        os.mkdir(box, 0o755)
        for folder in folders_of(box):
            os.mkdir(folder, 0o755)
            if self.uid is not None:
                os.chown(folder, self.uid, self.uid)
        return box

    def enter(self, box: str, source: bytes, stdin: bytes | None, limits: JailLimits) -> None:
        """Confine the calling process for good; its working folder becomes the box's `work`.

        `source` is left as `main.py` in the box, and `stdin` where /dev/stdin leads.
        """
        if self.level == "namespaces":
            self._mount_box(len(source) + len(stdin or b""))
        _write(f"{box}/main.py", source)
        if stdin is not None and self.level == "namespaces":
            _write(f"{box}/stdin", stdin)
        os.chdir(f"{box}/work")
        os.umask(0o022)
        if self.uid is not None:
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
        _limit(limits, self.own_memory, self.private_count)
        if self.level == "process":
            return
        if self.level != "namespaces":
            linux.die_with_parent(signal.SIGKILL)
        linux.drop_capabilities()
        linux.hide_memory()
        linux.no_new_privileges()
        if self.level == "landlock":
            rules = [(path, linux.MAY_READ) for path in self.readable]
            rules += [(f"{box}/main.py", linux.MAY_READ)]
            rules += [(folder, linux.MAY_CHANGE) for folder in folders_of(box)]
            linux.landlock(rules + _device_rules())
            removal.keep_aside(folders_of(box)[1])
        mark, pid = struct.pack("=I", _PID_MARK), struct.pack("=I", os.getpid())
        linux.install_filter(self.filter.replace(mark, pid))

    def _mount_box(self, extra: int) -> None:
        linux.unshare(linux.CLONE_NEWNS)
        flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
        size = QUOTA_BYTES + extra + 16384
        linux.mount("box", _BOX, "tmpfs", flags, f"size={size},nr_inodes={QUOTA_FILES},mode=755")
        os.mkdir(f"{_BOX}/work", 0o755)
        if self.uid is not None:
            os.chown(f"{_BOX}/work", self.uid, self.uid)


def folders_of(box: str) -> tuple[str, str]:
    """Where a program may write: its work folder, and the one for what it removed."""
    return f"{box}/work", f"{box}/removed"


def build(level: str, packages: list[str], scratch: str) -> Jail:
    """Leave the host at `level`. For "namespaces" the caller must be in them (`isolate`) already.

    `packages` are folders of site-packages that programs may import from, `scratch` a folder on
    the host for boxes. Raises OSError, or RuntimeError where the machine has no filter.
    """
    readable = [*_library_folders(), *packages]
    own_memory, proc = _address_space(), _open_proc()
    needed = [] if level == "namespaces" else [*readable, scratch]
    uid = _job_uid(needed) if level != "process" and os.geteuid() == 0 else None
    if level == "namespaces":
        _make_root(readable, packages)
        linux.drop_bounding_set()
    elif level == "landlock":
        linux.no_new_privileges()
        linux.landlock(_outer_rules(readable, packages, scratch))
    code = b""
    if level != "process":
        machine = os.uname().machine
        _hide_host_name()
        if not seccomp.supported(machine):
            raise RuntimeError(f"no system-call filter for {machine}")
        code = seccomp.program(machine, level, _PID_MARK)
    own_count = level == "namespaces" or uid is not None
    private = level != "process" and own_count and _count_is_private(uid)
    return Jail(level, readable, scratch, uid, private, own_memory, code, proc)


def isolate() -> None:
    """Move into new namespaces; the next fork is process 1 of its own world. Raises OSError."""
    flags = (
        linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWNET
        | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWCGROUP
    )  # fmt: skip
    uid, gid = os.geteuid(), os.getegid()
    try:
        linux.unshare(flags)
    except PermissionError:
        linux.unshare(flags | linux.CLONE_NEWUSER)
        _write("/proc/self/setgroups", b"deny")
        _write("/proc/self/uid_map", b"%d %d 1" % (_NOBODY, uid))
        _write("/proc/self/gid_map", b"%d %d 1" % (_NOBODY, gid))


# ---------------------------------------------------------------------------- the file system


def _library_folders() -> list[str]:
    """Folders that Python reads: its standard library and the system's shared libraries."""
    python = [path for path in sys.path if os.path.isdir(path)]
    with open("/proc/self/maps") as maps:
        mapped = {line.rstrip("\n").partition("/")[2] for line in maps if ".so" in line}
    shared = {os.path.dirname("/" + path) for path in mapped if path}
    # Not a folder that holds the library itself, nor what lies inside it.
    extra = [
        folder
        for folder in sorted(shared)
        if not any(_inside(path, folder) or _inside(folder, path) for path in python)
        and not any(name in folder for name in _HIDDEN)
    ]
    return [path for path in [*python, *extra, "/usr/share/zoneinfo"] if os.path.isdir(path)]


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _make_root(readable: list[str], packages: list[str]) -> None:
    """A root of its own: read-only libraries, five devices, a mount point for boxes, no more."""
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    places = ("/tmp", "/mnt", "/media", "/srv", "/opt", "/home", "/var")
    root = next(p for p in places if os.path.isdir(p) and not any(_inside(r, p) for r in readable))
    flags = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("root", root, "tmpfs", flags, "size=4m,nr_inodes=4096,mode=755")
    top = [path for path in readable if not any(path != r and _inside(path, r) for r in readable)]
    for path in top:
        _bind(path, root + path)
    hidden = [f"{root}{path}/{name}" for path in top for name in _HIDDEN]
    hidden = [path for path in hidden if os.path.isdir(path)]
    for path in hidden:
        linux.mount("none", path, "tmpfs", flags, "size=1m,mode=755")
    for path in packages:  # those that lie below a hidden folder
        if path not in top:
            _bind(path, root + path)
    for path in hidden:
        linux.mount("none", path, flags=linux.MS_REMOUNT | linux.MS_RDONLY | flags)
    for device in _DEVICES:
        os.makedirs(f"{root}/dev", exist_ok=True)
        _write(root + device, b"")
        linux.mount(device, root + device, flags=linux.MS_BIND)
        _close_to_writing(root + device, 0)  # of its times, owner and mode: it is the host's own
    os.symlink(f"{_BOX}/stdin", f"{root}/dev/stdin")
    os.mkdir(root + _BOX)
    if not os.path.lexists(f"{root}/tmp"):
        os.symlink(f"{_BOX}/work", f"{root}/tmp")
    for name in ("lib", "lib64"):
        if os.path.islink(f"/{name}") and not os.path.lexists(f"{root}/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
    linux.pivot_into(root)
    linux.mount("none", "/", flags=linux.MS_REMOUNT | linux.MS_RDONLY | flags)
    linux.set_hostname("sandbox")


def _bind(source: str, target: str) -> None:
    """A read-only view of the folder `source` at `target`."""
    os.makedirs(target, exist_ok=True)
    linux.mount(source, target, flags=linux.MS_BIND | linux.MS_REC)
    _close_to_writing(target, linux.MS_NODEV)


def _close_to_writing(target: str, more: int) -> None:
    """Remount a bind read-only, without set-user bits and with the flags `more`."""
    kept = os.statvfs(target).f_flag  # flags that a user namespace may not take away
    keep = 0
    for seen, flag in (
        (os.ST_NODEV, linux.MS_NODEV),
        (os.ST_NOEXEC, linux.MS_NOEXEC),
        (os.ST_NOATIME, linux.MS_NOATIME),
        (os.ST_NODIRATIME, linux.MS_NODIRATIME),
        (os.ST_RELATIME, linux.MS_RELATIME),
    ):
        keep |= flag if kept & seen else 0
    flags = linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | linux.MS_NOSUID
    linux.mount("none", target, flags=flags | more | keep)


def _outer_rules(readable: list[str], packages: list[str], scratch: str) -> list[tuple[str, int]]:
    """Landlock for a whole zygote: the libraries without site-packages, and all its boxes.

    A library folder with site-packages cannot be listed itself: imports do without, from the list
    that the zygote's own imports left in `sys.path_importer_cache`. /proc is for the zygote, which
    counts threads there; programs lose it when they enter.
    """
    rules = [(scratch, linux.MAY_CHANGE), ("/proc", linux.MAY_READ)]
    for path in readable:
        names = os.listdir(path)
        if not any(name in names for name in _HIDDEN):
            rules.append((path, linux.MAY_READ))
            continue
        rules += [(f"{path}/{name}", linux.MAY_READ) for name in names if name not in _HIDDEN]
    rules += [(path, linux.MAY_READ) for path in packages]
    return rules + _device_rules()


def _device_rules() -> list[tuple[str, int]]:
    return [(path, linux.MAY_USE) for path in _DEVICES if os.path.exists(path)]


def _hide_host_name() -> None:
    """Let `platform` work without the system call, which only a UTS namespace makes harmless."""
    seen = os.uname()
    told = os.uname_result((seen.sysname, "sandbox", seen.release, seen.version, seen.machine))
    os.uname = lambda: told


def _write(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        while content:
            content = content[os.write(descriptor, content) :]
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------- users and limits


def _job_uid(needed: list[str]) -> int | None:
    """A user that nobody else is, so that limits by user count one zygote's programs alone.

    None where such a user could not reach the folders `needed`: programs then stay the user that
    the zygote is, without its capabilities.
    """
    try:
        zygote = int(os.readlink("/proc/self"))  # in a namespace its own number is always 1
    except OSError:
        zygote = os.getpid()
    for uid in (_FIRST_JOB_UID + zygote, _NOBODY):

        def become(uid: int = uid) -> None:
            os.setresuid(uid, uid, uid)
            for path in needed:
                os.stat(f"{path}/.")

        if _in_fork(become):
            return uid
    return None


def _count_is_private(uid: int | None) -> bool:
    """Whether a limit of a few processes still lets one thread start: nobody else is counted."""

    def try_thread() -> None:
        import threading

        if uid is not None:
            os.setresuid(uid, uid, uid)
        linux.drop_capabilities()
        resource.setrlimit(resource.RLIMIT_NPROC, (6, 6))
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()

    return uid != _NOBODY and _in_fork(try_thread)


def _in_fork(action: Callable[[], None]) -> bool:
    pid = os.fork()
    if not pid:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def _limit(limits: JailLimits, own_memory: int, private_count: bool) -> None:
    wanted = {
        resource.RLIMIT_CPU: math.ceil(limits.cpu_s),
        resource.RLIMIT_FSIZE: QUOTA_BYTES,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    if own_memory:
        wanted[resource.RLIMIT_AS] = own_memory + limits.memory
    most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    if private_count:
        wanted[resource.RLIMIT_NPROC] = MAX_THREADS
    elif most != resource.RLIM_INFINITY:  # zygotes, and what else the user runs, can still fork
        wanted[resource.RLIMIT_NPROC] = most - min(_LEFT_TO_OTHERS, most // 4)
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    stack = _STACK_BYTES if hard == resource.RLIM_INFINITY else min(_STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, hard))


def _open_proc() -> int | None:
    try:
        return os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None


def _address_space() -> int:
    """Bytes of address space this process has; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0
