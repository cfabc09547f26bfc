"""Whether the Triton programs compute on a device what they should: asked once, before the first of them serves.

A program that was right under the interpreter and on one GPU may be compiled wrongly for another. So each kind is run
on small random tensors and compared with the same written out in fp64; where it differs, or does not run at all, torch
computes instead. ``ops/check.py`` compares more shapes and types, on request.
"""

import logging
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

from modelwright.ops.backends.triton.attention import decode, ragged
from modelwright.ops.backends.triton.experts import experts
from modelwright.ops.pages import Pages

_log = logging.getLogger(__name__)

ALLOWED = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""How far results may be from the exact ones, as a share of the largest: some of the last bits that the type has."""
_CONTEXTS, _PAGE = (300, 17), 16
_STARTS = (0, 20, 37)
"""Two sequences of several queries: parts of a tile, and more than one."""


@cache
def attention_failure(device: torch.device, dtype: torch.dtype) -> str:
    """Why attention is left to torch on that device for queries of that type; empty if the programs are right."""
    return _judge(f"attention in {_name(dtype)} on {device}", lambda: _attention_errors(device, dtype), ALLOWED[dtype])


@cache
def experts_failure(device: torch.device, dtype: torch.dtype) -> str:
    """The same for experts in that type."""
    return _judge(f"experts in {_name(dtype)} on {device}", lambda: _expert_errors(device, dtype), ALLOWED[dtype])


FAILURES = (attention_failure, experts_failure)
"""Every such question: all kinds of programs."""


def _judge(what: str, errors: Callable[[], Iterator[float]], allowed: float) -> str:
    try:
        with torch.inference_mode():
            worst = max(errors())
    except Exception as error:  # of the compiler or the driver, whose errors have no class in common
        lines = str(error).strip().splitlines() or [type(error).__name__]
        failure = f"the Triton programs of {what} do not run: {lines[0]}"
    else:
        if worst <= allowed:
            return ""
        failure = f"the Triton programs of {what} are off by {worst:.2g}, more than {allowed:.2g}"
    _log.warning("torch computes instead of a GPU kernel, more slowly: %s", failure)
    return failure


def _attention_errors(device: torch.device, dtype: torch.dtype) -> Iterator[float]:
    """Of grouped and of latent attention, each with one query of a sequence and with several."""
    random = torch.Generator().manual_seed(0)
    heads, kv_heads, rank, rope, dim = 6, 2, 64, 16, 24
    tables, count = torch.arange(2 * 19, dtype=torch.int32).flip(0).view(2, 19), 2 * 19

    def pool(*shape: int) -> Tensor:
        return torch.randn(count, _PAGE, *shape, generator=random).to(dtype)

    def queries(tokens: int, width: int) -> Tensor:
        return torch.randn(tokens, heads, width, generator=random).to(dtype)

    keys, values, latent, rotated = pool(kv_heads, dim), pool(kv_heads, dim), pool(rank), pool(rope)
    pages = [Pages(kind.to(device)) for kind in (keys, values, latent, rotated)]
    where, contexts = tables.to(device), torch.tensor(_CONTEXTS, device=device)
    for starts in ((0, 1, 2), _STARTS):
        q, inner, outer = (queries(starts[-1], width) for width in (dim, rank, rope))
        ours = [x.to(device) for x in (q, inner, outer)]
        if starts[-1] == 2:
            grouped = decode(ours[0], pages[0], pages[1], contexts, where, 0.2)
            absorbed = decode(ours[2], pages[3], pages[2], contexts, where, 0.1, ours[1])
        else:
            grouped = ragged(ours[0], pages[0], pages[1], starts, _CONTEXTS, where, 0.2)
            absorbed = ragged(ours[2], pages[3], pages[2], starts, _CONTEXTS, where, 0.1, ours[1])
        yield _error(grouped, _written_out(q, keys, values, starts, tables, 0.2))
        joined = torch.cat((inner, outer), dim=-1), torch.cat((latent, rotated), dim=-1)
        exact = _written_out(joined[0], joined[1][:, :, None], latent[:, :, None], starts, tables, 0.1)
        yield _error(absorbed, exact)


def _written_out(
    q: Tensor, keys: Tensor, values: Tensor, starts: tuple[int, ...], tables: Tensor, scale: float
) -> Tensor:
    """Attention in fp64: q ``[tokens, heads, dim]`` over pools ``[pages, page_size, kv_heads, dim]``."""
    parts = []
    for table, start, stop, context in zip(tables, starts, starts[1:], _CONTEXTS, strict=False):
        groups = q.shape[1] // keys.shape[2]
        k, v = (
            pool[table].flatten(0, 1)[:context].double().repeat_interleave(groups, 1).transpose(0, 1)
            for pool in (keys, values)
        )  # [heads, context, dim]
        scores = q[start:stop].double().transpose(0, 1) @ k.mT * scale
        own = torch.arange(context - (stop - start), context)
        scores = scores.masked_fill(torch.arange(context)[None, :] > own[:, None], -torch.inf)
        parts.append((scores.softmax(dim=-1) @ v).transpose(0, 1))
    return torch.cat(parts)


def _expert_errors(device: torch.device, dtype: torch.dtype) -> Iterator[float]:
    """Of few tokens and of many, by tiles of either height."""
    random = torch.Generator().manual_seed(0)
    number, width, dim, top_k = 4, 40, 72, 2
    w_in = (torch.randn(number, 2 * width, dim, generator=random) / dim**0.5).to(dtype)
    w_out = (torch.randn(number, dim, width, generator=random) / width**0.5).to(dtype)
    for tokens in (3, 80):
        x = torch.randn(tokens, dim, generator=random).to(dtype)
        chosen = torch.rand(tokens, number, generator=random).argsort(dim=-1)[:, :top_k]
        weights = torch.rand(tokens, top_k, generator=random)
        found = experts(*(part.to(device) for part in (x, chosen, weights, w_in, w_out)))
        gate, up = torch.einsum("td,ewd->tew", x.double(), w_in.double()).chunk(2, dim=-1)
        said = torch.einsum("tew,edw->ted", gate * gate.sigmoid() * up, w_out.double())
        own = said.gather(1, chosen[:, :, None].expand(-1, -1, dim))
        yield _error(found, (own * weights[:, :, None]).sum(dim=1))


def _error(found: Tensor, exact: Tensor) -> float:
    """The largest difference as a share of the largest number, infinite where a number is none."""
    return ((found.cpu().double() - exact).abs().max() / exact.abs().max()).nan_to_num(nan=torch.inf).item()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
