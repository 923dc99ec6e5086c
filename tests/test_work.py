"""The counted FLOPs are those of the traced programs' products, read from their jaxprs."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.extend.core as extend_core
import numpy as np
import pytest
from support import hf_checkpoints, tiny_programs

from reval_jax import batch, model, update, work


def products_of(jaxpr, times=1):
    """FLOPs of all dot_generals of a jaxpr, those of loops as often as they run, of branches those of the largest."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * times * depth * math.prod(equation.outvars[0].aval.shape)
            continue
        repeats = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        inner = [products_of(each, repeats) for each in extend_core.jaxprs_in_params(equation.params)]
        total += max(inner, default=0) if equation.primitive.name == "cond" else sum(inner)
    return total


def squares(architecture, *, rows, tokens, remat):
    """What attention in plain XLA multiplies of a short row: the whole square, where the count takes the causal half."""
    work_of = [
        work.update(architecture, tokens=0, scored=0, pairs=pairs, remat=remat)
        for pairs in (rows * tokens**2, rows * tokens * (tokens + 1) / 2)
    ]
    return sum(work_of[0]) - sum(work_of[1])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("remat", ["none", "dots", "attention", "full"])
def test_an_updates_count_is_that_of_its_program(remat, tied):
    architecture = dataclasses.replace(hf_checkpoints.tiny_architecture("qwen2"), tied_head=tied, mlp_width=48)
    tiny = tiny_programs.tiny(architecture=architecture, model={"remat": remat})
    trajectories = tiny_programs.random_trajectories(8, max_prompt=1, max_response=8)
    lengths = np.full(8, 8, np.int32)
    trajectories = trajectories._replace(
        prompt_length=lengths,
        response_length=lengths,
        tokens=np.full(8 * 16, 5, np.int32),
        log_prob=np.zeros(8 * 8, np.float32),
        token_values=np.zeros((8 * 8, 0), np.float32),
    )
    packed = batch.pack(trajectories, tiny.mesh, limits=tiny.limits)
    assert packed.tokens.shape == (1, 8, 16), "rows without padding, in one micro-batch"

    def gradients(params, rows):
        return update.loss_and_gradients(architecture, params, rows, tiny.algorithm, tiny.mesh, config=tiny.config)

    jaxpr = jax.make_jaxpr(gradients)(update.abstract_params(architecture, tiny.mesh), packed)
    counted = work.update_on(architecture, trajectories, remat=remat)
    expected = counted.total + squares(architecture, rows=8, tokens=16, remat=remat)
    assert products_of(jaxpr.jaxpr) == expected
    assert counted.weights == work.weights(architecture, tokens=8 * 16, scored=8 * 8)


def test_a_decode_steps_count_is_that_of_its_program():
    architecture = hf_checkpoints.tiny_architecture("qwen3")
    params = model.abstract_params(architecture)
    rows, positions = 4, model.cache.BLOCK
    hidden = jax.ShapeDtypeStruct((rows, architecture.width), np.float32)

    def heads(hidden, head):
        return hidden @ head

    of_head = jax.make_jaxpr(heads)(hidden, jax.eval_shape(lambda p: model.head_weight(architecture, p), params))
    without_layers = work.decode_step(dataclasses.replace(architecture, num_layers=1), rows=rows, positions=0)
    one_more = work.decode_step(dataclasses.replace(architecture, num_layers=2), rows=rows, positions=0)
    assert products_of(of_head.jaxpr) == without_layers - (one_more - without_layers)
    layer = sum(
        math.prod(leaf.shape[1:]) for name, leaf in params["layers"].items() if not name.endswith(("norm", "bias"))
    )
    assert one_more - without_layers == 2 * rows * layer
    attention = work.decode_step(architecture, rows=rows, positions=positions) - work.decode_step(
        architecture, rows=rows, positions=0
    )
    # Scores and weighted values: two products of [heads, head size] and the cache of each row and layer.
    assert (
        attention
        == 2 * 2 * rows * architecture.num_layers * architecture.num_heads * architecture.head_size * positions
    )


def test_the_embedding_of_a_tied_model_counts_once_as_its_head():
    tied, untied = (
        dataclasses.replace(hf_checkpoints.tiny_architecture("llama"), tied_head=is_tied) for is_tied in (True, False)
    )
    assert work.weights(tied, tokens=7, scored=3) == work.weights(untied, tokens=7, scored=3)
    assert work.weights(tied, tokens=7, scored=0) == 6 * 7 * tied.num_layers * work.layer_elements(tied)
