"""Whether the GPU computes what it should: against float64 and the CPU, the same bits whatever runs beside, and again."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu import speed
from benchmarks.gpu.parts import Emit
from reval_jax import config as config_lib
from reval_jax import distributed, keys, mesh, model, sampler, scores, types, update
from reval_jax.model.attention import xla
from reval_jax.tools.bench import time_update

BOUND = {"float32": 1e-4, "bfloat16": 1e-2}
"""Largest relative error of a result, in the norm of the whole array."""


def relative_error(actual: Any, expected: Any) -> float:
    """Norm of the difference over norm of `expected`, in float64."""
    actual, expected = np.asarray(actual).astype(np.float64), np.asarray(expected).astype(np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def _options(dtype: str, *, has_gradient: bool) -> model.compiler.Options | None:
    """The learner's: without them XLA times Triton's float32 products for minutes."""
    learner = mesh.make(config_lib.Mesh())
    return model.kernels.compiler_options(learner, dtype, deterministic=True, has_gradient=has_gradient)


def _checked(what: str, dtype: str, errors: dict[str, float], **more: Any) -> dict[str, Any]:
    is_fine = all(error <= BOUND[dtype] for error in errors.values())
    return {"what": what, "dtype": dtype, **more, "errors": errors, "bound": BOUND[dtype], "is_fine": is_fine}


# --- numerics --------------------------------------------------------------------------------------------------------


def numerics(is_small: bool, emit: Emit) -> None:
    """Attention and score head against NumPy in float64, the forward pass against the CPU, the sampler against the learner."""
    distributed.start()
    of = _small_model(is_small)
    params = _params(of)
    packed = [(1, 64, 4, 2, 16), (1, 45, 3, 3, 8)] if is_small else [(2, 1024, 12, 2, 128), (2, 999, 9, 3, 64)]
    # float32 last, and of one small shape: its products take long to compile on a GPU.
    for dtype, shapes in (("bfloat16", packed), ("float32", [(1, 300, 4, 2, 64)])):
        for shape in shapes:
            for case in attention_errors(*shape, dtype=dtype):
                emit(case)
        emit(score_errors(dtype, *((40, 16, 133) if is_small else (600, 256, 50021))))
        emit(sampler_error(of, params, dtype, is_small=is_small))
    emit(forward_errors(of, params))


class _Attention(NamedTuple):
    """The operands of one attention and what its gradients start from."""

    query: np.ndarray  # [B, T, N, H]
    keys: np.ndarray  # [B, T, K, H]
    values: np.ndarray  # [B, T, K, H]
    gradient: np.ndarray  # [B, T, N, H] of the result; 0 at padding
    segments: np.ndarray  # i32[B, T]; 0 is padding


def attention_errors(
    rows: int, tokens: int, heads: int, kv_heads: int, size: int, *, dtype: str
) -> list[dict[str, Any]]:
    """Relative errors of result and gradients on packed rows: of the kernel that the learner chooses, and of plain XLA."""
    rng = np.random.default_rng(0)

    def normal(num_heads: int) -> np.ndarray:
        return np.asarray(jnp.asarray(rng.standard_normal((rows, tokens, num_heads, size)), dtype))

    cuts = np.sort(rng.integers(1, tokens, (rows, 3)), 1)
    segments = np.stack([np.searchsorted(cut, np.arange(tokens), side="right") + 1 for cut in cuts]).astype(np.int32)
    segments[:, -7:] = 0
    gradient = normal(heads) * (segments > 0)[:, :, None, None]
    operands = _Attention(normal(heads), normal(kv_heads), normal(kv_heads), gradient.astype(dtype), segments)
    expected = attention_float64(operands)
    learner = mesh.make(config_lib.Mesh())
    of = dataclasses.replace(_small_model(True), num_heads=heads, num_kv_heads=kv_heads, head_size=size)
    chosen = model.kernels.for_learner("auto", learner, of, dtype).attend
    options = _options(dtype, has_gradient=True)
    _, mask_reason = model.kernels.learner_attention("auto", learner, of, dtype, None)
    cases = []
    for attend in dict.fromkeys((chosen, xla.attend)):

        def results(query: Any, keys: Any, values: Any, gradient: Any, attend: Any = attend) -> Any:
            attended, pull = jax.vjp(lambda *heads: attend(*heads, segments), query, keys, values)
            return attended, *pull(gradient)

        attended, *gradients = jax.jit(results, compiler_options=options)(*operands[:4])
        valid = (segments > 0)[:, :, None, None]
        errors = {
            name: relative_error(np.asarray(actual).astype(np.float64) * valid, wanted)
            for name, actual, wanted in zip(
                ("result", "d_query", "d_keys", "d_values"), (attended, *gradients), expected, strict=True
            )
        }
        name = f"attention {attend.__module__.rpartition('.')[2]}.{attend.__name__}"
        shape = [rows, tokens, heads, kv_heads, size]
        cases.append(_checked(name, dtype, errors, shape=shape, mask_reason=mask_reason))
    return cases


def attention_float64(operands: _Attention) -> tuple[np.ndarray, ...]:
    """Result, and gradients of query, keys and values, in float64 and one head at a time; 0 at padding."""
    query, keys, values, gradient = (array.astype(np.float64) for array in operands[:4])
    group = query.shape[2] // keys.shape[2]
    results = [np.zeros_like(query), np.zeros_like(query), np.zeros_like(keys), np.zeros_like(values)]
    scale = query.shape[3] ** -0.5
    for row, segment in enumerate(operands.segments):
        mask = np.tri(len(segment), dtype=bool) & (segment[:, None] == segment[None]) & (segment > 0)[:, None]
        for head in range(query.shape[2]):
            at, kv_at = (row, slice(None), head), (row, slice(None), head // group)
            logits = np.where(mask, query[at] @ keys[kv_at].T * scale, -np.inf)
            top = np.where(mask.any(1), logits.max(1), 0.0)
            weights = np.exp(logits - top[:, None])
            weights /= np.maximum(weights.sum(1, keepdims=True), 1e-300)
            d_weights = gradient[at] @ values[kv_at].T
            d_logits = weights * (d_weights - (d_weights * weights).sum(1, keepdims=True)) * scale
            results[0][at] = weights @ values[kv_at]
            results[1][at] = d_logits @ keys[kv_at]
            results[2][kv_at] += d_logits.T @ query[at]
            results[3][kv_at] += weights.T @ gradient[at]
    return tuple(results)


def score_errors(dtype: str, num_tokens: int, width: int, vocabulary: int) -> dict[str, Any]:
    """Errors of the score head's two results and of both gradients, against float64."""
    rng = np.random.default_rng(1)
    hidden = np.asarray(jnp.asarray(rng.standard_normal((num_tokens, width)), dtype))
    head = np.asarray(jnp.asarray(rng.standard_normal((width, vocabulary)) * 0.1, dtype))
    targets = rng.integers(0, vocabulary, num_tokens)

    def loss(hidden: Any, head: Any) -> Any:
        log_prob, logsumexp = scores.token_scores(
            hidden, head, jnp.asarray(targets), chunk_tokens=max(16, num_tokens // 4)
        )
        return 0.5 * log_prob.sum() + 0.25 * logsumexp.sum(), (log_prob, logsumexp)

    program = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, results), gradients = jax.jit(program, compiler_options=_options(dtype, has_gradient=True))(hidden, head)
    hidden, head = hidden.astype(np.float64), head.astype(np.float64)
    logits = hidden @ head
    top = logits.max(1, keepdims=True)
    logsumexp = np.log(np.exp(logits - top).sum(1)) + top[:, 0]
    d_logits = -0.25 * np.exp(logits - logsumexp[:, None])
    d_logits[np.arange(num_tokens), targets] += 0.5
    expected = logits[np.arange(num_tokens), targets] - logsumexp, logsumexp, d_logits @ head.T, hidden.T @ d_logits
    names = ("log_prob", "logsumexp", "d_hidden", "d_head")
    errors = {
        name: relative_error(actual, wanted)
        for name, actual, wanted in zip(names, (*results, *gradients), expected, strict=True)
    }
    return _checked("score head", dtype, errors, shape=[num_tokens, width, vocabulary])


def forward_errors(of: model.Architecture, params: model.Params) -> dict[str, Any]:
    """The logits of a forward pass in float32, against those of the CPU."""
    tokens = np.random.default_rng(2).integers(0, of.vocab_size, (2, 100)).astype(np.int32)
    positions = np.broadcast_to(np.arange(100, dtype=np.int32), tokens.shape)

    def logits(params: model.Params, tokens: Any, positions: Any, segments: Any) -> Any:
        hidden = model.hidden_states(of, params, tokens, positions, segments, compute_dtype="float32")
        return scores.head_product(hidden.reshape(-1, of.width), model.head(of, params, compute_dtype="float32"))

    options = _options("float32", has_gradient=False)
    operands = params, tokens, positions, np.ones_like(tokens)
    on_cpu = jax.device_put(operands, jax.devices("cpu")[0])
    return _checked(
        "forward pass against the CPU",
        "float32",
        {"logits": relative_error(jax.jit(logits, compiler_options=options)(*operands), jax.jit(logits)(*on_cpu))},
    )


def sampler_error(of: model.Architecture, params: model.Params, dtype: str, *, is_small: bool) -> dict[str, Any]:
    """The largest difference of a token's log-probability, nats, between the sampler and a forward pass over the response."""
    prompts, num_tokens = _prompts(of), 8 if is_small else 64
    engine = _engine(of, dtype, num_tokens=num_tokens)
    responses = _sampled(engine, params, prompts)

    def log_probs(tokens: Any) -> Any:
        ones = jnp.ones((1, tokens.shape[0]), jnp.int32)
        positions = jnp.arange(tokens.shape[0], dtype=jnp.int32)[None]
        hidden = model.hidden_states(of, params, tokens[None], positions, ones, compute_dtype=dtype)[0]
        return jax.nn.log_softmax(scores.head_product(hidden, model.head(of, params, compute_dtype=dtype)))

    differences, program = [], jax.jit(log_probs, compiler_options=_options(dtype, has_gradient=False))
    for response in responses[::3]:
        whole = np.concatenate([prompts.tokens[response.prompt], response.tokens])
        padded = np.zeros(16 + num_tokens, np.int32)
        padded[: len(whole)] = whole
        first = len(whole) - len(response.tokens)
        table = np.asarray(program(padded))
        own = table[np.arange(first - 1, len(whole) - 1), response.tokens]
        differences.append(float(np.abs(own - response.log_prob).max()))
    case = {"what": "sampler against the learner", "dtype": dtype, "largest_nats": max(differences)}
    return case | ({"bound": 1e-3, "is_fine": max(differences) <= 1e-3} if dtype == "float32" else {})


# --- invariance ------------------------------------------------------------------------------------------------------


def _small_model(is_small: bool) -> model.Architecture:
    """The 1.5B model's layers, but four of them and a small vocabulary; or the tiny model."""
    of = speed.architecture(is_small)
    return of if is_small else dataclasses.replace(of, num_layers=4, vocab_size=8192)


def _params(of: model.Architecture) -> model.Params:
    """Random parameters, larger than initial ones, so that attention and logits are far from uniform."""
    params = jax.jit(model.init_params, static_argnums=0)(of, jax.random.key(0, impl="threefry2x32"))
    return jax.tree.map(lambda leaf: leaf * 4 if leaf.ndim > 2 else leaf, params)


def _prompts(of: model.Architecture) -> types.Prompts:
    """Four prompts that are padded to the same width, so that few programs are compiled."""
    rng, order = np.random.default_rng(3), np.arange(4, dtype=np.int64)
    tokens = tuple(rng.integers(0, of.vocab_size, num).astype(np.int32) for num in (15, 5, 16, 9))
    return types.Prompts(order, order, ("",) * 4, tokens, ("",) * 4)


def _engine(
    of: model.Architecture, dtype: str, *, num_tokens: int, slots: int = 16, window: int = 8, cache: Any = "compute"
) -> sampler.Engine:
    return sampler.make(
        of,
        mesh.make_meshes(config_lib.Mesh()).sampler,
        compute_dtype=dtype,
        max_prompt_tokens=16,
        max_response_tokens=num_tokens,
        decode_slots=slots * jax.local_device_count(),
        decode_window=window,
        cache=cache,
    )


def _sampled(
    engine: sampler.Engine, params: model.Params, prompts: types.Prompts, max_tokens: np.ndarray | None = None
) -> list[types.Response]:
    params = jax.device_put(params, mesh.replicated(mesh.make(config_lib.Mesh())))
    return sampler.generate(
        engine,
        sampler.sync_weights(params, engine),
        prompts,
        keys.named_key(0, "benchmark"),
        samples_per_prompt=6,
        sampling=sampler.Sampling(),
        max_tokens=max_tokens,
    )


def invariance(is_small: bool, emit: Emit) -> None:
    """Whether the responses to one prompt have the same bits with another window, other lengths beside them, and alone."""
    distributed.start()
    of, num_tokens = _small_model(is_small), 8 if is_small else 150
    params = _params(of)
    prompts = _prompts(of)
    first = prompts._replace(**{name: field[:1] for name, field in prompts._asdict().items()})
    shorter = np.full((4, 6), num_tokens, np.int32)
    shorter[1:] = np.random.default_rng(4).integers(1, num_tokens + 1, (3, 6))
    for dtype, cache in (("bfloat16", "compute"), ("bfloat16", "int8"), ("float32", "compute")):
        engine = _engine(of, dtype, num_tokens=num_tokens, cache=cache)
        expected = _sampled(engine, params, prompts)[:6]
        other_window = _engine(of, dtype, num_tokens=num_tokens, cache=cache, window=5)
        changed = {
            "another window": functools.partial(_sampled, other_window, params, prompts),
            "other lengths beside them": functools.partial(_sampled, engine, params, prompts, shorter),
            "no others": functools.partial(_sampled, engine, params, first),
        }
        if (dtype, cache) == ("bfloat16", "compute"):
            more_slots = _engine(of, dtype, num_tokens=num_tokens, slots=32)
            changed["more slots"] = functools.partial(_sampled, more_slots, params, prompts)
        for what, call in changed.items():
            is_equal = all(
                np.array_equal(one.tokens, other.tokens) and one.log_prob.tobytes() == other.log_prob.tobytes()
                for one, other in zip(expected, call()[:6], strict=True)
            )
            case = {"what": what, "dtype": dtype, "kv_cache": cache, "is_equal": is_equal}
            # Another number of slots is another shape of every product: equal to rounding is what is promised.
            emit(case if what == "more slots" else case | {"is_fine": is_equal})


# --- repeatability ---------------------------------------------------------------------------------------------------


def repeat(is_small: bool, emit: Emit) -> None:
    """Three updates from the same start, twice: whether every bit is the same, and the seconds of an update."""
    distributed.start()
    of = _small_model(is_small)
    workload = time_update.Workload(2, 64, 8) if is_small else time_update.Workload(8, 2048, 256)
    for dtype, is_deterministic in (("bfloat16", True), ("float32", True), ("bfloat16", False)):
        settings = time_update.make_config(workload, dtype=dtype, remat="dots", micro_batch_tokens=4 * workload.tokens)
        chosen = dataclasses.replace(settings.model, deterministic=is_deterministic)
        settings = dataclasses.replace(settings, model=chosen)
        states, seconds, first = _updated_twice(of, settings, workload)
        different = sum(
            one.tobytes() != other.tobytes()
            for one, other in zip(*(jax.tree.leaves(state) for state in states), strict=True)
        )
        case = {
            "what": "update",
            "dtype": dtype,
            "deterministic": is_deterministic,
            "different_arrays": different,
            "seconds": seconds,
            "first_call_s": first,
        }
        emit(case | {"is_fine": not different} if is_deterministic else case)


def _updated_twice(
    of: model.Architecture, settings: config_lib.Config, workload: time_update.Workload
) -> tuple[list[Any], float, float]:
    """Both states after three updates on log-normal lengths, the median seconds of an update, and those of the first."""
    bench = time_update.make(of, settings)
    rows = time_update.trajectories(time_update.lognormal_lengths(workload), workload, of.vocab_size)
    call = time_update.update_call(bench, rows)
    start = jax.tree.map(np.asarray, bench.state[0].params)
    placement = jax.tree.map(lambda leaf: leaf.sharding, bench.state[0].params)
    states, seconds = [], []
    for _ in range(2):
        params = jax.tree.map(mesh.put, start, placement)
        bench.state[0] = update.init(params, update.make_optimizer(settings.optimizer), bench.mesh)
        for _ in range(3):
            before = time.perf_counter()
            jax.block_until_ready(call())
            seconds.append(time.perf_counter() - before)
        states.append(jax.tree.map(np.asarray, bench.state[0].params))
    return states, statistics.median(seconds[1:]), seconds[0]
