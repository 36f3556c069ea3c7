from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.harness.engines.tree import plan

sequences = st.lists(st.lists(st.integers(0, 2), max_size=8), max_size=12)


@given(sequences)
def test_every_path_spells_its_sequence_at_its_positions(sequences: list[list[int]]) -> None:
    tree = plan(sequences)
    for sequence, path in zip(sequences, tree.paths, strict=True):
        assert [tree.tokens[k] for k in path] == sequence
        assert [tree.positions[k] for k in path] == list(range(len(sequence)))


@given(sequences)
def test_a_shared_prefix_is_computed_once(sequences: list[list[int]]) -> None:
    prefixes = {tuple(sequence[: n + 1]) for sequence in sequences for n in range(len(sequence))}
    assert len(plan(sequences).tokens) == len(prefixes)


@given(sequences)
def test_a_token_sees_exactly_the_tokens_before_it_in_its_own_sequences(sequences: list[list[int]]) -> None:
    tree = plan(sequences)
    for path in tree.paths:
        for depth, q in enumerate(path):
            seen = [k for k in range(len(tree.tokens)) if k <= q < tree.ends[k]]
            assert seen == path[: depth + 1]
