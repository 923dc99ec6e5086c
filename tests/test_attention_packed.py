"""cuDNN's attention over packed rows: its arithmetic of segments on a CPU, its choice, and its program for a GPU.

The kernel itself runs on GPUs only. Here `contract` stands for it: what jax's documentation of `q_offsets` and `q_seqlen` says,
in loops over segments.
"""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import hf_checkpoints, pretended_cudnn, tiny_programs

from reval_jax import batch, mesh, model, ragged, setup
from reval_jax.model import attention, compiler, kernels
from reval_jax.model.attention import cudnn
from reval_jax.tools import doctor


def contract(query, keys, values, offsets, lengths):
    """Causal attention of each segment alone; what lies in no segment is NaN, as memory that no kernel writes may be."""
    attended = jnp.full(query.shape, jnp.nan, query.dtype)
    group = query.shape[2] // keys.shape[2]
    for row, (starts, sizes) in enumerate(zip(np.asarray(offsets), np.asarray(lengths), strict=True)):
        assert starts.size == sizes.size + 1
        for start, size in zip(starts[:-1], sizes, strict=True):
            assert (start >= 0) == (size >= 0)
            own = slice(int(start), int(start + size))
            if size > 0:
                key, value = (jnp.repeat(heads[row, own], group, axis=1) for heads in (keys, values))
                scores = jnp.einsum("tnh,snh->nts", query[row, own], key) / np.sqrt(query.shape[3])
                weights = jax.nn.softmax(jnp.where(np.tri(size, dtype=bool)[None], scores, -jnp.inf), axis=-1)
                attended = attended.at[row, own].set(jnp.einsum("nts,snh->tnh", weights, value))
    return attended


def packed(query, keys, values, segment_ids):
    """`attend_packed` by `contract`, to be compiled: the offsets are computed now."""
    with jax.ensure_compile_time_eval():
        places = cudnn._attend_packed(query, keys, values, segment_ids, lambda *arguments: arguments[3:])
    return contract(query, keys, values, *places)


def rows_of(*sizes):
    """Segment ids of rows, each of segments of these sizes, the last of them padding."""
    return jnp.asarray([np.repeat([*range(1, len(row)), 0], row) for row in sizes], jnp.int32)


def run(attend, segment_ids, num_heads, num_kv_heads, head_size):
    """Output and gradients of random heads in float32."""
    generator = np.random.default_rng(segment_ids.size + head_size)
    shapes = [(*segment_ids.shape, heads, head_size) for heads in (num_heads, num_kv_heads, num_kv_heads, num_heads)]
    *operands, cotangent = (jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in shapes)

    @jax.jit
    def both(*operands):
        attended, pullback = jax.vjp(lambda *operands: attend(*operands, segment_ids), *operands)
        return attended, *pullback(cotangent)

    return both(*operands)


@pytest.mark.parametrize(
    ("segment_ids", "heads"),
    [
        pytest.param(rows_of([15, 8, 1, 16], [40, 0]), (4, 2, 8), id="padding as a segment, and a row without any"),
        pytest.param(rows_of([1, 9, 13]), (6, 1, 64), id="an odd length, one key head, head size 64"),
        pytest.param(rows_of([4, 4, 9], [2, 14, 1]), (3, 3, 128), id="a key head a query head, head size 128"),
        pytest.param(rows_of([7, 0]), (2, 1, 16), id="fewer columns than a slot asks"),
        pytest.param(rows_of([1] * 16 + [112]), (2, 1, 8), id="as many segments as a row has slots"),
    ],
)
def test_packed_attention_equals_the_plain_one_and_so_do_its_gradients(segment_ids, heads):
    expected = run(attention.xla.attend, segment_ids, *heads)
    for result, one in zip(run(packed, segment_ids, *heads), expected, strict=True):
        np.testing.assert_allclose(result, one, rtol=0, atol=2e-6 * float(jnp.abs(one).max()))


def test_runs_are_the_places_of_segments_and_padding_past_the_last_one():
    segment_ids = jnp.asarray([[1, 1, 2, 0, 0], [0, 1, 1, 0, 0], [3, 3, 3, 3, 3]], jnp.int32)
    offsets, lengths = cudnn.runs(segment_ids, 4)
    np.testing.assert_array_equal(offsets, [[0, 2, 3, -1, -1], [0, 1, 3, -1, -1], [0, -1, -1, -1, -1]])
    np.testing.assert_array_equal(lengths, [[2, 1, 2, -1], [1, 2, 2, -1], [5, -1, -1, -1]])


@pytest.mark.parametrize("num_tokens", [16, 128, 640, 8192])
def test_there_is_room_for_every_trajectory_of_a_batch_and_its_padding(num_tokens):
    shape = batch.shape_of(num_tokens, 1, limits=batch.Limits(1000, num_tokens, num_tokens))
    offsets, lengths = jax.eval_shape(
        lambda ids: cudnn.runs(ids, ragged.row_slots(num_tokens) + 1), jax.ShapeDtypeStruct((1, num_tokens), jnp.int32)
    )
    assert lengths.shape == (1, shape.slots + 1)
    assert offsets.shape == (1, shape.slots + 2)


# --- the choice ------------------------------------------------------------------------------------------------------


def gpu(monkeypatch, version):
    """An H100 that is not here, and a jax of this version."""
    monkeypatch.setattr(jax, "__version_info__", version)
    return types.SimpleNamespace(platform="gpu")


@pytest.mark.parametrize(("version", "is_right"), [((0, 10, 2), False), ((0, 11, 0), False), ((0, 11, 2), True)])
def test_versions_that_compute_wrong_grouped_queries_are_not_used(monkeypatch, version, is_right):
    device = gpu(monkeypatch, version)
    why = cudnn.packed_refusal(device, jnp.bfloat16, 128)
    assert why is None if is_right else "wrong grouped queries" in why
    one = types.SimpleNamespace(devices=np.array([[device]]), shape=dict.fromkeys(mesh.AXES, 1))
    chosen = kernels.for_learner("auto", one, hf_checkpoints.tiny_architecture(head_size=128), jnp.bfloat16)
    assert chosen.attend is (cudnn.attend_packed if is_right else cudnn.attend)


def seen_at_once(query, keys, values, offsets, lengths):
    """A kernel whose query heads all read the first key head: what jax 0.10.2 does to grouped queries, in kind."""
    first = [jnp.broadcast_to(heads[:, :, :1], heads.shape) for heads in (keys, values)]
    return fixed(query, *first, offsets, lengths)


def fixed(query, keys, values, offsets, lengths):
    """A right kernel that can be traced, by the plain implementation."""
    columns = jnp.arange(query.shape[1])
    starts = jnp.where(offsets[:, :-1] >= 0, offsets[:, :-1], query.shape[1])
    return attention.xla.attend(query, keys, values, (columns[None, :, None] >= starts[:, None]).sum(-1))


def test_the_self_test_passes_a_right_kernel_and_finds_a_wrong_one():
    tested = functools.partial(cudnn.self_test, jax.devices()[0], head_size=64, options=None)
    assert tested(dtype=jnp.float32, kernel=fixed) < 1e-5
    assert tested(dtype=jnp.bfloat16, kernel=fixed) < 0.02
    assert tested(dtype=jnp.float32, kernel=seen_at_once) > 0.1


def test_the_self_test_can_run_while_a_program_is_traced():
    errors = []
    tested = functools.partial(cudnn.self_test, jax.devices()[0], jnp.float32, 8, kernel=fixed, options=None)
    jax.jit(lambda x: errors.append(tested()) or x)(1.0)
    assert errors[0] < 1e-5


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (0.003, None),
        (0.5, r"differs from the reference by 50\.0%"),
        (float("nan"), "differs from the reference by nan%"),
        (RuntimeError("cuDNN not found\n…"), "failed: RuntimeError cuDNN not found …"),
        (NotImplementedError("requires at least Hopper"), "failed: NotImplementedError requires at least Hopper"),
        (AttributeError(""), "failed: AttributeError"),
    ],
)
def test_a_kernel_that_fails_its_test_here_is_not_used(monkeypatch, outcome, expected):
    def tested(*arguments):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(cudnn, "self_test", tested)
    monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
    cudnn._tried.cache_clear()
    why = cudnn.packed_refusal(jax.devices()[0], jnp.bfloat16, 128)
    cudnn._tried.cache_clear()
    assert why is None if expected is None else expected.replace("\\", "") in why


def test_the_log_and_doctor_say_why_a_mask_is_used(monkeypatch):
    config = tiny_programs.settings(model={"compute_dtype": "bfloat16"})
    architecture = hf_checkpoints.tiny_architecture(head_size=64)
    devices = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), mesh.AXES)
    assert not setup._notes(config, architecture, devices)
    monkeypatch.setattr(kernels, "platform_of", lambda mesh: "gpu")
    monkeypatch.setattr(cudnn, "packed_refusal", lambda *arguments: "a test of it failed: no such card")
    [note] = setup._notes(config, architecture, devices)
    # On this CPU no form of cuDNN runs, so plain XLA attends; where nothing has to repeat, only the packed form is tested.
    assert note.startswith(
        "the learner attends by xla.attend, not cuDNN's packed form: a test of it failed: no such card;"
    )
    assert "not cuDNN's mask [T, T]: a test of it failed" in note
    loose = tiny_programs.settings(model={"compute_dtype": "bfloat16", "deterministic": False})
    [note] = setup._notes(loose, architecture, devices)
    assert note == "the learner attends by cudnn.attend, not cuDNN's packed form: a test of it failed: no such card"
    finding = doctor._packed_attention(jax.devices()[0])
    assert finding.is_fine
    assert finding.result == "replaced by a mask: a test of it failed: no such card"


def test_cudnn_is_asked_whether_its_gradient_repeats_and_what_it_takes(monkeypatch):
    """On CPU, of attention in plain XLA, which repeats."""
    device, largest = jax.devices()[0], cudnn.Heads(2, 256, 4, 2, 8)
    refusal = functools.partial(cudnn.gradient_refusal.__wrapped__, attention.xla.attend, device, "float32", largest)
    monkeypatch.setattr(cudnn.compiler, "DETERMINISTIC", None)  # its options are for GPUs
    assert refusal() is None
    monkeypatch.setattr(cudnn, "repeats", lambda *arguments: False)
    assert refusal() == "its gradient does not repeat bit for bit"
    monkeypatch.setattr(cudnn, "MOST_WORKSPACE", 1e-9)
    monkeypatch.setattr(type(device), "memory_stats", lambda self: {"bytes_limit": 2**36}, raising=False)
    assert "GiB for 2 rows of 256 tokens, more than" in refusal()


def test_an_attention_whose_gradient_differs_from_call_to_call_does_not_repeat(monkeypatch):
    monkeypatch.setattr(cudnn.compiler, "DETERMINISTIC", None)
    calls = iter(range(100))

    @jax.custom_vjp
    def noise(query):
        return query

    def backward(_, cotangent):
        number = jax.pure_callback(lambda _: np.float32(next(calls)), jax.ShapeDtypeStruct((), jnp.float32), cotangent)
        return (cotangent * number,)

    noise.defvjp(lambda query: (query, None), backward)

    def noisy(query, *others):
        return attention.xla.attend(noise(query), *others)

    largest = cudnn.Heads(2, 512, 4, 2, 8)
    assert cudnn.repeats(attention.xla.attend, jax.devices()[0], "float32", largest)
    assert not cudnn.repeats(noisy, jax.devices()[0], "float32", largest)


def test_where_no_form_of_cudnn_repeats_auto_attends_in_plain_xla_and_cudnn_is_refused(monkeypatch):
    device = gpu(monkeypatch, (0, 12, 0))
    one = types.SimpleNamespace(devices=np.array([[device]]), shape=dict.fromkeys(mesh.AXES, 1))
    monkeypatch.setattr(cudnn, "gradient_refusal", lambda *arguments: "its gradient does not repeat bit for bit")
    chosen = functools.partial(
        kernels.for_learner,
        mesh=one,
        architecture=hf_checkpoints.tiny_architecture(head_size=128),
        compute_dtype="bfloat16",
    )
    assert chosen("auto").attend is cudnn.attend_packed
    assert chosen("auto", repeats_at=(2, 8192)).attend is attention.xla.attend
    with pytest.raises(ValueError, match=r"does not repeat.*Use model\.attention=auto"):
        chosen("cudnn", repeats_at=(2, 8192))


# --- lowered for a GPU -----------------------------------------------------------------------------------------------


@pytest.fixture
def pretended_hopper(monkeypatch):
    pretended_cudnn.patch(monkeypatch, version=91200, is_at_least_hopper=True)


@pytest.mark.usefixtures("pretended_hopper")
@pytest.mark.parametrize(("remat", "runs"), [("none", 1), ("dots", 1), ("attention", 1), ("full", 2)])
def test_a_row_of_8192_is_trained_on_without_a_square_and_the_kernel_runs_again_only_when_nothing_is_kept(remat, runs):
    architecture = hf_checkpoints.tiny_architecture(head_size=64)
    tokens = jnp.ones((1, 8192), jnp.int32)

    def loss(params):
        hidden = model.hidden_states(
            architecture,
            params,
            tokens,
            tokens,
            tokens,
            compute_dtype=jnp.bfloat16,
            remat=remat,
            kernels=model.Kernels(attend=cudnn.attend_packed),
        )
        return jnp.sum(jnp.square(hidden.astype(jnp.float32)))

    traced = jax.jit(jax.grad(loss)).trace(model.abstract_params(architecture))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__cudnn$fmhaSoftmax(") == runs
    assert text.count("@__cudnn$fmhaSoftmaxBackward(") == 1
    assert "fmhaScaleBias" not in text, "a mask would be a bias"
    assert text.count("PADDING_CAUSAL") == runs + 1
    assert "8192x8192x" not in text


@pytest.mark.usefixtures("pretended_hopper")
def test_prompts_are_attended_to_without_a_mask():
    heads = [jax.ShapeDtypeStruct((2, 512, count, 64), jnp.bfloat16) for count in (4, 2, 2)]
    traced = jax.jit(cudnn.attend_causal).trace(*heads, jax.ShapeDtypeStruct((2, 512), jnp.int32))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__cudnn$fmhaSoftmax(") == 1
    assert "512x512x" not in text


def test_the_places_of_segments_are_found_without_a_scatter():
    """A deterministic program would sort its numbers."""
    program = jax.jit(lambda ids: cudnn.runs(ids, 65), compiler_options=None)
    assert "scatter" not in program.lower(jnp.ones((2, 8192), jnp.int32)).as_text()
    assert compiler.DETERMINISTIC["xla_gpu_exclude_nondeterministic_ops"]
