"""The command line `rl-reasoner`: which verb, with which arguments, and how it ends.

`--help` never loads torch. Exit codes: 0 done, 1 the work failed, 2 the user's mistake, 3 a
reward kept failing, 130 interrupted. `rl-reasoner train quickstart` and `python
recipes/quickstart.py` come through here alike.
"""

import contextlib
import errno
import io
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, get_args

import tyro
from rich.panel import Panel
from rich.text import Text
from tyro.conf import subcommand

from rl_reasoner.cli.audit import AuditVerb
from rl_reasoner.cli.chat import ChatVerb
from rl_reasoner.cli.check import CheckVerb, takes_fields
from rl_reasoner.cli.compare import CompareVerb
from rl_reasoner.cli.completion import CompletionVerb, print_candidates
from rl_reasoner.cli.copy import CopyVerb
from rl_reasoner.cli.env import EnvVerb
from rl_reasoner.cli.eval import EvalVerb
from rl_reasoner.cli.export import ExportVerb
from rl_reasoner.cli.filter import FilterVerb
from rl_reasoner.cli.list import ListVerb
from rl_reasoner.cli.mistakes import check_arguments
from rl_reasoner.cli.publish import PublishVerb
from rl_reasoner.cli.report import ReportVerb
from rl_reasoner.cli.score import ScoreVerb
from rl_reasoner.cli.train import TrainVerb
from rl_reasoner.cli.why import WhyVerb
from rl_reasoner.distributed import launcher, processes
from rl_reasoner.errors import OldName, RunStopped, UserError, unknown
from rl_reasoner.files import NO_ROOM
from rl_reasoner.paths import resume_command
from rl_reasoner.report.console import err, out, results_apart, wrapped
from rl_reasoner.trust import FLAG, untyped
from rl_reasoner.version import __version__, out_of_range

Verb = (
    Annotated[TrainVerb, subcommand("train")]
    | Annotated[EvalVerb, subcommand("eval")]
    | Annotated[CompareVerb, subcommand("compare")]
    | Annotated[FilterVerb, subcommand("filter")]
    | Annotated[ChatVerb, subcommand("chat")]
    | Annotated[ScoreVerb, subcommand("score")]
    | Annotated[CheckVerb, subcommand("check")]
    | Annotated[WhyVerb, subcommand("why")]
    | Annotated[AuditVerb, subcommand("audit")]
    | Annotated[ListVerb, subcommand("list")]
    | Annotated[CopyVerb, subcommand("copy")]
    | Annotated[ReportVerb, subcommand("report")]
    | Annotated[ExportVerb, subcommand("export")]
    | Annotated[PublishVerb, subcommand("publish")]
    | Annotated[EnvVerb, subcommand("env")]
    | Annotated[CompletionVerb, subcommand("completion")]
)
# Flags of `train` itself that have a value.
_VALUES: Mapping[str, tuple[str, ...]] = {
    "train": ("--resume", "--from", "--until", "--launch"),
    "check": (),  # of a recipe: all others belong to rewards
    "env": ("--plan", "--gpus", "--gpu", "--server-gpus"),
}
"""Flags with a value of the verbs that also take a recipe's flags."""
_OVERVIEW = """\
Reinforcement-learning fine-tuning for reasoning.

Try:
  rl-reasoner train quickstart       two CPU cores, about two minutes
  rl-reasoner check quickstart       what would spoil it, before it trains
  rl-reasoner list                   recipes, rewards, sets

Verbs (rl-reasoner VERB --help shows the flags of one):
{verbs}

Exit codes: 0 done, 1 the work failed, 2 a mistake in what you gave, 3 a reward
kept failing, 130 interrupted. Results go to standard output, everything else to
standard error. rl-reasoner --version prints the version."""
_showwarning = warnings.showwarning
# what the system says of a path that somebody gave
_PATHS = (errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, *NO_ROOM)
_ECHO_S = 5.0  # within which a second signal is the first one again
_NO_HOME = "Could not determine home directory."  # Path.expanduser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb in `argv` (default: the command line) and return the exit code.

    One of several processes (`launch`) that has met the others ends here, with that code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    launcher.follow_launcher()
    if processes.world_size() == 1:
        return _run_and_report(arguments)
    try:
        code = _run_and_report(arguments)
    except Exception as error:
        if processes.lost_peer(error):
            code = processes.LOST
            if not launcher.has_launcher():
                hint = processes.resume_hint()
                _print_error("the job ended", f"another of its processes ended early{hint}")
        else:
            code = 1
            traceback.print_exc()
    if processes.has_joined():
        processes.exit_process(code)
    return code


def _run_and_report(argv: Sequence[str]) -> int:
    """Run the verb, print its error if it has one, and return the exit code."""
    try:
        _run(argv)
    except UserError as error:
        _print_error("error", "\n".join(error.messages))
        return 2
    except ImportError as error:
        if not (found := out_of_range()):
            raise
        _print_error("error", "\n".join([str(error), *found]))
        return 2
    except BrokenPipeError:  # the reader of our output has stopped reading
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _PATHS:
            raise
        file = error.filename2 or error.filename or "writing a file"  # the second is written
        _print_error("error", f"{file}: {error.strerror}")
        return 2
    except KeyboardInterrupt as error:
        if not processes.is_main() or launcher.has_launcher():  # which says it for all
            return launcher.INTERRUPTED
        folder = getattr(error, "folder", None)
        command = resume_command(folder, getattr(error, "launch", None)) if folder else ""
        hint = f"; continue with: {command}" if command else ""
        err.print(f"interrupted{hint}", soft_wrap=True)
        return launcher.INTERRUPTED
    except RunStopped as error:
        command = resume_command(error.folder, error.launch) if error.folder else ""
        hint = f"\ncontinue with: {command}" if command else ""
        _print_error(error.title, f"{error}{hint}")
        return error.code
    except RuntimeError as error:
        if str(error) != _NO_HOME:
            raise
        path = next((word for word in argv if "~" in word), "~")
        _print_error("error", f"{path}: ~NAME is a user's home folder, and no user has this name")
        return 2
    return 0


def _run(argv: Sequence[str]) -> None:
    """Run the verb; with --quiet it writes nothing to standard error unless it fails."""
    if list(argv) == ["--version"]:
        out.print(Text(f"rl-reasoner {__version__}"))
        return
    if list(argv[:2]) == ["completion", "words"]:  # a shell asks, at every key
        with untyped():
            print_candidates(_verbs(), argv[2:])
        return
    verb = parse_verb(argv)
    for name, value in vars(verb).items():
        if isinstance(value, Path):  # a shell leaves the ~ of `--out=~/x` as it is
            setattr(verb, name, value.expanduser())
    err.quiet = getattr(verb, "quiet", False)
    warnings.showwarning = _print_old_name
    try:
        apart = results_apart() if getattr(verb, "json", False) else contextlib.nullcontext()
        with apart, _ends_in_order(verb), _trusts(verb, argv):
            verb.run()
    finally:
        err.quiet = False
        warnings.showwarning = _showwarning


def _trusts(verb: Any, argv: Sequence[str]) -> contextlib.AbstractContextManager[None]:
    """What the verb may load: what was typed, and what is named by a program that is to be run."""
    if isinstance(verb, TrainVerb) or getattr(verb, "is_program", False):
        return contextlib.nullcontext()
    return untyped(argv, code=getattr(verb, "run_its_code", False))


@contextlib.contextmanager
def _ends_in_order(verb: Any) -> Iterator[None]:
    """SIGTERM and SIGHUP (a terminal closes) end a verb as Ctrl-C does: nothing half-done is left.

    `train` has its own ways, and in a chat Ctrl-C ends but a reply. What comes again at once (from
    a shell and the system, from `timeout`) does not cut short what the first one has begun.
    """
    heard = float("-inf")

    def ended(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if number == signal.SIGHUP:
            processes.leave_terminal()
        if time.monotonic() - heard < _ECHO_S:
            return
        heard = time.monotonic()
        raise KeyboardInterrupt

    numbers = () if isinstance(verb, TrainVerb | ChatVerb) else (signal.SIGTERM, signal.SIGHUP)
    here = threading.current_thread() is threading.main_thread()
    taken = [one for one in numbers if here and signal.getsignal(one) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, ended)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _print_old_name(message: Warning | str, category: type[Warning], *args: Any, **kw: Any) -> None:
    """Print a warning of an old field name as a note; all other warnings as Python does."""
    if not issubclass(category, OldName):
        _showwarning(message, category, *args, **kw)
    elif processes.is_local_main():
        err.print(Text(f"note: {message}"), style="yellow", soft_wrap=True)


def _print_error(title: str, text: str) -> None:
    """Print a panel on a terminal, plain lines elsewhere (so that paths in them stay whole)."""
    if not processes.is_local_main():
        return
    if err.is_terminal:
        err.print(Panel(Text(text), title=title, title_align="left", border_style="red"))
    else:
        err.print(Text(f"{title}: {text}"), soft_wrap=True)


def main_of(script: str) -> NoReturn:
    """What a recipe script does when it is run: `rl-reasoner train SCRIPT` with its own flags."""
    raise SystemExit(main(["train", script, *sys.argv[1:]]))


def parse_verb(argv: Sequence[str]) -> Any:
    """Parse the verb and its arguments; `--help` and mistakes in flags end the process."""
    verbs = _verbs()
    argv = list(argv) or ["--help"]
    if argv[0] in ("--help", "-h"):
        out.print(Text(_overview(verbs)), soft_wrap=True)
        raise SystemExit(0)
    if argv[0] not in verbs:
        if argv[0].startswith("-"):
            raise UserError(f"{argv[0]}: first comes a verb: {', '.join(verbs)}")
        raise unknown("verb", argv[0], verbs)
    own, flags = _split_flags(argv) if takes_fields(argv) else (list(argv), [])
    if not {"--help", "-h"} & set(own):
        check_arguments(own[0], verbs[own[0]], own[1:])
    shown = _Help(out.is_terminal)
    try:
        with contextlib.redirect_stdout(shown):
            verb = tyro.cli(Verb, args=own, prog="rl-reasoner")
    except SystemExit as end:
        out.print(Text.from_ansi(shown.getvalue()))
        if end.code == 0 and argv[:1] == ["train"]:
            _print_recipe_flags(own)
        raise
    if isinstance(verb, TrainVerb | EnvVerb | CheckVerb):
        verb.flags = flags
    return verb


class _Help(io.StringIO):
    """What tyro prints, to be wrapped between words: tyro itself wraps only what is in boxes."""

    encoding = out.encoding  # says whether it may draw them

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        """Whether it is to have colours."""
        return self._terminal


def _verbs() -> dict[str, type[Any]]:
    """Name of a verb -> its class."""
    return {get_args(verb)[1].name: get_args(verb)[0] for verb in get_args(Verb)}


def _overview(verbs: Mapping[str, type[Any]]) -> str:
    """The help of all: three examples, and a sentence of each verb."""
    size = max(map(len, verbs)) + 4
    lines = []
    for name, verb in verbs.items():
        about = " ".join(str(verb.__doc__).partition("\n\n")[0].split())
        lines.append(wrapped(about, " " * size, f"  {name}".ljust(size)))
    return _OVERVIEW.format(verbs="\n".join(lines))


def _split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(what the verb itself takes, the recipe's flags with their values)."""
    values = _VALUES[argv[0]]
    known: list[str] = []
    flags: list[str] = []
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        name = token.partition("=")[0].replace("_", "-")  # tyro takes both
        own = name in (*values, "--quiet", "--json", FLAG, "--help", "-h")
        kept = known if own or not token.startswith("--") else flags
        kept.append(token)
        takes_value = ("=" not in token and name in values) or (kept is flags and "=" not in token)
        if takes_value and rest and not rest[0].startswith("--"):
            kept.append(rest.pop(0))
    return known, flags


def _print_recipe_flags(argv: Sequence[str]) -> None:
    """Print the flags of the recipe named in `train RECIPE --help`, with their values."""
    from rl_reasoner.recipe.flags import flag_table
    from rl_reasoner.recipe.load import load_recipe, shipped_recipes

    known, _ = _split_flags(argv)
    named, run = [], ""
    rest = iter(known[1:])
    for token in rest:
        name, given, value = token.partition("=")
        if name in _VALUES["train"]:
            value = value if given else next(rest, "")
            run = f"{value}/recipe.yaml" if name == "--resume" else run
        elif not token.startswith("-"):
            named.append(token)
    named += [run] if run else []
    if not named:
        out.print(f"recipes: {', '.join(shipped_recipes())}")
        out.print("rl-reasoner train RECIPE --help: every field of a recipe, with its value")
        return
    for flag, value, meaning in flag_table(load_recipe(named[0])):
        out.print(Text(f"{flag} {value}".rstrip(), "bold"), soft_wrap=True)
        out.print(Text(wrapped(meaning, "    ", columns=out.width)))
