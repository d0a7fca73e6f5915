"""Removing files at level "landlock": what a program removes is kept aside, and counted.

A file without a name stays on the disk while a descriptor or a mapping holds it, and no watcher
can count it: so the filter of that level lets no file lose its last name. Here `os.remove`,
`os.unlink`, `os.rename` and `os.replace` do what programs expect of them with what the filter
allows. They are no part of what confines a program; a zygote installs them, and itself uses the
system's own.
"""

import contextlib
import errno
import itertools
import os
import stat

from rl_reasoner.sandbox import linux

_Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
_AT_FDCWD = -100
_DESCRIPTORS = range(64)

_unlink, _rename = os.unlink, os.rename
_count = itertools.count()
_aside = ""  # the folder for what this process removes; empty in a zygote


def install() -> None:
    """Put these functions in the place of the system's, for programs forked later."""
    os.unlink = os.remove = remove
    os.rename = os.replace = rename


def keep_aside(folder: str) -> None:
    """From now on, in this process, nothing is removed: it moves to `folder`."""
    global _aside
    _aside = folder


def remove(path: _Path, *, dir_fd: int | None = None) -> None:
    """`os.remove`. The space is free at once where this process has the file not open."""
    if not _aside:
        return _unlink(path, dir_fd=dir_fd)
    seen = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    if stat.S_ISDIR(seen.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    kept = f"{_aside}/{next(_count)}"
    _move(path, kept, dir_fd, None)
    if stat.S_ISREG(seen.st_mode) and seen.st_nlink == 1 and not _is_open(seen):
        with contextlib.suppress(OSError):
            os.close(os.open(kept, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW))
    return None


def rename(
    src: _Path, dst: _Path, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
) -> None:
    """`os.rename`, and `os.replace`. What has the new name is removed first."""
    if not _aside:
        return _rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
    with contextlib.suppress(FileNotFoundError):  # then there is nothing to make room for
        source = os.stat(src, dir_fd=src_dir_fd, follow_symlinks=False)
        target = os.stat(dst, dir_fd=dst_dir_fd, follow_symlinks=False)
        if os.path.samestat(source, target):
            return None
        folders = stat.S_ISDIR(source.st_mode), stat.S_ISDIR(target.st_mode)
        if folders == (True, False):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), src, None, dst)
        if folders == (True, True):
            os.rmdir(dst, dir_fd=dst_dir_fd)
        else:
            remove(dst, dir_fd=dst_dir_fd)
    _move(src, dst, src_dir_fd, dst_dir_fd)
    return None


def _move(src: _Path, dst: _Path, src_folder: int | None, dst_folder: int | None) -> None:
    folders = [_AT_FDCWD if folder is None else folder for folder in (src_folder, dst_folder)]
    try:
        linux.rename_to_new(os.fsencode(src), os.fsencode(dst), *folders)
    except OSError as error:
        code = error.errno or errno.EIO
        raise OSError(code, os.strerror(code), src, None, dst) from None


def _is_open(seen: os.stat_result) -> bool:
    for descriptor in _DESCRIPTORS:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), seen):
                return True
    return False
