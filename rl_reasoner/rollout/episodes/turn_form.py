"""How an environment's messages are written behind a policy's turn, as token ids.

In a chat they are turns of its template; in plain text they stand on lines of their own, in the
recipe's template. Text is tokenised plainly, so that no message can write a special token.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rl_reasoner.dataset.templates import prompt_of
from rl_reasoner.errors import UserError

_TURN = "the turn stands here"
_Part = tuple[str, bool]  # a text, and whether it is a message's own: those are tokenised plainly


class TurnForm:
    """Turns in the form of `template` (as of recipes), for the policy with this tokenizer."""

    def __init__(self, tokenizer: Any, template: str) -> None:
        """Raises `UserError` for a chat template that has no place for a second question."""
        self._tokenizer, self._template = tokenizer, template
        self._chats: dict[tuple[str, ...], list[_Part]] = {}
        self._end = str(tokenizer.eos_token or "")  # of a turn; some templates have another
        first = prompt_of({"problem": _TURN}, template, tokenizer)
        self.chat = not isinstance(first, str)
        if self.chat:
            self._chat(("user",))

    def tokens(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """What follows a turn, behind its end token, with the beginning of the policy's next."""
        parts: list[_Part]
        if self.chat:
            texts = iter([message["content"] for message in messages])
            fixed = self._chat(tuple(message["role"] for message in messages))
            parts = [(next(texts) if own else text, own) for text, own in fixed]
        else:
            parts = [(self._plain(message["content"]), True) for message in messages]
        return [token for text, own in parts for token in self._encoded(text, own)]

    def turn(self, text: str) -> list[int]:
        """A turn of the policy's, with its end token."""
        return [*self._encoded(text, True), *self._encoded(self._end, False)]

    def identity(self) -> list[Any]:
        """What decides the form, as JSON values."""
        return self._chat(("user",)) if self.chat else [self._template]

    def _encoded(self, text: str, own: bool) -> list[int]:
        if not text:
            return []
        found = self._tokenizer(text, add_special_tokens=False, split_special_tokens=own)
        return list(found["input_ids"])

    def _plain(self, content: str) -> str:
        return f"\n{prompt_of({'problem': content}, self._template, self._tokenizer)}\n"

    def _chat(self, roles: tuple[str, ...]) -> list[_Part]:
        """What the template writes for messages of these roles, behind a turn's end token."""
        if roles not in self._chats:
            self._chats[roles] = self._written(roles)
        return self._chats[roles]

    def _written(self, roles: tuple[str, ...]) -> list[_Part]:
        marks = [f"message {number} stands here" for number in range(len(roles))]
        before = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _TURN}]
        render: Callable[..., str] = self._tokenizer.apply_chat_template
        told = [{"role": r, "content": m} for r, m in zip(roles, marks, strict=True)]
        try:
            text = render(before + told, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template may raise anything
            if {*roles} == {"user"}:
                raise UserError(
                    f"the chat template takes no question after an answer: {error}"
                ) from error
            return self._written(("user",) * len(roles))
        _, found, rest = text.rpartition(_TURN)
        opening = text.partition("?")[0]
        self._end = next((end for end in self._ends(opening) if rest.startswith(end)), self._end)
        rest = rest.removeprefix(self._end)
        parts: list[_Part] = []
        for mark in marks:
            fixed, shown, rest = rest.partition(mark)
            found = found and shown
            parts += [(fixed, False), (mark, True)]
        if not found:
            raise UserError("an environment needs a chat template that shows every message")
        return [*parts, (rest, False)]

    def _ends(self, opening: str) -> Iterator[str]:
        """What may end a turn: the end token, or a special one that `opening` a turn does not have.

        Gemma's turns end with <end_of_turn>, where its end token is <eos>.
        """
        if self._tokenizer.eos_token:
            yield self._tokenizer.eos_token
        for token in self._tokenizer.added_tokens_decoder.values():
            if token.special and token.content not in opening:
                yield token.content
