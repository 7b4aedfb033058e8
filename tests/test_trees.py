"""Trees of tokens against what they stand for: lists of prompts and their beginnings."""

from hypothesis import given
from hypothesis import strategies as st

from refusal.model.token_tree import grow

ROWS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=8)


@given(ROWS, st.integers(8, 40))
def test_trees_hold_every_prompt_once_and_keep_to_their_capacity(
    rows: list[list[int]], capacity: int
) -> None:
    trees = grow(rows, range(len(rows)), capacity)
    assert sorted(prompt for tree in trees for prompt in tree.paths) == list(range(len(rows)))
    for tree in trees:
        assert len(tree.ids) <= capacity
        for prompt, path in tree.paths.items():
            assert [tree.ids[node] for node in path] == rows[prompt]
            assert [tree.depth[node] for node in path] == list(range(len(path)))


@given(ROWS)
def test_a_token_is_a_beginning_and_sees_its_own_beginnings_only(rows: list[list[int]]) -> None:
    (tree,) = grow(rows, range(len(rows)), sum(map(len, rows)))
    assert len(tree.ids) == len({tuple(row[: i + 1]) for row in rows for i in range(len(row))})
    sees = tree.sees()
    for path in tree.paths.values():
        for i, node in enumerate(path):
            assert sees[node].nonzero().flatten().tolist() == sorted(path[: i + 1])


def test_some_prompts_only() -> None:
    (tree,) = grow([[1, 2], [1, 3], [4]], [0, 2], 10)
    assert set(tree.paths) == {0, 2}
    assert tree.new_tokens([1, 2]) == 0
    assert tree.new_tokens([1, 3, 3]) == 2
