"""The compiled attention of one new token of each row, against torch's on the same numbers."""

import ctypes
import math

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rl_reasoner.kernels import decoding

MOST = 40  # tokens of a prompt, and of a row


def turned(x: Tensor, positions: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """(rows, heads, dim) at `positions` (rows,)."""
    cosine, sine = (table[positions][:, None] for table in tables)
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**31),
    dim=st.sampled_from([8, 16, 24, 32, 48, 64, 80, 128]),
    shared=st.integers(1, 3),
    group=st.integers(1, 9),
    prompts=st.lists(st.tuples(st.integers(1, MOST), st.integers(1, 11)), min_size=1, max_size=3),
    window=st.sampled_from([0, 0, 1, 7, 33]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_attention_is_torchs(
    step_library: ctypes.CDLL,
    seed: int,
    dim: int,
    shared: int,
    group: int,
    prompts: list[tuple[int, int]],
    window: int,
    dtype: torch.dtype,
) -> None:
    operations = decoding.Operations(step_library)
    random = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=random)

    of = torch.tensor([p for p, (_, rows) in enumerate(prompts) for _ in range(rows)])
    of = of[torch.randperm(len(of), generator=random)]
    rows, heads = len(of), shared * group
    prompt_lengths = torch.tensor([length for length, _ in prompts])
    lengths = torch.randint(0, MOST - 1, (rows,), generator=random)
    prompt = tuple(draw(len(prompts), shared, MOST, dim).to(dtype) for _ in range(2))
    own = tuple(draw(rows, shared, MOST, dim).to(dtype) for _ in range(2))
    tables = draw(2 * MOST, dim // 2).repeat(1, 2), draw(2 * MOST, dim // 2).repeat(1, 2)
    projected = draw(rows, (heads + 2 * shared) * dim).to(dtype)

    parts = projected.float().unflatten(1, (-1, dim))  # type: ignore[no-untyped-call]
    query, key, value = parts.split([heads, shared, shared], dim=1)
    positions = prompt_lengths[of] + lengths
    query, key = turned(query, positions, tables), turned(key, positions, tables).to(dtype)
    expected = torch.empty(rows, heads, dim)
    for r, p in enumerate(of.tolist()):
        before, time = int(prompt_lengths[p]), int(lengths[r])
        new = (key[r], value[r].to(dtype))
        keys, values = (
            torch.cat((prompt[i][p, :, :before], own[i][r, :, :time], new[i][:, None]), 1).float()
            for i in range(2)
        )
        seen = keys.shape[1] - (min(window, keys.shape[1]) if window else keys.shape[1])
        scores = torch.einsum("sgd,std->sgt", query[r].view(shared, group, dim), keys)
        scores = scores / math.sqrt(dim)
        scores[..., :seen] = -math.inf
        expected[r] = torch.einsum("sgt,std->sgd", scores.softmax(-1), values).flatten(0, 1)

    of_layer = decoding.Heads(heads, shared, dim, 1 / math.sqrt(dim), window)
    layer, kept = decoding.layer_of(of_layer, prompt, own)
    passes = decoding.Rows(lengths, of, prompt_lengths, tables, heads)
    out = operations.attend(layer, passes, projected, projected.new_empty(rows, heads * dim))
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(
        out.float().view_as(expected), expected, rtol=tolerance, atol=tolerance
    )
    assert kept
    for r, time in enumerate(lengths.tolist()):  # and the new token is kept
        torch.testing.assert_close(own[0][r, :, time], key[r], rtol=1e-2, atol=1e-2)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 40),
    hidden=st.sampled_from([8, 24, 48, 64]),
    inner=st.sampled_from([8, 16, 40]),
    experts=st.integers(2, 6),
    normalised=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_mixtures_are_torchs(
    step_library: ctypes.CDLL,
    seed: int,
    rows: int,
    hidden: int,
    inner: int,
    experts: int,
    normalised: bool,
    dtype: torch.dtype,
) -> None:
    random = torch.Generator().manual_seed(seed)
    given_rows, logits, gate_up, down = (
        (torch.randn(*size, generator=random) / 4).to(dtype)
        for size in (
            (rows, hidden),
            (rows, experts),
            (experts, 2 * inner, hidden),
            (experts, hidden, inner),
        )
    )
    weights = decoding.PanelExperts(gate_up, down, 2, normalised)
    chosen = torch.empty(rows, 2, dtype=torch.long)
    operations = decoding.Operations(step_library)
    out = operations.mixture(weights, given_rows, logits, chosen, torch.empty_like(given_rows))

    shares = logits.float().softmax(-1)
    gates = shares.gather(1, chosen)
    assert (gates.amin(1) >= shares.sort(1).values[:, -2] - 1e-6).all()
    if normalised:
        gates = gates / gates.sum(1, keepdim=True)
    wide = torch.einsum("rh,rkwh->rkw", given_rows.float(), gate_up.float()[chosen])
    first, second = wide.chunk(2, dim=-1)
    middle = torch.nn.functional.silu(first) * second
    parts = torch.einsum("rki,rkhi->rkh", middle, down.float()[chosen])
    expected = (parts * gates[:, :, None]).sum(1)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)
