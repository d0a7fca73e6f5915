"""The verb `chat`: one policy, or two side by side, prompted by a person or a pipe.

A reply appears as it is sampled, its thinking apart from its answer. Where the right answer is
known (`--answer`, or `/answer 9` after the reply), the maths verifier says whether the reply is
right. Replies are text: nothing in them is run, and control characters in them are not shown.
"""

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import (
    Json,
    Number,
    Quiet,
    RunsItsCode,
    Whole,
    check_numbers,
    note_template,
    prompt_settings,
    refuse_environment,
    tool_settings,
)
from rl_reasoner.cli.arguments import Text as Written
from rl_reasoner.cli.progress import told_if_long
from rl_reasoner.distributed.loading import load_for_good
from rl_reasoner.distributed.threads import Threads
from rl_reasoner.errors import UserError, did_you_mean
from rl_reasoner.files import read_jsonl
from rl_reasoner.foreign import printable
from rl_reasoner.language.thinking import behind_chain, ends_within_chain, split_chain
from rl_reasoner.report.console import emit, err, out, wrapped

if TYPE_CHECKING:
    from rl_reasoner.policy.policy import Policy
    from rl_reasoner.recipe.tools import ToolSettings
    from rl_reasoner.types import Prompt, Rollout, Score

OnText = Callable[[str], None]
_NARROW = 80  # columns: below, two replies stand under each other
_COMMAND = "/answer"
_HINT = f"Type a problem; {_COMMAND} 9 checks the last replies; an empty line or Ctrl-D ends."


@dataclass
class Reply:
    """A policy's reply to one problem, as far as it has been sampled."""

    name: str
    text: str = ""
    written: str = ""  # without what tools gave: an answer that only a tool printed is none
    opened: bool = False  # the prompt itself ends within the thinking
    truncated: bool = False
    verdict: "Score | None" = None

    def parts(self) -> tuple[str, str]:
        """(the thinking with its tags, the answer): without a closing tag yet, by how it began."""
        thinking, answer = split_chain(self.text)
        thinks = not thinking and (self.opened or behind_chain(self.text) is None)
        return (self.text, "") if thinks else (thinking, answer)

    def shown(self) -> Text:
        """The reply for a reader."""
        thinking, answer = map(printable, self.parts())
        shown = Text.assemble((thinking, "dim"), answer)
        if self.verdict is not None:
            shown.append_text(_verdict_text(self.verdict))
        return shown

    def value(self) -> dict[str, Any]:
        """The reply for a program."""
        thinking, answer = self.parts()
        value = {"thinking": thinking, "answer": answer, "truncated": self.truncated}
        if self.verdict is not None:
            value |= {"score": self.verdict.value, "reason": self.verdict.reason}
        return value


def _problem_of(policy: Path) -> str:
    """A problem of the data that the run of a policy was evaluated on; "" where there is none."""
    from rl_reasoner.paths import run_of

    run = run_of(policy)
    for file in sorted((run / "evals").glob("*.rows.jsonl")) if run else ():
        row = next(read_jsonl(file, lambda lines: None), {})
        if isinstance(problem := row.get("problem"), str):
            return " ".join(problem.split())
    return ""


def _is_command(word: str) -> bool:
    """Whether the first word of a line is meant for the chat: /help, not a path or a fraction."""
    return word.startswith("/") and word[1:].isalpha()


def _verdict_text(score: "Score") -> Text:
    names = {1.0: ("right", "green"), 0.0: ("wrong", "red")}
    word, style = names.get(score.value if score.value is not None else -1, ("not judged", "dim"))
    return Text.assemble("\n", (word, style), (f": {printable(score.reason)}", "dim"))


@dataclass
class ChatVerb:
    """Talk to a policy, or to two side by side: type a problem, see its thinking and its answer.

    `/answer 9` checks the last replies against the answer 9.
    """

    policy: Positional[Annotated[str, arg(metavar="POLICY")]]
    """a run or policy folder, a .gguf file, a hub id"""
    other: Positional[Annotated[str | None, arg(metavar="[OTHER]", help_behavior_hint="")]] = None
    """a second policy, given the same problems"""
    answer: Written = None
    """the right answer: each reply is verified against it"""
    temperature: Number = 0.0
    """0 is greedy"""
    max_tokens: Whole = 512
    """longest completion, in tokens"""
    template: Written = None
    """prompt template (default: the run's own, else auto)"""
    system: Written = None
    """system prompt of chats (default: the run's own)"""
    seed: Whole = 0
    """what is drawn follows from it"""
    run_its_code: RunsItsCode = False
    quiet: Quiet = False
    json: Json = False

    def run(self) -> None:
        """Read problems from standard input, one a line, until its end; one result a line."""
        from rl_reasoner.policy.names import check_policy

        check_numbers(self.temperature, self.seed, max_tokens=self.max_tokens)
        names = [self.policy, *([self.other] if self.other else [])]
        for name in names:
            check_policy(name)
            why = "which answers its turns: chat has nobody who does; play by rl-reasoner eval"
            refuse_environment(name, why)
        note_template(self.template)
        with told_if_long(f"loading torch and opening {' and '.join(names)}"):
            load_for_good("rl_reasoner.policy.opening", "rl_reasoner.rollout.sampler")
            from rl_reasoner.policy.opening import open_policy, quiet_libraries

            quiet_libraries()
            policies = [(name, open_policy(name)) for name in names]
        asking = sys.stdin.isatty()
        if asking:
            err.print(wrapped(_HINT), style="dim")
            if example := _problem_of(Path(self.policy).absolute()):
                err.print(Text(f"for example: {printable(example)}", style="dim"))
        with Threads() as threads:
            computed = threads.suit(*(policy.model for _, policy in policies))
            if asking:
                err.print(computed, style="dim", highlight=False)
            self._talk(asking, policies)

    def _talk(self, asking: bool, policies: Sequence[tuple[str, "Policy"]]) -> None:
        problem, replies = "", list[Reply]()
        for line in _lines(asking):
            command, _, rest = line.partition(" ")
            if command == _COMMAND:
                try:
                    self._verify(rest.strip(), problem, replies)
                except UserError as error:
                    if not asking:
                        raise
                    err.print(str(error), style="yellow", soft_wrap=True)  # a slip ends no talk
                continue
            if _is_command(command):
                near = did_you_mean(command, [_COMMAND])
                err.print(f"there is no {command}.{near} {_HINT}", style="yellow", soft_wrap=True)
                continue
            try:
                problem, replies = line, self._replies(line, policies)
            except (UserError, KeyboardInterrupt) as end:
                if not asking:
                    raise
                replies = []  # what was cut short is not to be judged
                stopped = "\nthe reply was stopped; Ctrl-C again ends"
                said = str(end) if isinstance(end, UserError) else stopped
                err.print(said, style="yellow", soft_wrap=True)
                continue
            if self.json:
                self._emit(problem, replies)

    def _replies(self, problem: str, policies: Sequence[tuple[str, "Policy"]]) -> list[Reply]:
        """Ask every policy; what they say appears as it comes, on a terminal."""
        from rl_reasoner.answers import verify
        from rl_reasoner.dataset.templates import render

        replies = [Reply(name) for name, _ in policies]
        screen = _Screen(replies, hidden=self.json)
        with screen:
            for reply, (name, policy) in zip(replies, policies, strict=True):
                template, system = prompt_settings(name, self.template, self.system)
                prompt = render(problem, template, policy.tokenizer, system)
                reply.opened = isinstance(prompt, str) and ends_within_chain(prompt)

                def show(piece: str, reply: Reply = reply) -> None:
                    reply.text += piece
                    screen.draw(reply, piece)

                count = (self.temperature, self.max_tokens, self.seed)
                tools = tool_settings(name)
                rollout = stream(policy, prompt, *count, show, tools)
                reply.text, reply.truncated = rollout.text, rollout.truncated
                own = rollout.policy_text
                reply.written = rollout.text if own is None else own
                if self.answer is not None:
                    reply.verdict = verify(reply.written, self.answer)
        return replies

    def _verify(self, answer: str, problem: str, replies: Sequence[Reply]) -> None:
        from rl_reasoner.answers import verify

        if not answer or not replies:
            raise UserError(f"{_COMMAND} ANSWER comes after a problem, with its right answer")
        for reply in replies:
            reply.verdict = verify(reply.written, answer)
        if self.json:
            self._emit(problem, replies)
            return
        for reply in replies:
            if reply.verdict is not None:
                name = f"{reply.name}: " if len(replies) > 1 else ""
                out.print(
                    Text(name) + Text(_verdict_text(reply.verdict).plain.strip()), soft_wrap=True
                )

    def _emit(self, problem: str, replies: Sequence[Reply]) -> None:
        if len(replies) == 1:
            emit(True, {"problem": problem, **replies[0].value()}, None)
        else:
            values = [{"policy": reply.name, **reply.value()} for reply in replies]
            emit(True, {"problem": problem, "replies": values}, None)


class _Screen:
    """Shows replies: as they are sampled on a terminal, at the end elsewhere, never if `hidden`."""

    def __init__(self, replies: Sequence[Reply], *, hidden: bool) -> None:
        self.replies = replies
        self.hidden = hidden
        self.streams = out.is_terminal and not hidden and len(replies) == 1
        beside = out.is_terminal and not hidden and len(replies) > 1
        self.live = Live(console=out, auto_refresh=False, transient=True) if beside else None

    def __enter__(self) -> None:
        if self.live is not None:
            self.live.start()

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self.live is not None:
            self.live.stop()
            if kind is KeyboardInterrupt:
                out.print(self._beside())  # as far as it has come
        if self.hidden or kind is not None:
            return
        if self.streams:
            verdict = self.replies[0].verdict
            out.print(_verdict_text(verdict) if verdict is not None else "", soft_wrap=True)
        elif self.live is not None:
            out.print(self._beside())
        else:
            for reply in self.replies:
                name = f"{reply.name}\n" if len(self.replies) > 1 else ""
                out.print(Text(name) + reply.shown(), soft_wrap=True)

    def draw(self, reply: Reply, piece: str) -> None:
        """Show the newest piece of a reply."""
        if self.streams:
            thinking, answer = reply.parts()
            style = "dim" if thinking and not answer else ""
            out.print(Text(printable(piece), style), end="", soft_wrap=True)
        elif self.live is not None:
            self.live.update(self._beside(), refresh=True)

    def _beside(self) -> Any:
        heads = [Text(reply.name, style="bold") for reply in self.replies]
        if out.width < _NARROW:
            pairs = zip(heads, self.replies, strict=True)
            return Group(*(part for head, reply in pairs for part in (head, reply.shown())))
        table = Table.grid(padding=(0, 3), expand=True)
        for _ in self.replies:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*heads)
        table.add_row(*(reply.shown() for reply in self.replies))
        return table


class _Pieces:
    """Tokens to pieces of text: `on_text` gets a letter as soon as all its tokens are there."""

    def __init__(self, tokenizer: Any, on_text: OnText) -> None:
        self.tokenizer = tokenizer
        self.on_text = on_text
        self.ids: list[int] = []
        self.sent = 0  # characters of their text

    def put(self, token: int) -> None:
        """Add the next token."""
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        if not text.endswith("\ufffd"):
            self._send(text)
        if text.endswith("\n"):  # what follows is decoded without it
            self.ids, self.sent = [], 0

    def end(self) -> None:
        """Send the rest, even of an incomplete character."""
        self._send(self.tokenizer.decode(self.ids, skip_special_tokens=True))

    def _send(self, text: str) -> None:
        if len(text) > self.sent:
            self.on_text(text[self.sent :])
        self.sent = len(text)


def stream(
    policy: "Policy",
    prompt: "Prompt",
    temperature: float,
    max_tokens: int,
    seed: int,
    on_text: OnText,
    tools: "ToolSettings | None" = None,
) -> "Rollout":
    """One completion; `on_text` gets its text piece by piece.

    It is the completion that an evaluation draws for the same prompt, seed and settings. With
    `tools` the text comes at once, with what they gave in its place. Raises `UserError` for a
    prompt longer than the positions that the policy declares: it would be read for minutes.
    """
    from rl_reasoner.rollout.long_prompts import declared_places
    from rl_reasoner.rollout.sampler import long_rows, sample

    for _, tokens in long_rows([prompt], [{}], 0, policy, tools):
        raise UserError(
            f"the prompt has {tokens} tokens, more than the {declared_places(policy.model)} "
            f"positions of {policy.source}: write a shorter one"
        )
    pieces = _Pieces(policy.tokenizer, on_text)
    [[rollout]] = sample(
        policy,
        [prompt],
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        on_token=None if tools else lambda row, token: pieces.put(token),
        tools=tools,
    )
    if tools:
        on_text(rollout.text)
    pieces.end()
    return rollout


def _lines(asking: bool) -> Iterator[str]:
    """The problems on standard input; an empty line ends them where they are typed."""
    if asking:
        with suppress(ImportError):
            import readline  # noqa: F401  # makes input() editable
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a bad byte costs its line alone
    for number in count(1):
        try:
            line = input("problem> " if asking else "").strip()
            line.encode(errors="surrogateescape").decode()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            bad = f"not UTF-8 (byte 0x{error.object[error.start]:02x})"
            if not asking:
                raise UserError(f"standard input, line {number}: {bad}") from error
            err.print(f"{bad}: type it again", style="yellow")
            continue
        if line:
            yield line
        elif asking:
            return
