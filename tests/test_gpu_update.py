"""The update compiled for H100s that are not here: what makes it fast, and what makes it repeat."""

from __future__ import annotations

import functools
import re

import jax
import numpy as np
import pytest
from support import gpu_programs, hf_checkpoints, pretended_cudnn, tiny_programs

from reval_jax import algorithms, batch, mesh, update
from reval_jax.model import kernels
from reval_jax.model.attention import cudnn

TOKENS, LAYERS, VOCABULARY, WIDTH = 8192, 2, 151_936, 1536


@pytest.fixture(scope="module")
def packed():
    """jax reads cuDNN's version and the card's from the driver while it traces: here they are those of an H100.

    And of jax itself one that is right about the packed form, whose calls are the same in those that are not.
    """
    with pytest.MonkeyPatch.context() as patch:
        pretended_cudnn.patch(patch, version=91200, is_at_least_hopper=True)
        patch.setattr(jax, "__version_info__", max(jax.__version_info__, cudnn.RIGHT_SINCE))
        yield


@pytest.fixture(scope="module")
def compiled(h100_8, packed):
    """A function of the number of GPUs: the update of two layers like the 1.5B model's, in rows of 8,192 tokens."""
    architecture = hf_checkpoints.tiny_architecture(
        head_size=128,
        num_heads=12,
        num_kv_heads=2,
        width=WIDTH,
        mlp_width=4096,  # less than a row, so that no array but a mask has two axes of a row's length
        vocab_size=VOCABULARY,
        num_layers=LAYERS,
    )
    config = tiny_programs.settings(
        model={"compute_dtype": "bfloat16", "remat": "dots"},
        task={"max_prompt_tokens": 1024},
        rollout={"max_response_tokens": TOKENS - 1024},
        update={"micro_batch_tokens": 2 * TOKENS},
    )

    @functools.cache
    def build(count):
        devices = jax.sharding.Mesh(np.array(h100_8[:count]).reshape(1, count, 1), mesh.AXES)
        optimizer = update.make_optimizer(config.optimizer)
        state = update.abstract(update.abstract_params(architecture, devices), optimizer, devices)
        limits = batch.Limits(64, config.update.micro_batch_tokens, config.rollout.max_response_tokens)
        rows = batch.abstract(batch.shape_of(TOKENS, count, limits=limits), devices)
        with jax.numpy_dtype_promotion("standard"):
            step = update.make_step(architecture, devices, algorithm=algorithms.choose(config), config=config)
            return step.lower(state, rows).compile()

    return build


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 8])
def test_the_update_of_long_rows_has_no_mask_and_waits_for_the_host_only_between_micro_batches(compiled, count):
    text = compiled(count).as_text()
    program = gpu_programs.read(text)
    forward, backward = (text.count(f'custom_call_target="__cudnn$fmhaSoftmax{name}"') for name in ("", "Backward"))
    assert 1 <= forward <= backward, "the forward pass keeps what the backward pass needs"
    assert not program.square_arrays(TOKENS)
    assert not program.arrays_of("u16")
    # The host reads the number of micro-batches. An update that is not finite is left out by a select, not a branch.
    assert program.host_waits() == 1
    assert "conditional(" not in text
    longest = program.loops()[0]
    assert longest.trips is None
    assert not longest.unknown_loops_inside


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 8])
def test_the_update_computes_products_in_cublas_and_sorts_nothing_but_token_ids(compiled, count):
    """As its compiler options say: no kernel is chosen by timing it, and no sum of gradients is made to repeat by sorting."""
    text = compiled(count).as_text()
    assert "__cublas$lt$matmul" in text
    assert "triton_nested_gemm" not in text
    sorts = [line for line in text.splitlines() if re.search(r" sort\(|cub\w*DeviceRadixSort", line)]
    sizes = {int(size) for line in sorts for size in re.findall(r"s32\[(\d+)\]", line)}
    assert sizes == {count * 2 * TOKENS}
    assert not [line for line in sorts if "bf16[" in line or "f32[" in line]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 8])
def test_the_update_holds_three_gradients_and_the_logits_of_a_chunk_and_updates_its_state_in_place(compiled, count):
    memory = compiled(count).memory_analysis()
    gradient = 4 * (VOCABULARY * WIDTH + LAYERS * WIDTH * (3 * 4096 + 2 * WIDTH + 2 * 256))
    # The sum so far, the micro-batch's and the embedding's; a chunk in float32, in bfloat16 and once more while it is made.
    assert memory.temp_size_in_bytes < 3 * gradient + 2.5 * kernels.GPU_CHUNK_BYTES
    assert memory.alias_size_in_bytes > 0.99 * 3 * gradient / count


@pytest.mark.slow
def test_eight_gpus_gather_weights_and_scatter_gradients_in_the_loop_and_sum_a_few_numbers_after_it(compiled):
    inside, outside = tiny_programs.collectives(compiled(8).as_text())
    everyone = "{{0,1,2,3,4,5,6,7}}"
    assert inside == {(kind, everyone) for kind in ("all-gather", "reduce-scatter", "all-to-all")}
    assert outside == {("all-reduce", everyone)}
