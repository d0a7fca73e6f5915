"""How an environment's messages are written behind a policy's turn, as token ids.

In a chat they are turns of its template; in plain text they stand on lines of their own, in the
recipe's template. Text is tokenised plainly, so that no message can write a special token.
"""

from collections.abc import Callable, Mapping, Sequence
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
        first = prompt_of({"problem": _TURN}, template, tokenizer)
        self.chat = not isinstance(first, str)
        if self.chat:
            self._chat(("user",))

    def tokens(self, messages: Sequence[Mapping[str, str]], end: int | None = None) -> list[int]:
        """What follows a turn, behind its end token, with the beginning of the policy's next.

        `end`: the token that the turn has ended with, if not the tokenizer's own: Gemma's turns
        end with <end_of_turn>, where its end token is <eos>. The template writes it once.
        """
        parts: list[_Part]
        if self.chat:
            texts = iter([message["content"] for message in messages])
            fixed = self._chat(tuple(message["role"] for message in messages))
            fixed = self._behind(fixed, end)
            parts = [(next(texts) if own else text, own) for text, own in fixed]
        else:
            parts = [(self._plain(message["content"]), True) for message in messages]
        return [token for text, own in parts for token in self._encoded(text, own)]

    def turn(self, text: str) -> list[int]:
        """A turn of the policy's, with the token that ends it.

        It is the special token that a chat template writes behind a turn, else the tokenizer's end.
        """
        behind = self._encoded(self._chat(("user",))[0][0], False)[:1] if self.chat else []
        special = {*behind} & {*self._tokenizer.all_special_ids}
        return [*self._encoded(text, True), *(special or {self._tokenizer.eos_token_id})]

    def identity(self) -> list[Any]:
        """What decides the form, as JSON values."""
        return self._behind(self._chat(("user",)), None) if self.chat else [self._template]

    def _behind(self, parts: list[_Part], end: int | None) -> list[_Part]:
        """What the template writes behind a turn, without the end token that is there already."""
        known = self._tokenizer
        token = known.eos_token if end is None else known.convert_ids_to_tokens(end)
        (first, own), *rest = parts
        return [(first.removeprefix(token or ""), own), *rest]

    def _encoded(self, text: str, own: bool) -> list[int]:
        if not text:
            return []
        found = self._tokenizer(text, add_special_tokens=False, split_special_tokens=own)
        return list(found["input_ids"])

    def _plain(self, content: str) -> str:
        return f"\n{prompt_of({'problem': content}, self._template, self._tokenizer)}\n"

    def _chat(self, roles: tuple[str, ...]) -> list[_Part]:
        """What the template writes for messages of these roles, behind a turn's text."""
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
        parts: list[_Part] = []
        for mark in marks:
            fixed, shown, rest = rest.partition(mark)
            found = found and shown
            parts += [(fixed, False), (mark, True)]
        if not found:
            raise UserError("an environment needs a chat template that shows every message")
        return [*parts, (rest, False)]
