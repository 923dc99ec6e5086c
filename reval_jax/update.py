"""One optimizer step: the loss and its gradients over micro-batches, a global-norm clip and AdamW, in one jitted program."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from reval_jax import algorithms, batch, model, policy
from reval_jax import config as config_lib
from reval_jax import mesh as mesh_lib

SAMPLER_MISMATCH = "training/sampler_learner_logprob_diff"

Sums = tuple[jax.Array, model.Params, algorithms.Metrics]
"""Loss, gradients and metrics of the micro-batches added so far."""

Numbers = algorithms.PerTrajectory | None


class TrainState(NamedTuple):
    """The learner's state: an update reads and writes all of it."""

    params: model.Params  # float32, sharded by mesh.LEARNER_AXES
    opt_state: optax.OptState  # moments sharded like params
    num_updates: jax.Array  # i32[] updates applied: the policy's version
    num_skipped: jax.Array  # i32[] updates not applied because loss or gradient was not finite
    skipped_in_a_row: jax.Array  # i32[]


def make_optimizer(
    settings: config_lib.Optimizer, *, has_value_head: bool = False, peak: float | jax.Array | None = None
) -> optax.GradientTransformation:
    """AdamW behind a global-norm clip, with a linear warm-up.

    A value head has a learning rate of its own with the same warm-up. Its gradient counts in the global norm.

    Args:
      peak: the learning rate after the warm-up, in place of `settings.learning_rate`; the state does not depend on it.
    """
    parts = [
        optax.clip_by_global_norm(settings.max_grad_norm),
        optax.adamw(learning_rate(settings, peak), b1=settings.b1, b2=settings.b2, weight_decay=settings.weight_decay),
    ]
    if has_value_head:
        parts.append(_scaled_value_head(settings.value_learning_rate / settings.learning_rate))
    return optax.chain(*parts)


def _scaled_value_head(factor: float) -> optax.GradientTransformation:
    """Multiplies the value head's updates, which AdamW's learning rate scales linearly; has no state."""

    def scale(updates: model.Params, params: model.Params | None) -> model.Params:
        return updates | {"value_head": jax.tree.map(lambda leaf: leaf * factor, updates["value_head"])}

    return optax.stateless(scale)


def learning_rate(settings: config_lib.Optimizer, peak: float | jax.Array | None = None) -> optax.Schedule:
    """Update count → learning rate: linear from 0 over `warmup_updates`, then constant at `peak`, by default the settings'."""
    rate = settings.learning_rate if peak is None else peak
    if settings.warmup_updates == 0:
        return lambda count: rate
    # The first update has count 0; it takes the first step of the climb, not a step of size 0.
    return lambda count: rate * jnp.minimum(1.0, (count + 1) / settings.warmup_updates)


def init(params: model.Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first update; moments are created on the parameters' devices.

    Args:
      params: device arrays, float32. Kept, not copied.
    """

    def zero() -> jax.Array:
        return mesh_lib.put(jnp.int32(0), mesh_lib.replicated(mesh))

    return TrainState(params, init_optimizer(params, optimizer, mesh), zero(), zero(), zero())


def abstract_params(architecture: model.Architecture, mesh: Mesh) -> model.Params:
    """Shapes, float32, and the learner's sharding of each parameter."""
    shapes = model.abstract_params(architecture)
    placement = mesh_lib.shardings(mesh, model.logical_axes(architecture), shapes, mesh_lib.LEARNER_AXES)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, placement
    )


def abstract(params: model.Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes and placement of `init`'s result.

    Args:
      params: ShapeDtypeStructs with shardings.
    """
    whole = mesh_lib.replicated(mesh)
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    return TrainState(params, _abstract_optimizer(params, optimizer, mesh), count, count, count)  # type: ignore[arg-type]


def _abstract_optimizer(params: model.Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> optax.OptState:
    return optax.tree.map_params(
        optimizer,
        lambda leaf, param: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=param.sharding),
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=mesh_lib.replicated(mesh)
        ),
    )


def _optimizer_count(opt_state: optax.OptState) -> jax.Array:
    """The update count that optax's schedule reads: 0 again after a reset of the optimizer."""
    (_, count), *_ = optax.tree.get_all_with_path(opt_state, "count")
    return count


def init_optimizer(params: model.Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> optax.OptState:
    """Fresh optimizer state: moments sharded like their parameters, counts on every device."""
    placement = jax.tree.map(lambda leaf: leaf.sharding, _abstract_optimizer(params, optimizer, mesh))
    return jax.jit(optimizer.init, out_shardings=placement)(params)


def _mismatch(scores: policy.PolicyScores, rows: batch.Batch) -> algorithms.Metrics:
    """The distance of this policy's log-probabilities from the sampler's, mean over response tokens, nats."""
    gap = jnp.where(scores.response_mask, jnp.abs(scores.log_prob - rows.behaviour_log_prob), 0.0)
    return {SAMPLER_MISMATCH: gap.sum() / rows.num_response_tokens}


def loss_and_gradients(
    architecture: model.Architecture,
    params: model.Params,
    rows: batch.Batch,
    algorithm: algorithms.Algorithm,
    mesh: Mesh,
    *,
    config: config_lib.Config,
) -> tuple[jax.Array, model.Params, algorithms.Metrics, algorithms.PerTrajectory | None]:
    """Loss, gradients (float32, shaped and sharded like params), metrics and numbers per trajectory of a whole batch.

    The last are the algorithm's, f32[M, R, S] each, None where it has none.

    Each device sums over its own rows, micro-batch by micro-batch. The number of micro-batches is a runtime value, so this
    is a loop with a fixed body, not an unrolled program. Inside the loop a layer's weights are gathered over fsdp and their
    gradients reduce-scattered over it; nothing crosses data until the one sum after the loop.
    """
    placement = mesh_lib.specs(jax.tree.map(lambda leaf: leaf.sharding, abstract_params(architecture, mesh)))
    kernels = policy.kernels(architecture, mesh, config)

    def score(params: model.Params, rows: batch.Batch) -> policy.PolicyScores:
        return policy.score(
            architecture,
            params,
            rows,
            temperature=config.rollout.temperature,
            compute_dtype=config.model.compute_dtype,
            remat=config.model.remat,
            kernels=kernels,
            has_moments="mean_log_prob" in algorithm.reads,
        )

    def prepared(params: model.Params, rows: batch.Batch) -> tuple[Any, ...]:
        """The loss's further arguments: with `algorithm.prepare` its sum over the whole step, by one more forward pass."""
        prepare = algorithm.prepare
        if prepare is None:
            return ()

        def add(index: jax.Array, total: Any) -> Any:
            micro_batch = batch.micro_batch(rows, index)
            return jax.tree.map(jnp.add, total, prepare(score(params, micro_batch), micro_batch))

        shapes = jax.eval_shape(lambda: prepare(score(params, batch.micro_batch(rows, 0)), batch.micro_batch(rows, 0)))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total = jax.lax.fori_loop(0, rows.num_micro_batches, add, zeros)
        return (mesh_lib.sum_over_rows(mesh, total, jax.tree.map(lambda _: PartitionSpec(), total)),)

    def micro_batch_loss(
        params: model.Params, rows: batch.Batch, further: tuple[Any, ...]
    ) -> tuple[jax.Array, tuple[algorithms.Metrics, algorithms.PerTrajectory | None]]:
        scores = score(params, rows)
        value, metrics = algorithm.loss(scores, rows, *further)
        numbers = algorithm.per_trajectory(scores, rows) if algorithm.per_trajectory else None
        return value, (metrics | _mismatch(scores, rows), numbers)

    def local_sum(
        params: model.Params, rows: batch.Batch
    ) -> tuple[jax.Array, model.Params, algorithms.Metrics, algorithms.PerTrajectory | None]:
        further = prepared(params, rows)

        def accumulate(index: jax.Array, carried: tuple[Sums, Numbers]) -> tuple[Sums, Numbers]:
            total, numbers = carried
            micro_batch = batch.micro_batch(rows, index)
            (value, (metrics, new)), gradients = jax.value_and_grad(micro_batch_loss, has_aux=True)(
                params, micro_batch, further
            )
            numbers = jax.tree.map(lambda all_of, part: all_of.at[index].set(part), numbers, new)
            return jax.tree.map(jnp.add, total, (value, gradients, metrics)), numbers

        value, (metrics, shapes) = jax.eval_shape(micro_batch_loss, params, batch.micro_batch(rows, 0), further)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (value, params, metrics))
        none_yet = jax.tree.map(lambda _: jnp.zeros_like(rows.reward), shapes)
        (value, gradients, metrics), numbers = jax.lax.fori_loop(
            0, rows.num_micro_batches, accumulate, (zeros, none_yet)
        )
        whole = jax.tree.map(lambda _: PartitionSpec(), (value, metrics))
        value, metrics = mesh_lib.sum_over_rows(mesh, (value, metrics), whole)
        return value, mesh_lib.sum_over_rows(mesh, gradients, placement), metrics, numbers

    return jax.shard_map(
        local_sum,
        mesh=mesh,
        in_specs=(placement, batch.specs()),
        out_specs=(PartitionSpec(), placement, PartitionSpec(), batch.specs().reward),
        # `parallel`'s functions state which values are the same on which devices; jax need not infer it.
        check_vma=False,
    )(params, rows)


def make_step(
    architecture: model.Architecture,
    mesh: Mesh,
    *,
    algorithm: algorithms.Algorithm,
    config: config_lib.Config,
) -> jax.stages.Wrapped:
    """The jitted update: (state, batch, rate) → (state, metrics, `PerTrajectory` of f32[M, R, S] or None); donates the state.

    `rate` is the learning rate after the warm-up, by default the settings'. It is a value, so that runs at several rates share
    one program.

    An update whose loss or gradient norm is not finite leaves parameters and optimizer state bitwise as they were, and is
    counted. Compiles once for each shape of the batch.
    """
    settings = config.optimizer
    kernels = policy.kernels(architecture, mesh, config)
    options = model.kernels.compiler_options(
        mesh, config.model.compute_dtype, deterministic=config.model.deterministic, has_gradient=True
    )

    def step(
        state: TrainState, rows: batch.Batch, rate: float | jax.Array = settings.learning_rate
    ) -> tuple[TrainState, algorithms.Metrics, Numbers]:
        optimizer = make_optimizer(settings, has_value_head=architecture.has_value_head, peak=rate)
        value, gradients, metrics, numbers = loss_and_gradients(
            architecture, state.params, rows, algorithm, mesh, config=config
        )
        norm = optax.tree.norm(gradients)
        is_finite = jnp.isfinite(value) & jnp.isfinite(norm)

        def apply(state: TrainState) -> TrainState:
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            return state._replace(
                params=optax.apply_updates(state.params, updates),
                opt_state=opt_state,
                num_updates=state.num_updates + 1,
                skipped_in_a_row=jnp.int32(0),
            )

        def skip(state: TrainState) -> TrainState:
            return state._replace(
                num_skipped=state.num_skipped + 1,
                skipped_in_a_row=state.skipped_in_a_row + 1,
            )

        metrics |= {
            "actor/loss": value,
            "actor/grad_norm": norm,
            "actor/lr": learning_rate(settings, rate)(_optimizer_count(state.opt_state)),
        }
        return kernels.cond(is_finite, apply, skip, state), metrics, numbers

    # Stating the outputs' placement avoids a second compilation: an inferred one may be equal and written differently.
    optimizer = make_optimizer(settings, has_value_head=architecture.has_value_head)
    placement = jax.tree.map(lambda leaf: leaf.sharding, abstract(abstract_params(architecture, mesh), optimizer, mesh))
    numbers = batch.sharding(mesh) if algorithm.per_trajectory else None
    outputs = (placement, mesh_lib.replicated(mesh), numbers)
    return jax.jit(step, donate_argnums=0, out_shardings=outputs, compiler_options=options)
