"""Thin calls into the Linux kernel that Python's standard library lacks.

Each function is one system call by ctypes and raises OSError where the kernel says no. Loaded
inside a zygote, before any program runs; the foreign functions are made once, so that a fork pays
only for the call. Knows nothing of the other modules.
"""

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID = 0x08000000, 0x10000000, 0x20000000
CLONE_NEWNET = 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MS_NOATIME, MS_NODIRATIME, MS_RELATIME = 1024, 2048, 1 << 21

_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 4, 24
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_SET_CHILD_SUBREAPER = 22, 38, 36
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_M_ARENA_MAX = -8
_RENAMEAT2 = {"x86_64": 316, "aarch64": 276}
_RENAME_NOREPLACE = 1
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every machine
_RULE_PATH_BENEATH = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
if sys.platform == "linux":
    _libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    _libc.mount.argtypes = [*[ctypes.c_char_p] * 3, ctypes.c_ulong, ctypes.c_char_p]


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return int(result)


def unshare(flags: int) -> None:
    """Move the calling process into new namespaces (`CLONE_NEW*`)."""
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2); `kind` is the file system's type, empty for binds and remounts."""
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode() or None, flags, options.encode() or None
    )
    _checked(result, f"mount {target}")


def pivot_into(root: str) -> None:
    """Make the mount point `root` the root folder and let go of the old one."""
    os.chdir(root)
    number = _PIVOT_ROOT[os.uname().machine]
    _checked(_libc.syscall(number, b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", _MNT_DETACH), "umount")
    os.chdir("/")


def rename_to_new(old: bytes, new: bytes, old_folder: int, new_folder: int) -> None:
    """Rename where nothing has the new name yet; paths are relative to open folders (-100: cwd)."""
    number = ctypes.c_long(_RENAMEAT2[os.uname().machine])
    result = _libc.syscall(number, old_folder, old, new_folder, new, _RENAME_NOREPLACE)
    _checked(result, "renameat2")


def set_hostname(name: str) -> None:
    """The host name, as seen in the caller's UTS namespace."""
    _checked(_libc.sethostname(name.encode(), ctypes.c_size_t(len(name))), "sethostname")


def die_with_parent(signal: int) -> None:
    """Ask for `signal` when the parent ends, on Linux; a change of user forgets it."""
    if sys.platform == "linux":
        _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0), "PR_SET_PDEATHSIG")


def adopt_orphans() -> None:
    """Become the parent of what a child started and left behind, on Linux."""
    if sys.platform == "linux":
        _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "PR_SET_CHILD_SUBREAPER")


def hide_memory() -> None:
    """Refuse core dumps and tracing by processes of the same user."""
    _checked(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")


def one_arena() -> None:
    """Keep malloc to one arena: each further one reserves 64 MB of address space a thread."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, 1)


def drop_bounding_set() -> None:
    """Give up every capability for all programs executed later, where permitted."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            return


_NO_CAPABILITIES = (
    ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)),
    ctypes.create_string_buffer(bytes(24)),
)


def drop_capabilities() -> None:
    """Give up all capabilities of the calling thread."""
    _checked(_libc.capset(*_NO_CAPABILITIES), "capset")


def no_new_privileges() -> None:
    """Promise never to gain privileges again: the condition for filters without being root."""
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def install_filter(program: bytes) -> None:
    """Install a seccomp filter (an array of `struct sock_filter`) for the rest of this process."""
    wanted = _Filter(len(program) // 8, program)
    address = ctypes.addressof(wanted)
    _checked(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, address, 0, 0), "PR_SET_SECCOMP")


# ---------------------------------------------------------------------------------- Landlock

_WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
_ON_FILES = _WRITE_FILE | _READ_FILE | _TRUNCATE
_FS_RIGHTS = (13, 14, 15, 15, 16)  # number of rights on files that versions 1 to 5 know
MAY_READ = _READ_FILE | _READ_DIR
MAY_USE = _READ_FILE | _WRITE_FILE  # devices
# Read, write, remove and make folders and files (also by symlink, rename and truncate).
MAY_CHANGE = MAY_READ | _WRITE_FILE | sum(1 << bit for bit in (4, 5, 7, 8, 12, 13)) | _TRUNCATE


def landlock_version() -> int:
    """The version of Landlock's interface here; OSError where there is none or it is off."""
    number = ctypes.c_long(_CREATE_RULESET)
    return _checked(_libc.syscall(number, None, ctypes.c_size_t(0), 1), "landlock")


def landlock(rules: Iterable[tuple[str, int]]) -> None:
    """Confine this process to `rules` (path, `MAY_*`): no other file on disk, no TCP, no signals.

    A rule on a folder holds for all below it. What the kernel's version of Landlock does not know
    is left to the system-call filter. Calling it again only ever narrows what is allowed.
    """
    version = landlock_version()
    rights = (1 << _FS_RIGHTS[min(version, len(_FS_RIGHTS)) - 1]) - 1
    wanted = struct.pack("=QQQ", rights, 3, 3)  # TCP bind and connect; abstract sockets, signals
    size = ctypes.c_size_t(24 if version >= 6 else 16 if version >= 4 else 8)
    number = ctypes.c_long(_CREATE_RULESET)
    ruleset = _checked(_libc.syscall(number, wanted, size, 0), "landlock_create_ruleset")
    try:
        for path, allowed in rules:
            _allow(ruleset, path, allowed & rights)
        number = ctypes.c_long(_RESTRICT_SELF)
        _checked(_libc.syscall(number, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, allowed: int) -> None:
    descriptor = os.open(path, os.O_PATH)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            allowed &= _ON_FILES
        rule = struct.pack("=Qi", allowed, descriptor)
        number = ctypes.c_long(_ADD_RULE)
        result = _libc.syscall(number, ruleset, _RULE_PATH_BENEATH, rule, 0)
        _checked(result, f"landlock_add_rule {path}")
    finally:
        os.close(descriptor)
