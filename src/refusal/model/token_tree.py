"""Prompts as trees of tokens, in which what several of them begin with stands once."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor


class TokenTree:
    """Prompts as paths from a common root: a token is a node, told apart by its parent and its id.

    Attributes:
        ids, depth: token id and position of each node; a parent always comes before its children.
        paths: the nodes of each prompt, first token first.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.depth: list[int] = []
        self._parent: list[int] = []
        self.paths: dict[int, list[int]] = {}
        self._children: dict[tuple[int, int], int] = {}

    def new_tokens(self, row: Sequence[int]) -> int:
        """How many nodes a prompt would add."""
        node = -1
        for depth, token in enumerate(row):
            if (node, token) not in self._children:
                return len(row) - depth
            node = self._children[node, token]
        return 0

    def add(self, prompt: int, row: Sequence[int]) -> None:
        """Hang a prompt into the tree."""
        node = -1
        path = self.paths[prompt] = []
        for depth, token in enumerate(row):
            child = self._children.setdefault((node, token), len(self.ids))
            if child == len(self.ids):
                self.ids.append(token)
                self.depth.append(depth)
                self._parent.append(node)
            node = child
            path.append(node)

    def sees(self) -> Bool[Tensor, "token token"]:
        """Which tokens each token attends to: itself and its ancestors."""
        out = torch.eye(len(self.ids), dtype=torch.bool)
        for node, parent in enumerate(self._parent):
            if parent >= 0:
                out[node] |= out[parent]
        return out


def grow(rows: Sequence[Sequence[int]], chosen: Sequence[int], capacity: int) -> list[TokenTree]:
    """As few trees as hold the prompts, about equally large; prompts that begin alike go
    together.
    """
    order = sorted(chosen, key=lambda i: list(rows[i]))
    whole = TokenTree()
    for i in order:
        whole.add(i, rows[i])
    size = capacity
    if (
        len(whole.ids) > capacity
    ):  # a little more than an even share, since each tree repeats what it shares
        n_trees = -(-len(whole.ids) // capacity)
        size = min(capacity, len(whole.ids) // n_trees + max(len(rows[i]) for i in chosen))
    trees = [TokenTree()]
    for i in order:
        if trees[-1].ids and len(trees[-1].ids) + trees[-1].new_tokens(rows[i]) > size:
            trees.append(TokenTree())
        trees[-1].add(i, rows[i])
    return trees
