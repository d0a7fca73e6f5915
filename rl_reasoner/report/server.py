"""A run's page while the run trains: served on this machine alone, read only, to who has its token.

Two addresses exist, both behind the token: the page, and what has changed since it was made. No
other path is looked up, so no file can be asked for. Requests under another host's name are turned
away (a page elsewhere could lead its visitors' browsers here). Files are followed as they grow; a
file that was cut back, a new stage, evaluation or chart makes the page load anew.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from hmac import compare_digest
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs

from rl_reasoner.errors import UserError
from rl_reasoner.foreign import json_value, number
from rl_reasoner.report.browse import appended
from rl_reasoner.report.first_screen import run_facts
from rl_reasoner.report.page import build_page
from rl_reasoner.report.rollouts import Rollouts, rows_after, samples_after
from rl_reasoner.report.run_data import RunData, StageRecord, read_run
from rl_reasoner.report.shell import policy
from rl_reasoner.report.stages import drawings_of, others_of

HOST = "127.0.0.1"
_LAST_PORT = 65535
_ROWS_SENT = 2_000_000  # bytes of a file in one answer


class Watched:
    """A run's folder as it grows. Safe to be asked from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = Lock()
        self._cuts = 0  # times that a file was cut back
        self._run = self._begin()

    def page(self) -> str:
        """The page as of now."""
        with self._lock:
            version = self._version()
            self._run = self._begin()
            return build_page(self._run, {"version": version, "structure": self._structure()})

    def state(self, have: str, ends: Mapping[str, Any]) -> dict[str, Any] | None:
        """What has changed since the version `have`; None for nothing.

        `ends` says for each source of rollouts up to which byte the page has its file.
        """
        with self._lock:
            version = self._version()
            rollouts = self._rollouts(ends)
            if version == have and not rollouts:
                return None
            self._follow()
            return {
                "version": version,
                "structure": self._structure(),
                "facts": run_facts(self._run),
                "charts": {
                    key: value for stage in self._run.stages for key, value in _charts(stage)
                },
                "rollouts": rollouts,
            }

    def _begin(self) -> RunData:
        files = self.folder.glob("stages/*/metrics.jsonl")  # what comes meanwhile is read again
        ends = {path.parent.name: path.stat().st_size for path in files}
        run = read_run(self.folder)
        self._ends = {stage.index: ends.get(stage.folder, 0) for stage in run.stages}
        return run

    def _path(self, stage: StageRecord, name: str) -> Path:
        return self.folder / "stages" / stage.folder / name

    def _version(self) -> str:
        """A hash that changes with any file that the page shows."""
        patterns = ("lock.json", "evals/*.json", "stages/*/*.json*", "stages/*/best/*.json")
        files = sorted(path for pattern in patterns for path in self.folder.glob(pattern))
        facts = []
        for path in files:
            with suppress(FileNotFoundError):  # it is being replaced
                facts.append((str(path), path.stat().st_size, path.stat().st_mtime_ns))
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def _structure(self) -> str:
        """A hash that changes with what only a newly loaded page can show."""
        evals = [(p.name, p.stat().st_mtime_ns) for p in sorted(self.folder.glob("evals/*.json"))]
        stages = sorted(path.name for path in self.folder.glob("stages/*-*"))
        charts = [key for stage in self._run.stages for key, _ in _charts(stage)]
        flat = [d.title for stage in self._run.stages for d in drawings_of(stage) if d.flat]
        sampled = [
            bool(stage.rollouts and stage.rollouts.completions) for stage in self._run.stages
        ]
        facts = (self._cuts, evals, stages, charts, flat, sampled)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def _follow(self) -> None:
        """Take in what was appended to the files since they were last read."""
        stages = []
        for stage in self._run.stages:
            end, rows = rows_after(self._path(stage, "metrics.jsonl"), self._ends[stage.index])
            kept = stage.rollouts or Rollouts()
            sampled_to, samples = samples_after(self._path(stage, "rollouts.jsonl"), kept.end)
            if end < 0 or sampled_to < 0:
                self._cuts += 1
                self._run = self._begin()
                return
            self._ends[stage.index] = end
            kept.end = sampled_to
            for sample in samples:
                kept.add(sample)
            by_step = {row["step"]: row for row in stage.metrics}
            for row in rows:
                if (step := number(row.get("step"))) is not None:
                    by_step[int(step)] = {**row, "step": int(step)}
            metrics = [by_step[step] for step in sorted(by_step)]
            stages.append(replace(stage, metrics=metrics, rollouts=kept if kept.end else None))
        self._run = replace(self._run, stages=stages)

    def _rollouts(self, ends: Mapping[str, Any]) -> dict[str, Any]:
        """The rollouts behind what the page has, by source."""
        by_source = {}
        for stage in self._run.stages:
            key = f"stage-{stage.index}-rollouts"
            start = ends.get(key)
            if isinstance(start, int) and start > 0:
                path = self._path(stage, "rollouts.jsonl")
                end, samples = samples_after(path, start, _ROWS_SENT)
                if samples:
                    by_source[key] = {"end": end, "rows": appended(samples)}
        return by_source


def _charts(stage: StageRecord) -> list[tuple[str, dict[str, Any]]]:
    drawings = [*drawings_of(stage), *others_of(stage)]
    return [
        (f"stage-{stage.index}/{d.title}", {"spec": d.spec, "summary": d.summary}) for d in drawings
    ]


def serve_folder(folder: Path, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page of the run in `folder` until the process is interrupted.

    `ready` gets the address; port 0 is any that is free. Raises `UserError` when `folder` is no run
    folder or the port is taken.
    """
    if not 0 <= port <= _LAST_PORT:
        raise UserError(f"--port {port}: expected 0 (any that is free) to {_LAST_PORT}")
    watched = Watched(folder)
    token = secrets.token_urlsafe(24)

    handler = type("Handler", (_Handler,), {"watched": watched, "token": token})
    try:
        server = ThreadingHTTPServer((HOST, port), handler)
    except OSError as error:
        raise UserError(f"cannot listen on {HOST}:{port}: {error.strerror}") from error
    handler.port = server.server_port  # type: ignore[attr-defined]
    with server, suppress(KeyboardInterrupt):
        ready(f"http://{HOST}:{server.server_port}/{token}/")
        server.serve_forever(poll_interval=0.2)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET alone."""

    watched: Watched
    token: str
    port: int
    timeout = 30
    server_version, sys_version = "rl-reasoner", ""

    def do_GET(self) -> None:
        """The page, or what has changed; anything else is not found."""
        port = self.port
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            self._answer(HTTPStatus.FORBIDDEN)
            return
        path, _, query = self.path.partition("?")
        try:
            self._found(path, query)
        except (OSError, UserError):  # the folder is gone, or no run's any more
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE)

    def _found(self, path: str, query: str) -> None:
        if self._is(path, ""):
            self._answer(HTTPStatus.OK, self.watched.page().encode(), "text/html; charset=utf-8")
        elif self._is(path, "state"):
            self._state(parse_qs(query))
        else:
            self._answer(HTTPStatus.NOT_FOUND)

    def _is(self, path: str, name: str) -> bool:
        """Whether `path` is that of `name`; the time it takes tells nothing of the token."""
        return compare_digest(path.encode(), f"/{self.token}/{name}".encode())

    def _state(self, query: Mapping[str, list[str]]) -> None:
        try:
            ends = json_value(query.get("ends", ["{}"])[0])
        except ValueError:
            ends = None
        if not isinstance(ends, dict):
            self._answer(HTTPStatus.BAD_REQUEST)
            return
        state = self.watched.state(query.get("have", [""])[0], ends)
        if state is None:
            self._answer(HTTPStatus.NO_CONTENT)
        else:
            body = json.dumps(state, allow_nan=False).encode()
            self._answer(HTTPStatus.OK, body, "application/json")

    def _answer(self, status: HTTPStatus, body: bytes = b"", kind: str = "text/plain") -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": f"{policy(live=True)}; frame-ancestors 'none'",
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the reader's, and the token is in the path."""
