"""Attention piece by piece is attention: against a plain loop over tokens, and in whole models."""

import threading
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from plain import last_logits
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from refusal.model import row_attention
from refusal.model.forward import plan, read, read_from
from refusal.model.row_attention import SDPA, attending, pieces
from refusal.model.token_tree import grow

PROMPTS = [
    f"{start} {middle} {end}?"
    for start in ("Why is", "Where was")
    for middle in ("the sky over the sea", "a river in the north", "my neighbour's dog")
    for end in ("blue in May", "so long", "never seen at noon")
]


def a_tree() -> Tensor:
    """Who sees whom among 40 prompts that begin alike, some of them with more in common."""
    rows = [[1, 2, 3, 4, 5, 10 + i % 7, 100 + i, 200, 300 + i, 400] for i in range(40)]
    (tree,) = grow(rows, range(len(rows)), 10_000)
    return tree.sees()


@pytest.mark.parametrize("size", [1, 7, 64])
def test_pieces_cover_the_row_once_and_hold_all_that_is_seen(size: int) -> None:
    sees = a_tree()
    found = pieces(sees, size)
    assert [i for piece in found for i in range(piece.start, piece.stop)] == list(range(len(sees)))
    for piece in found:
        for i in range(piece.start, piece.stop):
            assert set(sees[i].nonzero()[:, 0].tolist()) <= set(piece.keys.tolist())


def test_a_row_that_is_one_prompt_stays_whole() -> None:
    assert pieces(torch.ones(200, 200, dtype=torch.bool).tril()) == ()
    assert pieces(torch.ones(1, 1, dtype=torch.bool)) == ()


@pytest.mark.parametrize("groups", [1, 2])
def test_attention_piece_by_piece_is_a_plain_loop_over_tokens(groups: int) -> None:
    sees = a_tree()
    n, width, draw = len(sees), 8, torch.Generator().manual_seed(0)
    query = torch.randn(2, 2 * groups, n, width, generator=draw, dtype=torch.float64)
    key, value = torch.randn(2, 2, 2, n, width, generator=draw, dtype=torch.float64)
    mask = torch.zeros(1, 1, n, n, dtype=torch.float64).masked_fill(~sees, -torch.inf)
    module = SimpleNamespace(num_key_value_groups=groups, is_causal=True)
    row = pieces(sees)
    assert len(row) > 1
    with attending(row):
        by_piece = ALL_ATTENTION_FUNCTIONS[SDPA]
        found, _ = by_piece(module, query, key, value, mask.expand(2, -1, -1, -1), scaling=0.3)
    expected = torch.empty(2, n, 2 * groups, width, dtype=torch.float64)
    for b in range(2):
        for h in range(2 * groups):
            for i in range(n):
                seen = sees[i].nonzero()[:, 0]
                scores = 0.3 * key[b, h // groups, seen] @ query[b, h, i]
                expected[b, i, h] = scores.softmax(dim=0) @ value[b, h // groups, seen]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "mixtral", "olmo2", "falcon"])
def test_models_say_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.chat_model(family)
    rows = model.tokenize(PROMPTS)
    batch = plan(model, rows)[0].lay_out()
    assert len(batch.pieces) > 1
    found = read(model, batch, copies=2)
    starts = [len(rows[i]) - 2 for i in batch.prompts]
    two = read_from(model, batch, starts)
    expected = torch.stack([last_logits(model.hf, rows[i]) for i in batch.prompts])
    near = 1e-5 * float(expected.abs().max())
    for copy in found:
        torch.testing.assert_close(copy, expected, atol=near, rtol=0)
    monkeypatch.setattr(row_attention, "_is_of", lambda *_: False)
    for pieced, whole in zip(two, read_from(model, batch, starts), strict=True):
        torch.testing.assert_close(pieced, whole, atol=near, rtol=0)


def test_other_calls_and_other_threads_look_at_the_whole() -> None:
    row = pieces(a_tree())
    seen: list[int] = []

    def call(n: int) -> None:
        x = torch.randn(1, 1, n, 4)
        mask = torch.zeros(1, 1, n, n)
        module = SimpleNamespace(num_key_value_groups=1, is_causal=True)

        def whole(module: object, query: Tensor, *rest: object) -> tuple[Tensor, None]:
            seen.append(query.shape[2])
            return query, None

        by_piece.whole = whole
        by_piece(module, x, x, x, mask)

    with attending(row):
        by_piece = ALL_ATTENTION_FUNCTIONS[SDPA]
        whole, n = by_piece.whole, row[-1].stop
        try:
            call(n - 1)
            other = threading.Thread(target=call, args=(n,))
            other.start()
            other.join()
            assert seen == [n - 1, n]
        finally:
            by_piece.whole = whole
