"""From a row to the prompt that a policy gets, and the completion that supervised training learns.

A template turns a problem into a text or a chat; conversations keep their turns. Knows nothing of
models but their tokenizer's chat template.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rl_reasoner.dataset.conversations import TURNS, chat_of
from rl_reasoner.errors import UserError
from rl_reasoner.language.thinking import with_tags
from rl_reasoner.recipe.data import checked_template
from rl_reasoner.types import Prompt, Row

_CHATS = ("chat", "boxed")  # the templates that make messages

# The template of DeepSeek-R1-Zero (arXiv 2501.12948, table 1).
R1_TEMPLATE = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first thinks about the reasoning process in the mind and then provides the "
    "user with the answer. The reasoning process and answer are enclosed within <think> </think> "
    "and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> "
    "<answer> answer here </answer>. User: {problem}. Assistant:"
)
BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def render(problem: str, template: str, tokenizer: Any, system: str | None = None) -> Prompt:
    """Render the prompt for `problem`: a text, or a chat for the templates "chat" and "boxed".

    "auto" is "chat" where the tokenizer has a chat template, else "plain". `system` is the chat's
    system prompt. Raises `UserError` for a template that is no name of one and has no {problem} in
    it, and for a system prompt where the template makes a text.
    """
    return prompt_of({"problem": problem, "system": system}, template, tokenizer)


def prompt_of(row: Row, template: str, tokenizer: Any) -> Prompt:
    """The prompt for a row: by its own `template` and `system`, else by `template` (see `render`).

    A conversation keeps its turns. Raises `UserError` where one has several and the template makes
    a text.
    """
    template, system = row.get("template") or template, row.get("system")
    try:
        checked_template(template)
    except ValueError as error:
        raise UserError(str(error)) from None
    reason = f"the template {template!r} makes a text"
    if template == "auto":
        template = "chat" if getattr(tokenizer, "chat_template", None) else "plain"
        reason = "the policy has no chat template"
    problem, turns = row["problem"], row.get(TURNS)
    if template in _CHATS:
        request = f"\n{BOXED_INSTRUCTION}" if template == "boxed" else ""
        return chat_of(turns or [{"role": "user", "content": problem}], system, request)
    if turns or system:
        what = "a conversation of several turns" if turns else "a system prompt"
        raise UserError(
            f"row {row.get('id', problem)!r:.60}: {reason}, and {what} needs a chat: a policy with "
            "a chat template, and the template auto, chat or boxed"
        )
    if template == "plain":
        return str(problem)
    return (R1_TEMPLATE if template == "r1" else template).replace("{problem}", problem)


def with_system(rows: Sequence[Row], system: str | None) -> list[Row]:
    """`rows` with the system prompt of a recipe or an evaluation, where they have none.

    A row whose own template makes a text keeps to it.
    """
    texts = [row.get("template") not in (None, "auto", *_CHATS) for row in rows]
    return [
        row if text or row.get("system") or not system else {**row, "system": system}
        for row, text in zip(rows, texts, strict=True)
    ]


def target_completion(row: Row) -> str:
    """The completion to train on: the row's own, or made of its chain and answer.

    Raises `UserError` for a row that has neither, or where one is no text.
    """
    if row.get("completion"):
        return _learned(row, "completion")
    chain, answer, who = row.get("chain"), row.get("answer"), row.get("id", row["problem"])
    # a CSV has blank cells where others lack a value; an empty chain alone answers at once
    solved, thought = (str(row.get(name) or "").strip() for name in ("solution", "chain"))
    column = "chain" if thought or (chain is not None and not solved) else "solution"
    if column == "solution" and not solved:
        raise UserError(
            f"row {who!r:.60} has no completion, chain or solution: a sft stage needs one of these "
            "columns"
        )
    if answer is None or not str(answer).strip():
        raise UserError(
            f"row {who!r:.60} has a {column} and no answer to end with: to learn it as it stands, "
            "call it the completion (columns: {completion: NAME})"
        )
    return with_tags(_learned(row, column), answer)


def _learned(row: Row, column: str) -> str:
    """The text in a column that is trained on; a list would be learned with its brackets."""
    value = row[column]
    if isinstance(value, (list, tuple, Mapping)):
        raise UserError(
            f"row {row.get('id', row['problem'])!r:.60}: the {column} is {value!r:.40}: expected "
            "one text"
        )
    return str(value)
