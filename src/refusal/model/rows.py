"""How prompts are laid out in rows of a pass: padded side by side, or as trees of tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal.model.base import LoadedModel
from refusal.model.row_attention import Piece, pieces
from refusal.model.token_tree import TokenTree


@dataclass(frozen=True)
class Batch:
    """Rows ready to run, and where each prompt's tokens are.

    ``mask`` is boolean with one prompt a row (which tokens are real); additive with packed rows.
    ``prompts`` are indices into the list that was laid out, in the order of ``row``, ``last`` and
    ``paths``: the row of a prompt, the index of its last token in the row, and those of all of its
    tokens (on the CPU). ``pieces``: how attention may look at the one packed row there is.
    """

    ids: Int[Tensor, "row token"]
    positions: Int[Tensor, "row token"]
    mask: Bool[Tensor, "row token"] | Float[Tensor, "row 1 token token"]
    row: Int[Tensor, "prompt"]
    last: Int[Tensor, "prompt"]
    prompts: tuple[int, ...]
    paths: tuple[Int[Tensor, "_"], ...]
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Planned:
    """A batch before it is laid out: with its mask, its largest part, it exists only while it is
    needed.

    ``tokens``: with padding.
    """

    prompts: tuple[int, ...]
    tokens: int
    lay_out: Callable[[], Batch]


def groups(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut a list sorted by falling length into groups whose padded size keeps to the budget."""
    groups: list[list[int]] = []
    width = 0
    for index, length in zip(order, lengths, strict=True):
        if groups and (len(groups[-1]) + 1) * width <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
            width = length
    return groups


def padded(model: LoadedModel, rows: Sequence[Sequence[int]], group: Sequence[int]) -> Batch:
    """One prompt a row, padded on the right: a token's index is its position."""
    width = max(len(rows[i]) for i in group)
    ids = torch.tensor([list(rows[i]) + [0] * (width - len(rows[i])) for i in group])
    length = torch.tensor([len(rows[i]) for i in group])
    positions = torch.arange(width).expand(len(group), -1)
    mask = positions < length[:, None]
    tensors = (ids, positions, mask, torch.arange(len(group)), length - 1)
    return Batch(
        *on_device(model, tensors), tuple(group), tuple(torch.arange(len(rows[i])) for i in group)
    )


def packed(model: LoadedModel, trees: Sequence[TokenTree]) -> Batch:
    """A tree a row; padding at the end sees only itself."""
    width = max(len(tree.ids) for tree in trees)
    ids = torch.zeros(len(trees), width, dtype=torch.long)
    positions = torch.zeros(len(trees), width, dtype=torch.long)
    sees = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for r, tree in enumerate(trees):
        n = len(tree.ids)
        ids[r, :n] = torch.tensor(tree.ids)
        positions[r, :n] = torch.tensor(tree.depth)
        sees[r, :n, :n] = tree.sees()
    dtype = model.hf.dtype
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)[:, None]
    row = torch.tensor([r for r, tree in enumerate(trees) for _ in tree.paths])
    paths = tuple(torch.tensor(path) for tree in trees for path in tree.paths.values())
    tensors = (ids, positions, mask, row, torch.stack([path[-1] for path in paths]))
    looks = pieces(sees[0]) if len(trees) == 1 and model.device.type == "cpu" else ()
    prompts = tuple(i for tree in trees for i in tree.paths)
    return Batch(*on_device(model, tensors), prompts, paths, looks)


def on_device(
    model: LoadedModel, tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The tensors of a batch where the model's token ids go."""
    ids, positions, mask, row, last = (tensor.to(model.device) for tensor in tensors)
    return ids, positions, mask, row, last
