"""A batch of completions as one row without padding, in which each prompt stands once.

A group's rows share their prompt. `pack` lays out `[prompt, row, row, ...]` of all groups one after
the other: the prompt without its last token, then for each row that last token and the completion
without its own last (each position predicts the next token, so every scored token has its position
and nothing else is computed). Rows attend to their prompt and to themselves; gradients of all rows
flow through the one prompt. Position ids are those of the row alone, whatever the padding was.

The attention is transformers' attention interface: `attention_of` switches a model to it, and a
pass that is given `packed=layout` attends by that layout; any other pass is as it was. Whether a
model's attention is no more than that, rl_reasoner.rollout.agreement finds out. Knows tensors and
modules; nothing of trainers.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rl_reasoner.kernels.prefix_attention import prefix_attention

NAME = "rl_reasoner_packed"


class Unsupported(Exception):
    """The model's attention is more than a layout can do; the message names what."""


class Layout(Protocol):
    """The attention of a pass with `packed=`; called by every layer, in their order."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int
    ) -> Tensor:
        """(1, heads, N, d), (1, kv heads, N, d), (1, kv heads, N, e) -> (1, N, heads, e).

        `window` 0 means no sliding window.
        """
        ...


@dataclass(frozen=True)
class PackedGroup:
    """One prompt's place in the packed row: `prompt` tokens at `start`, then the rows' lengths.

    `members`: which rows of the table they are.
    """

    start: int
    prompt: int
    rows: tuple[int, ...]
    members: tuple[int, ...]


@dataclass(frozen=True)
class Packed:
    """Rows packed for one pass; N tokens, M scored ones.

    `input_ids`, `position_ids`, `weights` (how many rows a token stands for): (1, N).
    `scored` (M,): positions whose next token is scored; `labels` (1, M): those tokens; `places`
    (M,): where they lie in the flattened (rows, width) table that the rows came from.
    """

    input_ids: Tensor
    position_ids: Tensor
    weights: Tensor
    scored: Tensor
    labels: Tensor
    places: Tensor
    groups: tuple[PackedGroup, ...]

    @cached_property
    def _paddings(self) -> list[tuple[Tensor, Tensor]]:
        """For each group: positions of its rows as a padded table (flat), and which of it is real.

        Counted from the first row's start.
        """
        device = self.input_ids.device
        paddings = []
        for group in self.groups:
            lengths = torch.tensor(group.rows)
            starts = lengths.cumsum(0) - lengths
            columns = torch.arange(int(lengths.max()))
            real = columns < lengths[:, None]
            index = torch.where(real, starts[:, None] + columns, 0)
            flat = real.flatten().nonzero().squeeze(1)
            paddings.append((index.flatten().to(device), flat.to(device)))
        return paddings

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int
    ) -> Tensor:
        """Causal attention of prompts, and of rows to their prompt and themselves."""
        if query.device.type == "cpu" and not window and key.shape[-1] == value.shape[-1]:
            segments = [(group.start, group.prompt, group.rows) for group in self.groups]
            return prefix_attention(query, key, value, segments, scale).transpose(1, 2)
        parts = []
        for group, (index, real) in zip(self.groups, self._paddings, strict=True):
            first, middle = group.start, group.start + group.prompt
            end = middle + sum(group.rows)
            prompt = _part((query, key, value), first, middle)
            if group.prompt:
                parts.append(prompt_attention(prompt, scale, window))
            rows = _part((query, key, value), middle, end)
            table = (len(group.rows), index, real)
            parts.append(_row_attention(rows, prompt, table, scale, window))
        return torch.cat(parts, dim=2).transpose(1, 2)


Three = tuple[Tensor, Tensor, Tensor]  # queries, keys, values


def _part(tensors: Three, start: int, end: int) -> Three:
    query, key, value = (tensor[:, :, start:end] for tensor in tensors)
    return query, key, value


def prompt_attention(prompt: Three, scale: float, window: int) -> Tensor:
    """Causal attention of one sequence to itself: three (1, heads, N, d) -> (1, heads, N, d).

    With fewer queries than keys: those of its last tokens.
    """
    query, key, value = prompt
    last, length = query.shape[2], key.shape[2]
    if (window and length > window) or last < length:
        mask = visible(length - last, last, length, window, query.device)
        return _masked_attention(query, key, value, mask, scale)
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=grouped
    )


def _row_attention(
    rows: Three, prompt: Three, table: tuple[int, Tensor, Tensor], scale: float, window: int
) -> Tensor:
    """Attention of rows, padded here to one length, to `prompt` and to themselves."""
    count, index, real = table
    width, shared = index.shape[0] // count, prompt[1].shape[2]
    query, key, value = (  # (1, h, M, d) -> (rows, h, width, d)
        tensor[0].index_select(1, index).view(-1, count, width, tensor.shape[3]).transpose(0, 1)
        for tensor in rows
    )
    keys, values = (
        torch.cat((before.expand(count, -1, -1, -1), own), dim=2)
        for before, own in zip(prompt[1:], (key, value), strict=True)
    )
    mask = visible(shared, width, shared + width, window, query.device)
    out = _masked_attention(query, keys, values, mask, scale)
    return out.transpose(0, 1).flatten(1, 2).index_select(1, real).unsqueeze(0)


def _masked_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
) -> Tensor:
    """(B, heads, N, d), (B, kv heads, M, d), mask (N, M) -> (B, heads, N, d).

    Keys and values are repeated, as transformers does: with a mask, torch's own grouping has no
    kernel on GPUs but the one that holds all scores.
    """
    times = query.shape[1] // key.shape[1]
    if times > 1:
        key, value = (t.repeat_interleave(times, dim=1) for t in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def visible(offset: int, queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """(queries, keys) bool: whether query i, at position `offset` + i, sees key j."""
    positions = torch.arange(offset, offset + queries, device=device)
    distance = positions[:, None] - torch.arange(keys, device=device)
    seen = distance >= 0
    return seen & (distance < window) if window else seen


# ------------------------------------------------------------------------------------- packing


def pack(
    input_ids: Tensor,
    attention_mask: Tensor,
    width: int,
    *,
    keep: Tensor | None = None,
    whole: bool = False,
) -> Packed | None:
    """Pack rows of left-padded prompts and right-padded completions (the last `width` columns).

    `input_ids`, `attention_mask`: (B, P + width). `keep` (B,) bool: rows to pack, all by default.
    `whole` also packs the last token of every row, and rows without a completion, which nothing
    is scored on: the balance of mixtures of experts counts them. None where no row is left.
    """
    edge = input_ids.shape[1] - width
    lengths = attention_mask[:, edge:].sum(1).tolist()
    prompts = attention_mask[:, :edge].sum(1).tolist()
    ids = input_ids.tolist()
    wanted = [True] * len(ids) if keep is None else keep.tolist()
    members: dict[tuple[int, ...], list[int]] = {}
    for row, (length, prompt) in enumerate(zip(lengths, prompts, strict=True)):
        if wanted[row] and prompt and (length or whole):
            members.setdefault(tuple(ids[row][edge - prompt : edge]), []).append(row)
    if not members:
        return None
    packing = _Packing(width, whole)
    for shared, rows in members.items():
        packing.add(shared, {row: ids[row][edge : edge + lengths[row]] for row in rows})
    return packing.packed(input_ids.device)


class _Packing:
    """Builds a `Packed` group by group."""

    def __init__(self, width: int, whole: bool) -> None:
        self.width, self.whole = width, whole  # of the table; with the last token of every row
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.weights: list[int] = []
        self.scored: list[int] = []
        self.labels: list[int] = []
        self.places: list[int] = []
        self.groups: list[PackedGroup] = []

    def add(self, prompt: Sequence[int], completions: dict[int, list[int]]) -> None:
        """One group: its prompt, and its completions by their row in the table."""
        start, shared = len(self.ids), len(prompt) - 1
        self._tokens(prompt[:-1], 0, len(completions))
        rows = []
        for row, completion in completions.items():
            tokens = [prompt[-1], *(completion if self.whole else completion[:-1])]
            at = len(self.ids)
            self.scored += range(at, at + len(completion))
            self.labels += completion
            self.places += range(row * self.width, row * self.width + len(completion))
            self._tokens(tokens, shared, 1)
            rows.append(len(tokens))
        self.groups.append(PackedGroup(start, shared, tuple(rows), tuple(completions)))

    def _tokens(self, tokens: Sequence[int], position: int, weight: int) -> None:
        self.ids += tokens
        self.positions += range(position, position + len(tokens))
        self.weights += [weight] * len(tokens)

    def packed(self, device: torch.device) -> Packed:
        """Return the lists as tensors."""
        tensor = partial(torch.tensor, dtype=torch.long, device=device)  # there may be no labels
        return Packed(
            tensor([self.ids]),
            tensor([self.positions]),
            tensor([self.weights]),
            tensor(self.scored),
            tensor([self.labels]),
            tensor(self.places),
            tuple(self.groups),
        )


# ----------------------------------------------------------------------------------- the model


@dataclass
class _Switched:
    """A model inside `attention_of`: its own attention, and whether a pass is packed."""

    before: str
    packed: bool = False


_switched: dict[int, _Switched] = {}  # by the id of the model's config, which lives as long


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention interface; `packed` comes from the call of the model."""
    if packed is None:
        before = _before(module)
        return before(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise Unsupported(f"attention with {name}")
    if options.get("dropout"):
        raise Unsupported("attention dropout")
    if attention_mask is not None:
        raise Unsupported("a mask that the model makes for its attention")
    scale = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out = packed.attend(query, key, value, scale, options.get("sliding_window") or 0)
    return out.contiguous(), None  # as transformers' own: some models view it in other shapes


def _before(module: nn.Module) -> Any:
    """The model's own attention, for passes without a layout."""
    switched = _switched.get(id(getattr(module, "config", None)))
    if switched is None or switched.packed:
        raise Unsupported("layers that do not pass their arguments on to the attention")
    files = (sys.modules.get(kind.__module__) for kind in type(module).__mro__)
    eager = next(filter(None, (getattr(f, "eager_attention_forward", None) for f in files)), None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(switched.before, eager)


AttentionInterface.register(NAME, _attention)


def _enter(text: Any, backbone: nn.Module, args: Any, kwargs: Any) -> None:
    """Before a pass: one without a layout gets the model's own attention, masks and all."""
    switched = _switched[id(text)]
    switched.packed = kwargs.get("packed") is not None
    if not switched.packed:
        text._attn_implementation = switched.before


def _leave(text: Any, backbone: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    """After a pass, also a failed one: keep only the scored positions of a packed one.

    The LM head scores no others: the hidden states become (1, M, hidden).
    """
    switched = _switched[id(text)]
    if not switched.packed:
        text._attn_implementation = NAME
    switched.packed = False
    if output is not None and isinstance(packed := kwargs.get("packed"), Packed):
        output.last_hidden_state = output.last_hidden_state.index_select(1, packed.scored)
    return output


@contextmanager
def attention_of(causal_lm: nn.Module) -> Iterator[None]:
    """Let passes with `packed=` inside attend by that layout and return only scored positions.

    Backward passes that recompute (gradient checkpointing) belong inside too. Afterwards nothing
    of it is left on the model.
    """
    config: Any = causal_lm.config
    text = config.get_text_config()
    if id(text) in _switched:  # inside already
        yield
        return
    backbone: nn.Module = causal_lm.base_model  # type: ignore[assignment]
    handles = (
        backbone.register_forward_pre_hook(partial(_enter, text), with_kwargs=True),
        backbone.register_forward_hook(partial(_leave, text), with_kwargs=True, always_call=True),
    )
    _switched[id(text)] = _Switched(text._attn_implementation)
    text._attn_implementation = NAME
    try:
        yield
    finally:
        text._attn_implementation = _switched.pop(id(text)).before
        for handle in handles:
            handle.remove()


def arguments(packed: Packed) -> dict[str, Any]:
    """The arguments of a packed pass, for a backbone or a whole model (which also wants labels).

    The attention mask does not mask: it holds the tokens' weights, by which the router losses of
    mixtures of experts count.
    """
    return {
        "input_ids": packed.input_ids,
        "position_ids": packed.position_ids,
        "attention_mask": packed.weights,
        "use_cache": False,
        "packed": packed,
    }
