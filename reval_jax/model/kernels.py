"""What differs between platforms, as one record, chosen once from the mesh's devices; nothing else reads the platform.

`for_learner` and `for_sampler` choose; forward pass, prefill and decoding take the record. What exists for XLA:CPU alone is in
`cpu` and enters a program only through this record, except two orders of operands that `cpu` names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from reval_jax import mesh as mesh_lib
from reval_jax import parallel, scores
from reval_jax.model import cache, compiler, cpu, gpu, layout, linear, lookup
from reval_jax.model.architecture import Architecture
from reval_jax.model.attention import cudnn, decode_triton, splash, xla

Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
"""(query, keys, values, segment ids) → attended; see `attention`."""
Cond = Callable[..., Any]
"""(condition, function if true, function if false, argument) → result, as `jax.lax.cond`."""
Setting = Literal["auto", "xla", "splash", "cudnn"]
Platform = Literal["cpu", "gpu", "tpu"]


def _plain_residuals(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


class Kernels(NamedTuple):
    """What differs between platforms, and between meshes. The defaults run anywhere, on whole arrays."""

    split: parallel.Split = parallel.Split()  # the logical axes of which each device holds a part
    linear: linear.Linear = linear.linear  # a product with a weight
    mlp_axes: str = "{tokens}f"  # einsum axes of the MLP's inner values
    attend: Attend = xla.attend  # attention over whole rows: forward pass and prefill
    attend_cached: cache.Attend = cache.batched  # attention of one new token per row over the cache
    residuals: Callable[[Callable[..., Any]], Callable[..., Any]] = _plain_residuals  # wraps a layer's function
    lookup: lookup.Lookup = lookup.PLAIN  # reads by index that have a gradient
    chunk_bytes: int = scores.CHUNK_BYTES  # float32 logits that the score head holds at once
    cond: Cond = jax.lax.cond  # of two functions the one that a condition chooses
    storage: cache.Storage = cache.PLAIN  # how cache and embedding are held in memory
    layout: layout.Layout = layout.STACKED  # how the sampler holds layers
    copy_rows: Callable[..., Any] = cache.copy_rows_in_turn  # of prompts' caches into slots
    prefill_tokens: int = 128  # of prompts prefilled together: several short ones, or one longer
    branches_on_host: bool = False  # whether the host picks between programs where one program could branch


GPU_CHUNK_BYTES = 2 * 2**30
"""3,533 tokens against 151,936 columns. Each chunk reads the head and adds to its gradient, a gigabyte at this width: that is a
tenth of its products' time, and half in chunks of `scores.CHUNK_BYTES`."""


def select(condition: jax.Array, if_true: Callable[..., Any], if_false: Callable[..., Any], argument: Any) -> Any:
    """`jax.lax.cond` that computes both and keeps one bit for bit: on GPU the host would wait to learn the condition."""
    return jax.tree.map(lambda one, other: jnp.where(condition, one, other), if_true(argument), if_false(argument))


PLAIN = Kernels()
"""Plain XLA, on whole arrays and stacked layers."""


def platform_of(mesh: Mesh) -> Platform:
    """The platform of the mesh's devices: not the process's default, since programs may be compiled for devices elsewhere."""
    platform: Platform = mesh.devices.flat[0].platform
    return platform


def for_learner(
    setting: Setting,
    mesh: Mesh,
    architecture: Architecture,
    compute_dtype: DTypeLike,
    *,
    repeats_at: tuple[int, int] | None = None,
) -> Kernels:
    """The kernels of score and update, inside a `jax.shard_map` over the learner's mesh.

    Args:
      repeats_at: as of `learner_attention`.

    Raises:
      ValueError: as `learner_attention`.
    """
    platform = platform_of(mesh)
    split = split_of(mesh, architecture)
    attend, _ = learner_attention(setting, mesh, architecture, compute_dtype, repeats_at)
    common = Kernels(split=split, linear=linear.gathered_linear if split.width else linear.linear, attend=attend)
    if platform == "cpu":
        return common._replace(residuals=cpu.uint16_residuals)
    if platform == "gpu":
        return common._replace(
            linear=linear.rounded_gathered_linear if split.width else linear.rounded_linear,
            lookup=lookup.REPEATABLE,
            chunk_bytes=chunk_bytes(mesh),
            cond=select,
        )
    return common


def chunk_bytes(mesh: Mesh) -> int:
    """Bytes of float32 logits that the learner's score head holds at once: `Kernels.chunk_bytes`."""
    return GPU_CHUNK_BYTES if platform_of(mesh) == "gpu" else scores.CHUNK_BYTES


def learner_attention(
    setting: Setting,
    mesh: Mesh,
    architecture: Architecture,
    compute_dtype: DTypeLike,
    repeats_at: tuple[int, int] | None,
) -> tuple[Attend, str | None]:
    """The attention of score and update, and why it is not cuDNN's packed form: None where it is, or where cuDNN is not meant.

    With cuDNN that is its packed form, else its mask, else, under "auto", plain XLA: the first that is right on this GPU, and
    whose gradient repeats if it has to. Each process tests one of its GPUs; they are alike.

    Args:
      repeats_at: rows and columns of a device's largest micro-batch, if gradients must repeat bit for bit; else None.

    Raises:
      ValueError: as `choose_attention`; or cuDNN was named, and neither form of it will do.
    """
    attend = choose_attention(setting, platform_of(mesh), compute_dtype, architecture.head_size)
    if attend is not cudnn.attend:
        return attend, None
    local = jax.local_devices()
    device = next((each for each in mesh.devices.flat if each in local), mesh.devices.flat[0])
    reasons: list[str] = []
    for form, name in ((cudnn.attend_packed, "packed form"), (cudnn.attend, "mask [T, T]")):
        is_packed = form is cudnn.attend_packed
        why = cudnn.packed_refusal(device, compute_dtype, architecture.head_size) if is_packed else None
        if why is None and repeats_at is not None:
            largest = _largest_heads(mesh, architecture, repeats_at)
            why = cudnn.gradient_refusal(form, device, jnp.dtype(compute_dtype).name, largest)
        if why is None:
            return form, "; ".join(reasons) or None
        reasons.append(f"not cuDNN's {name}: {why}")
    if setting == "cudnn":
        raise ValueError(
            f"model.attention=cudnn cannot run with model.deterministic=true here: {'; '.join(reasons)}. Use "
            "model.attention=auto, which then attends in plain XLA, or model.deterministic=false."
        )
    return xla.attend, "; ".join(reasons)


def _largest_heads(mesh: Mesh, architecture: Architecture, rows_and_columns: tuple[int, int]) -> cudnn.Heads:
    """One device's part of the heads."""
    tensor, split = mesh.shape[parallel.TENSOR], split_of(mesh, architecture)
    heads = architecture.num_heads // (tensor if split.heads else 1)
    kv_heads = architecture.num_kv_heads // tensor if split.kv_heads else min(heads, architecture.num_kv_heads)
    return cudnn.Heads(*rows_and_columns, heads, kv_heads, architecture.head_size)


def compiler_options(
    mesh: Mesh, compute_dtype: DTypeLike, *, deterministic: bool, has_gradient: bool
) -> compiler.Options | None:
    """The options with which `jax.jit` compiles a program for this mesh; None but on GPUs.

    Args:
      deterministic: results repeat bit for bit, in this process and in the next; else kernels are chosen by timing them.
      has_gradient: the program computes gradients.
    """
    if platform_of(mesh) != "gpu":
        return None
    if deterministic:
        return compiler.DETERMINISTIC if has_gradient else compiler.UNTIMED
    return compiler.CUBLAS if jnp.dtype(compute_dtype) == jnp.float32 else None


def admission_options(mesh: Mesh) -> compiler.Options | None:
    """The same for the sampler's admission, which copies other arrays at each call and computes nothing."""
    return compiler.UNCAPTURED if platform_of(mesh) == "gpu" else None


def for_sampler(
    setting: Setting, mesh: Mesh, architecture: Architecture, compute_dtype: DTypeLike, *, cache_length: int
) -> Kernels:
    """The kernels of prefill and decoding, on whole arrays; attention sees one device's rows and heads.

    Args:
      cache_length: positions of the cache.

    Raises:
      ValueError: as `choose_attention`.
    """
    platform = platform_of(mesh)
    attend = choose_attention(setting, platform, compute_dtype, architecture.head_size)
    if platform == "gpu":
        attend = cudnn.attend_causal if attend is cudnn.attend else attend  # A prompt is one segment.
        return gpu_sampler(attend, fuses_heads=architecture.num_kv_heads % mesh.shape["tensor"] == 0)
    if platform != "cpu":
        return Kernels(attend=attend)
    return Kernels(
        linear=cpu.decode_linear,
        mlp_axes=cpu.MLP_AXES,
        attend=attend,
        # A cache of one block is copied once, by either.
        attend_cached=cpu.per_row if cache_length > cache.BLOCK else cache.batched,
        storage=cpu.UINT16,
        layout=cpu.UNROLLED,
    )


def gpu_sampler(attend: Attend, *, fuses_heads: bool) -> Kernels:
    """The sampler's kernels on GPUs: few and large ones, and nothing inside a token's step that waits for the host.

    Args:
      attend: over whole rows, when prompts are prefilled.
      fuses_heads: as of `gpu.fused`.
    """
    return Kernels(
        linear=linear.rounded_linear,
        attend=attend,
        attend_cached=decode_triton.attend if decode_triton.is_available() else cache.whole,
        storage=cache.ROWS,
        layout=gpu.fused(fuses_heads=fuses_heads),
        copy_rows=cache.copy_rows_at_once,
        prefill_tokens=1024,  # fewer would be done before the weights are read
        branches_on_host=True,
    )


def split_of(mesh: Mesh, architecture: Architecture) -> parallel.Split:
    """The logical axes that the learner's mesh splits: as `mesh.shardings` with `mesh.LEARNER_AXES` places the weights."""
    sizes = {
        "vocab": architecture.vocab_size,
        "heads": architecture.num_heads,
        "kv_heads": architecture.num_kv_heads,
        "mlp": architecture.mlp_width,
        "width": architecture.width,
    }

    def is_split(name: str) -> bool:
        devices = mesh.shape[mesh_lib.LEARNER_AXES[name]]
        return devices > 1 and sizes[name] % devices == 0

    return parallel.Split(**{name: is_split(name) for name in sizes})


def choose_attention(setting: Setting, platform: Platform, compute_dtype: DTypeLike, head_size: int) -> Attend:
    """The attention over whole rows that `model.attention` names, able to run on the platform.

    "auto" is "splash" on TPU, "cudnn" on GPU where cuDNN can (its dtypes and head sizes), else "xla". The kernels see one
    device's rows and heads: call them inside a `jax.shard_map` over the mesh.

    Raises:
      ValueError: the setting is unknown, or the platform or cuDNN cannot run it.
    """
    if setting == "auto":
        setting = _automatic(platform, compute_dtype, head_size)
    if setting == "xla":
        return xla.attend
    if setting not in ("splash", "cudnn"):
        raise ValueError(
            f"model.attention={setting!r} is not a known implementation. Use 'auto', 'xla', 'splash' or 'cudnn'."
        )
    needed = {"splash": "tpu", "cudnn": "gpu"}[setting]
    if platform != needed:
        raise ValueError(
            f"model.attention={setting!r} cannot run: the mesh's devices are {platform!r}, and {setting} is a kernel for"
            f" {needed!r} alone. Use 'auto' or 'xla'."
        )
    if setting == "splash":
        return splash.attend
    cudnn.check(compute_dtype, head_size)
    return cudnn.attend


def _automatic(platform: Platform, compute_dtype: DTypeLike, head_size: int) -> Setting:
    if platform == "tpu":
        return "splash"
    if platform == "gpu" and cudnn.refusal(compute_dtype, head_size) is None:
        return "cudnn"
    return "xla"
