"""Attention by cuDNN's flash kernel, for NVIDIA GPUs.

The forward pass holds no scores in memory; the backward pass may, where its results have to repeat (`gradient_refusal`).
Segments reach it in one of two ways: as their places in the row (`attend_packed`, which also skips what they exclude), or as a
mask [T,T] (`attend`), where the first is not available or wrong: `packed_refusal` says where.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.typing import DTypeLike

from reval_jax import ragged
from reval_jax.model import compiler
from reval_jax.model.attention import xla

PackedKernel = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
"""(query, keys, values, offsets, lengths) → attended; offsets i32[B,M+1] and lengths i32[B,M] as `runs` gives them."""

RIGHT_SINCE = (0, 11, 2)
"""jax before it computes wrong grouped queries in the packed form, and does not say so (jax pull request 39521)."""


def attend_packed(query: jax.Array, keys: jax.Array, values: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Grouped-query attention, causal and inside segments: query [B,T,N,H], keys and values [B,T,K,H] -> [B,T,N,H].

    Scores and softmax are float32; operands bfloat16 or float16. A segment is a run of equal ids, padding too. A row may have as
    many as a row of a batch has trajectories (`ragged.row_slots`), and one more: `batch` puts padding at a row's end. With
    more, the results are wrong. The backward pass keeps float32[B (slots + 1), N, T]: at 8,192 columns 2 MiB a row and head.

    Raises:
      ValueError: the type or the head size is one that cuDNN does not take.
    """
    check(query.dtype, query.shape[3])
    return _attend_packed(query, keys, values, segment_ids, _packed_kernel)


def _attend_packed(
    query: jax.Array, keys: jax.Array, values: jax.Array, segment_ids: jax.Array, kernel: PackedKernel
) -> jax.Array:
    return kernel(query, keys, values, *runs(segment_ids, ragged.row_slots(segment_ids.shape[1]) + 1))


def runs(segment_ids: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """The runs of equal ids in each row [B,T]: their first columns i32[B,most+1] and lengths i32[B,most], -1 past the last run.

    A row has `most` runs at most.
    """
    length = segment_ids.shape[1]
    begins = jnp.concatenate(
        [jnp.ones_like(segment_ids[:, :1], bool), segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1
    )
    run = jnp.cumsum(begins, axis=1, dtype=jnp.int32)  # 1, 2, … over the row
    # Counted, because a scatter of ids is a sort in a deterministic program.
    is_before = run[:, None, :] <= jnp.arange(most + 1, dtype=jnp.int32)[None, :, None]
    edges = jnp.sum(is_before, axis=2, dtype=jnp.int32)  # run k begins at edges[k]; T past the last run
    lengths = edges[:, 1:] - edges[:, :-1]
    return jnp.where(edges < length, edges, -1), jnp.where(lengths > 0, lengths, -1)


def _packed_kernel(
    query: jax.Array, keys: jax.Array, values: jax.Array, offsets: jax.Array, lengths: jax.Array
) -> jax.Array:
    # jax has no public function that takes offsets.
    from jax._src.cudnn import fused_attention_stablehlo as fused

    attended: jax.Array = fused.dot_product_attention(
        query,
        keys,
        values,
        q_seqlen=lengths,
        kv_seqlen=lengths,
        q_offsets=offsets,
        kv_offsets=offsets,
        scale=query.shape[3] ** -0.5,
        mask_type=fused.MaskType.PADDING_CAUSAL,
        qkv_layout="BTNH",
    )
    return attended


def packed_refusal(device: jax.Device, dtype: DTypeLike, head_size: int) -> str | None:
    """Why `attend_packed` cannot be used on this GPU, or None.

    On a device of this process the kernel's results and gradients are compared with `xla.attend`'s, once for each type and head
    size. For a device elsewhere, which programs are only compiled for, jax's version decides.
    """
    if jax.__version_info__ < RIGHT_SINCE:
        needed = ".".join(map(str, RIGHT_SINCE))
        return f"jax {jax.__version__} computes wrong grouped queries there, and {needed} does not"
    if device not in jax.local_devices():
        return None
    return _tried(device, jnp.dtype(dtype).name, head_size)


@functools.cache
def _tried(device: jax.Device, dtype: str, head_size: int) -> str | None:
    try:
        error = self_test(device, dtype, head_size)
    except FAILURES as failure:
        return _failed(failure)
    return None if error < 0.02 else f"a test of it differs from the reference by {error:.1%}"


FAILURES = (RuntimeError, NotImplementedError, ValueError, ImportError, AttributeError, TypeError)
"""What a kernel raises that this card or this cuDNN does not have, or a private function that another jax has changed."""
MOST_WORKSPACE = 1 / 8
"""Share of a device's memory that attention's gradient may take beside its arguments and results."""


def _failed(failure: Exception) -> str:
    return f"a test of it failed: {type(failure).__name__} {' '.join(str(failure).split())[:200]}"


class Heads(NamedTuple):
    """The largest operands of a device's attention: [rows, columns, heads, size], and [rows, columns, kv_heads, size]."""

    rows: int
    columns: int
    heads: int
    kv_heads: int
    size: int


@functools.cache
def gradient_refusal(attend: Callable[..., jax.Array], device: jax.Device, dtype: str, largest: Heads) -> str | None:
    """Why the gradients of `attend_packed` or `attend` cannot be computed on this GPU so that they repeat, or None.

    cuDNN's backward pass adds in a fixed order on request. Where it does so by holding the gradients of all scores, it needs
    rows · columns² numbers a head, in the packed form once for every segment that a row may have (NVIDIA/cudnn-frontend pull
    request 398), and some cards refuse it. So the program is compiled at the largest size, and run at a small one. For a device
    elsewhere, which programs are only compiled for, the answer is None.
    """
    if device not in jax.local_devices():
        return None
    try:
        workspace, is_repeated = _workspace(attend, device, dtype, largest), repeats(attend, device, dtype, largest)
    except FAILURES as failure:
        return _failed(failure)
    limit = MOST_WORKSPACE * (device.memory_stats() or {}).get("bytes_limit", np.inf)
    if workspace > limit:
        return (
            f"its repeatable gradient takes {workspace / 2**30:.1f} GiB for {largest.rows} rows of {largest.columns} tokens, "
            f"more than {MOST_WORKSPACE:.1%} of the device's memory"
        )
    return None if is_repeated else "its gradient does not repeat bit for bit"


def _gradients(attend: Callable[..., jax.Array]) -> jax.stages.Wrapped:
    def gradients(query: jax.Array, keys: jax.Array, values: jax.Array, segment_ids: jax.Array) -> Any:
        attended, pullback = jax.vjp(lambda *operands: attend(*operands, segment_ids), query, keys, values)
        return pullback(attended)

    return jax.jit(gradients, compiler_options=compiler.DETERMINISTIC)


def _workspace(attend: Callable[..., jax.Array], device: jax.Device, dtype: str, largest: Heads) -> int:
    """Bytes of temporaries of the gradient at the largest size."""
    placed = jax.sharding.SingleDeviceSharding(device)
    rows, columns, heads, kv_heads, size = largest
    shapes = [(rows, columns, each, size) for each in (heads, kv_heads, kv_heads)]
    arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=placed) for shape in shapes]
    segments = jax.ShapeDtypeStruct((rows, columns), jnp.int32, sharding=placed)
    memory: Any = _gradients(attend).lower(*arrays, segments).compile().memory_analysis()
    return int(memory.temp_size_in_bytes)


def repeats(attend: Callable[..., jax.Array], device: jax.Device, dtype: str, largest: Heads) -> bool:
    """Whether four gradients on two rows of 512 columns are the same in every bit; rows and columns of `largest` are not read."""
    generator = np.random.default_rng(0)
    shapes = [(2, 512, heads, largest.size) for heads in (largest.heads, largest.kv_heads, largest.kv_heads)]
    segments = np.repeat([1, 2, 3, 0], [200, 12, 240, 60]).astype(np.int32)
    with jax.ensure_compile_time_eval(), jax.default_device(device):
        operands = [jnp.asarray(generator.normal(size=shape), dtype) for shape in shapes]
        gradients = _gradients(attend)
        found = [
            [np.asarray(each).tobytes() for each in gradients(*operands, jnp.asarray(np.stack([segments] * 2)))]
            for _ in range(4)
        ]
    return all(each == found[0] for each in found)


def self_test(
    device: jax.Device,
    dtype: DTypeLike,
    head_size: int,
    *,
    kernel: PackedKernel = _packed_kernel,
    options: compiler.Options | None = compiler.DETERMINISTIC,
) -> float:
    """The largest relative error of `attend_packed` and its three gradients against `xla.attend` in float32.

    Two rows of odd length with three query heads a key head, segments of unequal lengths, and padding; compiled as the update is.
    """
    generator = np.random.default_rng(0)
    shapes = [(2, 193, heads, head_size) for heads in (6, 2, 2, 6)]
    segments = np.array([np.repeat([1, 2, 3, 0], sizes) for sizes in ([100, 1, 59, 33], [7, 120, 66, 0])], np.int32)
    with jax.ensure_compile_time_eval(), jax.default_device(device):
        arrays = [jnp.asarray(generator.normal(size=shape), dtype) for shape in shapes]

        def run(attend: Callable[..., jax.Array], *arrays: jax.Array) -> tuple[jax.Array, ...]:
            attended, pullback = jax.vjp(lambda *operands: attend(*operands, jnp.asarray(segments)), *arrays[:3])
            return attended, *pullback(arrays[3])

        packed = functools.partial(_attend_packed, kernel=kernel)
        found = jax.jit(functools.partial(run, packed), compiler_options=options)(*arrays)
        wide = [array.astype(jnp.float32) for array in arrays]
        expected = jax.jit(functools.partial(run, xla.attend), compiler_options=options)(*wide)
        results, exact = ([np.asarray(array, np.float64) for array in arrays] for arrays in (found, expected))
    errors = [np.linalg.norm(one - other) / np.linalg.norm(other) for one, other in zip(results, exact, strict=True)]
    return float(np.max(errors))


def attend_causal(query: jax.Array, keys: jax.Array, values: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """`attend` where each row is one segment, whose ids are not read: no mask exists. For prompts.

    Raises:
      ValueError: the type or the head size is one that cuDNN does not take.
    """
    check(query.dtype, query.shape[3])
    return jax.nn.dot_product_attention(query, keys, values, is_causal=True, implementation="cudnn")


def attend(query: jax.Array, keys: jax.Array, values: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Grouped-query attention, causal and inside segments: query [B,T,N,H], keys and values [B,T,K,H] -> [B,T,N,H].

    Scores and softmax are float32; operands bfloat16 or float16. cuDNN skips blocks past the causal diagonal. It
    gets the segments as a mask, which jax turns into a bias [B,1,T,T] of the operands' type: at 8,192 columns 128 MiB per
    row, and as much again for the gradient of that bias.

    Raises:
      ValueError: the type or the head size is one that cuDNN does not take.
    """
    check(query.dtype, query.shape[3])
    return _attend(query, keys, values, segment_ids, "cudnn")


def _attend(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    segment_ids: jax.Array,
    implementation: Literal["cudnn", "xla"],
) -> jax.Array:
    length = query.shape[1]
    # With a mask the backward kernel takes an even number of columns. No other column sees the added one.
    padding = ((0, 0), (0, length % 2))
    query, keys, values = (jnp.pad(heads, (*padding, (0, 0), (0, 0))) for heads in (query, keys, values))
    segment_ids = jnp.pad(segment_ids, padding)
    is_same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    attended = jax.nn.dot_product_attention(
        query, keys, values, mask=is_same, is_causal=True, implementation=implementation
    )
    return attended[:, :length]


def refusal(dtype: DTypeLike, head_size: int) -> str | None:
    """Why cuDNN cannot attend to such heads; None if it can."""
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return (
            f"computes in bfloat16 or float16 only, but model.compute_dtype is {jnp.dtype(dtype).name}. Use"
            " model.compute_dtype=bfloat16, or model.attention=xla"
        )
    if head_size % 8 or head_size > 128:
        return (
            f"takes head sizes that are multiples of 8 up to 128, but this model's is {head_size}. Use"
            " model.attention=xla"
        )
    return None


def check(dtype: DTypeLike, head_size: int) -> None:
    """Raise a ValueError if cuDNN cannot attend to such heads."""
    if why := refusal(dtype, head_size):
        raise ValueError(f"model.attention=cudnn cannot run: cuDNN's attention {why}.")


def is_forward(primitive: Primitive) -> bool:
    """Whether a primitive is the forward kernel. A remat policy has to keep it so, because jax gives its outputs no name."""
    return primitive.name == "dot_product_attention_fwd_wrapper"
