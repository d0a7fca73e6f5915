"""A cache of completions, so that an interrupted evaluation resumes where it was.

A completion's key is a hash over who sampled it (`identity`: for a policy the hash of its weights),
its prompt (token ids), the sampling parameters, the seed and its index among the prompt's samples.
So a changed token, weight or parameter misses, and more samples of a prompt only add. The store is
SQLite: what was committed survives a kill at any moment, and several processes may share it. Knows
nothing of torch.
"""

import errno
import hashlib
import json
import os
import platform
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from rl_reasoner.errors import UserError
from rl_reasoner.types import Rollout

_AT_ONCE = 500  # keys of one question to SQLite
_WAIT_S = 60.0  # for another process that is writing
_RESERVED = """CREATE TABLE IF NOT EXISTS reserved
    (key TEXT, owner TEXT, host TEXT, process INTEGER, at REAL, PRIMARY KEY (owner, key))"""
_STALE_S = 3600.0  # after which a block of questions is not under way any more, on any machine
_OWN: set[str] = set()  # reservations of this process


@dataclass(frozen=True)
class Usage:
    """How many completions a cache holds, of how many the tokens are not known, and all others'."""

    count: int
    untold: int
    prompt_tokens: int
    tokens: int


class SampleCache:
    """The completions of one policy (`identity`), in one SQLite file of `folder`.

    Every method raises `UserError` where the file is damaged or is none of these, and OSError where
    the disk is full or fails.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.identity = identity
        self.file = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._store() as store:
                store.execute("CREATE TABLE IF NOT EXISTS samples (key TEXT PRIMARY KEY, value)")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(f"the cache of samples {self.file} cannot be used: {error}") from error

    @contextmanager
    def _store(self) -> Iterator[sqlite3.Connection]:
        """The opened file; what is written is committed at the end."""
        try:
            with closing(sqlite3.connect(self.file, timeout=_WAIT_S)) as store, store:
                store.execute("PRAGMA synchronous = FULL")
                yield store
        except sqlite3.OperationalError as error:
            full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
            number = errno.ENOSPC if full else errno.EIO
            reason = os.strerror(number) if full else str(error)
            raise OSError(number, reason, str(self.file)) from error
        except sqlite3.Error as error:
            raise UserError(
                f"the cache of samples {self.file} cannot be used: {error} (move it away: what it"
                " holds is then sampled again)"
            ) from error

    def key(self, prompt: Any, settings: Mapping[str, Any], seed: int | None, index: int) -> str:
        """The key of sample `index` of `prompt` (token ids, or what a server is sent)."""
        parts = [self.identity, prompt, dict(settings), seed, index]
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def kept(self, keys: Sequence[str]) -> dict[str, Rollout]:
        """The cached completions among `keys`, by key."""
        rollouts: dict[str, Rollout] = {}
        with self._store() as store:
            for first in range(0, len(keys), _AT_ONCE):
                some = keys[first : first + _AT_ONCE]
                marks = ",".join("?" * len(some))
                asked = f"SELECT key, value FROM samples WHERE key IN ({marks})"
                for key, value in store.execute(asked, some):
                    rollouts[key] = Rollout(*json.loads(value))
        return rollouts

    def keep(self, drawn: Iterable[tuple[str, Rollout]]) -> None:
        """Store completions durably; the first one of a key stays."""
        rows = [(key, json.dumps(astuple(rollout))) for key, rollout in drawn]
        with self._store() as store:
            store.executemany("INSERT OR IGNORE INTO samples VALUES (?, ?)", rows)

    def usage(self) -> Usage:
        """How much was sampled: see `Usage`."""
        with self._store() as store:
            return self._usage(store)

    @staticmethod
    def _usage(store: sqlite3.Connection) -> Usage:
        of_prompt, own = "json_extract(value, '$[3]')", "json_extract(value, '$[1]')"
        told = f"count({of_prompt} + {own})"  # a sum with NULL is NULL, which is not counted
        asked = f"SELECT count(*), {told}, sum({of_prompt}), sum({own}) FROM samples"
        [(count, told_of, prompt_tokens, tokens)] = store.execute(asked)
        return Usage(int(count), int(count - told_of), int(prompt_tokens or 0), int(tokens or 0))

    @contextmanager
    def reserved(self, keys: Sequence[str], allow: Callable[[Usage, int], int]) -> Iterator[int]:
        """How many of the first `keys` may be sampled; no other process counts on them meanwhile.

        `allow` says so of what was sampled and of how many others are sampling now. What a process
        of this machine left reserved when it was killed is free again; of another one, in an hour.
        """
        host, own = platform.node(), uuid.uuid4().hex
        with self._store() as store:
            store.execute(_RESERVED)
            store.execute("BEGIN IMMEDIATE")  # nobody else reserves between the count and our own
            store.execute("DELETE FROM reserved WHERE at < ?", (time.time() - _STALE_S,))
            asked = "SELECT DISTINCT owner, process FROM reserved WHERE host = ?"
            here = store.execute(asked, (host,)).fetchall()
            ended = [(owner,) for owner, pid in here if not _asks(owner, pid)]
            store.executemany("DELETE FROM reserved WHERE owner = ?", ended)
            asked = "SELECT count(*) FROM reserved WHERE key NOT IN (SELECT key FROM samples)"
            [[under_way]] = store.execute(asked)
            count = max(0, min(len(keys), allow(self._usage(store), int(under_way))))
            rows = [(key, own, host, os.getpid(), time.time()) for key in keys[:count]]
            store.executemany("INSERT INTO reserved VALUES (?, ?, ?, ?, ?)", rows)
        _OWN.add(own)
        try:
            yield count
        finally:
            _OWN.discard(own)
            if count:
                with self._store() as store:
                    store.execute("DELETE FROM reserved WHERE owner = ?", (own,))

    def __len__(self) -> int:
        """The number of cached completions."""
        with self._store() as store:
            [[count]] = store.execute("SELECT count(*) FROM samples")
        return int(count)


def _asks(owner: str, process: int) -> bool:
    """Whether what `process` of this machine has reserved as `owner` is under way."""
    if process == os.getpid():  # in a container, the one before may have had the same number
        return owner in _OWN
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


SampleJob = tuple[int, int]  # the index of a prompt, the number of its sample
Take = Callable[[Mapping[SampleJob, Rollout]], None]


def sample_through(
    cache: SampleCache | None,
    prompts: int,
    samples: int,
    greedy: bool,
    key: Callable[[SampleCache, SampleJob], str],
    draw: Callable[[list[SampleJob], Take], None],
    progress: Callable[[int], None] | None,
) -> list[list[Rollout]]:
    """`samples` completions of each prompt: those that `cache` holds, and the others from `draw`.

    All of a prompt are the same one where sampling is `greedy`. `draw` hands on what is drawn as it
    comes; it is kept at once. `progress` is called with the number of completions that have come
    since its last call.
    """
    count = 1 if greedy else samples
    jobs = [(index, number) for index in range(prompts) for number in range(count)]
    keys = {} if cache is None else {job: key(cache, job) for job in jobs}
    kept = {} if cache is None else cache.kept([*keys.values()])
    rollouts = {job: kept[text] for job, text in keys.items() if text in kept}
    if progress and rollouts:
        progress(len(rollouts) * samples // count)

    def take(drawn: Mapping[SampleJob, Rollout]) -> None:
        if cache is not None:
            cache.keep((keys[job], rollout) for job, rollout in drawn.items())
        rollouts.update(drawn)
        if progress:
            progress(len(drawn) * samples // count)

    draw([job for job in jobs if job not in rollouts], take)
    return [[rollouts[i, n % count] for n in range(samples)] for i in range(prompts)]
