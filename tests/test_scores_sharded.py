"""The score head on eight fake devices equals that on one device, and communicates only small arrays."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from reval_jax import scores, scores_sharded

NUM_TOKENS, WIDTH, VOCABULARY = 64, 24, 1024
AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
SHAPES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (4, 1, 2), (2, 2, 2), (2, 1, 4), (1, 2, 4), (1, 1, 8)]


def mesh_of(shape: tuple[int, int, int]) -> Mesh:
    return Mesh(np.array(jax.devices()).reshape(shape), AXES)


def operands() -> tuple[jax.Array, ...]:
    """hidden, head, targets, temperature and the cotangents [2, N]."""
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(NUM_TOKENS, WIDTH)), 0.5 * rng.normal(size=(WIDTH, VOCABULARY))
    targets = rng.integers(0, VOCABULARY, NUM_TOKENS)
    targets[:2] = 0, VOCABULARY - 1
    floats = [jnp.asarray(array, jnp.float32) for array in (hidden, head, 0.7, rng.normal(size=(2, NUM_TOKENS)))]
    return floats[0], floats[1], jnp.asarray(targets, jnp.int32), floats[2], floats[3]


def dense() -> tuple:
    """Scores and the gradients by hidden, head and temperature, on one device."""
    hidden, head, targets, temperature, weights = operands()

    def loss(hidden: jax.Array, head: jax.Array, temperature: jax.Array) -> tuple:
        results = scores.token_scores(hidden, head, targets, temperature=temperature)
        return jnp.sum(weights * jnp.stack(results)), results

    (_, results), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
        hidden, head, temperature
    )
    return *results, *gradients


def assert_close_to_the_largest(results: tuple, expected: tuple, bound: float) -> None:
    for array, exact in zip(results, expected, strict=True):
        array, exact = np.asarray(array), np.asarray(exact)
        assert array.shape == exact.shape
        assert np.max(np.abs(array - exact)) <= bound * np.max(np.abs(exact))


@pytest.mark.parametrize("chunk_tokens", [0, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_and_gradients_of_whole_arrays_equal_one_devices(shape: tuple[int, int, int], chunk_tokens: int):
    hidden, head, targets, temperature, weights = operands()
    mesh = mesh_of(shape)

    def loss(hidden: jax.Array, head: jax.Array, temperature: jax.Array) -> tuple:
        settings = {"temperature": temperature, "chunk_tokens": chunk_tokens}
        results = scores_sharded.sharded_token_scores(mesh, hidden, head, targets, **settings)
        return jnp.sum(weights * jnp.stack(results)), results

    (_, results), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
        hidden, head, temperature
    )
    assert_close_to_the_largest((*results, *gradients), dense(), 1e-6)
    assert gradients[0].sharding.is_equivalent_to(NamedSharding(mesh, P(ROWS, None)), 2)
    assert gradients[1].sharding.is_equivalent_to(NamedSharding(mesh, P("fsdp", "tensor")), 2)


@pytest.mark.parametrize("shape", [(2, 4, 1), (2, 2, 2), (1, 2, 4)])
def test_gradients_taken_inside_the_region_equal_one_devices(shape: tuple[int, int, int]):
    def local(
        hidden: jax.Array, head: jax.Array, targets: jax.Array, temperature: jax.Array, weights: jax.Array
    ) -> tuple:
        def loss(hidden: jax.Array, head: jax.Array, temperature: jax.Array) -> tuple:
            axes = {"vocab_axis": "tensor", "gather_axis": "fsdp"}
            results = scores.token_scores(hidden, head, targets, temperature=temperature, chunk_tokens=3, **axes)
            return jnp.sum(weights * jnp.stack(results)), results

        (_, results), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(hidden, head, temperature)
        return *results, gradients[0], jax.lax.psum(gradients[1], "data"), jax.lax.psum(gradients[2], ROWS)

    head_spec = P("fsdp", "tensor")
    region = jax.shard_map(
        local,
        mesh=mesh_of(shape),
        in_specs=(P(ROWS), head_spec, P(ROWS), P(), P(None, ROWS)),
        out_specs=(P(ROWS), P(ROWS), P(ROWS), head_spec, P()),
        check_vma=False,
    )
    assert_close_to_the_largest(jax.jit(region)(*operands()), dense(), 1e-6)


@pytest.mark.parametrize("chunk_tokens", [0, 3])
def test_statistics_of_a_split_vocabulary_equal_one_devices(chunk_tokens: int):
    hidden, head, targets, temperature, _ = operands()

    def local(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> tuple:
        settings = {"chunk_tokens": chunk_tokens, "vocab_axis": "tensor"}
        return scores_sharded.token_statistics(hidden, head, targets, temperature=temperature, **settings)

    specs = {"in_specs": (P(ROWS), P(None, "tensor"), P(ROWS)), "out_specs": P(ROWS), "check_vma": False}
    results = jax.jit(jax.shard_map(local, mesh=mesh_of((2, 1, 4)), **specs))(hidden, head, targets)
    expected = jax.jit(scores_sharded.token_statistics)(hidden, head, targets, temperature=temperature)
    assert_close_to_the_largest(results, expected, 2e-6)


def test_a_target_outside_the_whole_vocabulary_is_not_a_number():
    hidden, head, targets, _, _ = operands()
    targets = targets.at[5].set(VOCABULARY).at[6].set(-1)
    log_prob, logsumexp = jax.jit(lambda *arrays: scores_sharded.sharded_token_scores(mesh_of((2, 2, 2)), *arrays))(
        hidden, head, targets
    )
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(log_prob)), [5, 6])
    assert np.all(np.isfinite(logsumexp))


COLLECTIVE = re.compile(
    r"%\S+ = (?P<shapes>.*?) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)


def collectives(text: str) -> tuple[list[tuple[str, tuple[int, ...]]], list[tuple[str, tuple[int, ...]]]]:
    """(kind, result shape) of each collective in a compiled program's text, outside and inside its loops."""
    computations: dict[str, list[str]] = {}
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%(\S+) \(.*\{$", line):
            computations[header[1]] = []
        elif computations:
            list(computations.values())[-1].append(line)
    looped = set(re.findall(r"(?:body|condition)=%([^\s,}]+)", text))
    assert looped <= computations.keys()
    grown = True
    while grown:
        called = {name for body in looped for line in computations[body] for name in re.findall(r"=%([^\s,}]+)", line)}
        grown = not called & computations.keys() <= looped
        looped |= called & computations.keys()
    collected: tuple[list, list] = ([], [])
    for name, lines in computations.items():
        for match in filter(None, map(COLLECTIVE.search, lines)):
            for shape in re.findall(r"\w+\[([\d,]*)\]", match["shapes"]):
                collected[name in looped].append((match["kind"], tuple(map(int, filter(None, shape.split(","))))))
    return collected


def test_the_loop_communicates_only_the_gradient_of_the_hidden_states_and_never_logits():
    mesh, chunk_tokens = mesh_of((2, 2, 2)), 4
    spread = {spec: NamedSharding(mesh, spec) for spec in (P(ROWS, None), P("fsdp", "tensor"), P(ROWS), P(None, ROWS))}
    shapes = [(NUM_TOKENS, WIDTH), (WIDTH, VOCABULARY), (NUM_TOKENS,), (2, NUM_TOKENS)]
    dtypes = [jnp.bfloat16, jnp.float32, jnp.int32, jnp.float32]
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for shape, dtype, sharding in zip(shapes, dtypes, spread.values(), strict=True)
    ]

    def gradients(hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple:
        def score(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
            return scores_sharded.sharded_token_scores(mesh, *arrays, targets, chunk_tokens=chunk_tokens)

        results, pull_back = jax.vjp(score, hidden, head)
        return results, pull_back((weights[0], weights[1]))

    outside, inside = collectives(jax.jit(gradients).lower(*arguments).compile().as_text())
    local_tokens, local_columns = NUM_TOKENS // 4, VOCABULARY // 2
    assert inside == [("all-reduce", (chunk_tokens, WIDTH))]
    assert sorted(outside) == [
        ("all-gather", (WIDTH, local_columns)),
        ("all-reduce", (1, local_tokens)),  # the sums
        ("all-reduce", (2, local_tokens)),  # the maxima and the targets' logits
        ("all-reduce", (WIDTH // 2, local_columns)),  # the head's gradient over data
        ("reduce-scatter", (WIDTH // 2, local_columns)),
    ]


def test_sizes_that_the_mesh_does_not_divide_are_refused():
    hidden, head, targets, _, _ = operands()
    mesh = mesh_of((2, 2, 2))
    with pytest.raises(ValueError, match=r"tokens 63 does not divide over the 4 devices"):
        scores_sharded.sharded_token_scores(mesh, hidden[:63], head, targets[:63])
    with pytest.raises(ValueError, match=r"vocabulary 1023 does not divide over the 2 devices"):
        scores_sharded.sharded_token_scores(mesh, hidden, head[:, :1023], targets)
    with pytest.raises(ValueError, match=r"width 23 does not divide"):
        scores_sharded.sharded_token_scores(mesh, hidden[:, :23], head[:23], targets)
    with pytest.raises(ValueError, match=r"gather_axis='fsdp' is not one of row_axes"):
        scores_sharded.sharded_token_scores(mesh, hidden, head, targets, row_axes=("data",))
