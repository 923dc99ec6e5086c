"""TrainState; loss → gradient → optax, one jitted step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from reval_jax import batch, model, objective, policy
from reval_jax import config as config_lib
from reval_jax import mesh as mesh_lib

Metrics = dict[str, jax.Array]
Loss = Callable[[policy.PolicyScores, batch.Batch], tuple[jax.Array, Metrics]]


class TrainState(NamedTuple):
    """All that an update reads and writes."""

    params: Any  # float32, sharded by mesh.LEARNER_AXES
    opt_state: Any  # optax's; moments sharded like params
    num_updates: jax.Array  # i32[] updates applied: the policy's version
    num_skipped: jax.Array  # i32[] updates not applied because loss or gradient was not finite
    skipped_in_a_row: jax.Array  # i32[]


def make_optimizer(settings: config_lib.Optimizer) -> optax.GradientTransformation:
    """AdamW behind a global-norm clip, with a linear warm-up."""
    return optax.chain(
        optax.clip_by_global_norm(settings.max_grad_norm),
        optax.adamw(learning_rate(settings), b1=settings.b1, b2=settings.b2, weight_decay=settings.weight_decay),
    )


def learning_rate(settings: config_lib.Optimizer) -> optax.Schedule:
    """Update count → learning rate: linear from 0 over `warmup_updates`, then constant."""
    if settings.warmup_updates == 0:
        return optax.constant_schedule(settings.learning_rate)
    # The first update has count 0; it takes the first step of the climb, not a step of size 0.
    return lambda count: settings.learning_rate * jnp.minimum(1.0, (count + 1) / settings.warmup_updates)


def init(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first update; moments are made where the parameters lie.

    Args:
      params: device arrays, float32. Kept, not copied.
    """

    def zero() -> jax.Array:
        return mesh_lib.put(jnp.int32(0), mesh_lib.replicated(mesh))

    return TrainState(params, init_optimizer(params, optimizer, mesh), zero(), zero(), zero())


def abstract_params(architecture: model.Architecture, mesh: Mesh) -> Any:
    """Shapes, float32, and where the learner keeps each parameter."""
    shapes = model.abstract_params(architecture)
    placement = mesh_lib.shardings(mesh, model.logical_axes(architecture), shapes, mesh_lib.LEARNER_AXES)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, placement
    )


def abstract(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes and placement of `init`'s result.

    Args:
      params: ShapeDtypeStructs with shardings.
    """
    whole = mesh_lib.replicated(mesh)
    count: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    return TrainState(params, _abstract_optimizer(params, optimizer, mesh), count, count, count)


def _abstract_optimizer(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    return optax.tree.map_params(
        optimizer,
        lambda leaf, param: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=param.sharding),
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=mesh_lib.replicated(mesh)
        ),
    )


def _optimizer_count(opt_state: Any) -> jax.Array:
    """Updates that optax has counted, which is what its schedule reads: 0 again after the optimizer was reset."""
    (_, count), *_ = optax.tree.get_all_with_path(opt_state, "count")
    return count


def init_optimizer(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """Fresh optimizer state: moments sharded like their parameters, counts on every device."""
    placement = jax.tree.map(lambda leaf: leaf.sharding, _abstract_optimizer(params, optimizer, mesh))
    return jax.jit(optimizer.init, out_shardings=placement)(params)


def make_loss(settings: config_lib.Update) -> Loss:
    """The objective named in the config as a function of a micro-batch's scores.

    The loss is divided by the whole batch's counts, so that the micro-batches' losses add up to the batch's; so are the
    metrics, which are means over trajectories or tokens.
    """
    match settings.objective:
        case "reval":
            return _value_loss(settings, _reval)
        case "tbrm":
            return _value_loss(settings, _tbrm)
        case "regression":
            return _value_loss(settings, _regression)
        case "grpo":
            return functools.partial(_grpo_loss, settings)


def _reval(s: policy.PolicyScores, b: batch.Batch, beta: float) -> jax.Array:
    return objective.reval_residual(
        s.soft_value, b.reference_value, s.trajectory_log_prob, b.reference_log_prob, b.reward, beta=beta
    )


def _tbrm(s: policy.PolicyScores, b: batch.Batch, beta: float) -> jax.Array:
    return objective.tbrm_residual(s.soft_value, s.trajectory_log_prob, b.reference_log_prob, b.reward, beta=beta)


def _regression(s: policy.PolicyScores, b: batch.Batch, beta: float) -> jax.Array:
    return objective.regression_residual(s.trajectory_log_prob, b.reference_log_prob, b.reward, beta=beta)


def _value_loss(
    settings: config_lib.Update, residual_of: Callable[[policy.PolicyScores, batch.Batch, float], jax.Array]
) -> Loss:
    def loss(scores: policy.PolicyScores, rows: batch.Batch) -> tuple[jax.Array, Metrics]:
        if settings.stop_value_gradient:
            scores = scores._replace(soft_value=jax.lax.stop_gradient(scores.soft_value))
        is_real = rows.response_length > 0
        residual = residual_of(scores, rows, settings.beta)
        value = objective.bellman_loss(residual, is_real=is_real, num_trajectories=rows.num_trajectories)
        per_trajectory = {
            "reval/residual_mean": residual,
            "reval/residual_abs": jnp.abs(residual),
            "reval/value_gap": scores.soft_value - rows.reference_value,
            "reval/log_ratio": scores.trajectory_log_prob - rows.reference_log_prob,
        }
        means = {
            name: jnp.where(is_real, term, 0.0).sum() / rows.num_trajectories for name, term in per_trajectory.items()
        }
        return value, means | _mismatch(scores, rows)

    return loss


def _grpo_loss(
    settings: config_lib.Update, scores: policy.PolicyScores, rows: batch.Batch
) -> tuple[jax.Array, Metrics]:
    value = objective.grpo_loss(
        scores.log_prob,
        rows.behaviour_log_prob,
        jnp.take_along_axis(rows.reward, jnp.minimum(rows.slot, rows.reward.shape[1] - 1), axis=1),
        scores.response_mask,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        clip_dual=settings.clip_dual,
        num_tokens=rows.num_response_tokens,
    )
    return value, _mismatch(scores, rows)


def _mismatch(scores: policy.PolicyScores, rows: batch.Batch) -> Metrics:
    """How far this policy's log-probabilities are from the sampler's, mean over response tokens, nats."""
    gap = jnp.where(scores.response_mask, jnp.abs(scores.log_prob - rows.behaviour_log_prob), 0.0)
    return {"training/sampler_learner_logprob_diff": gap.sum() / rows.num_response_tokens}


def loss_and_gradients(
    architecture: model.Architecture,
    params: Any,
    rows: batch.Batch,
    loss: Loss,
    mesh: Mesh,
    *,
    config: config_lib.Config,
) -> tuple[jax.Array, Any, Metrics]:
    """Loss, gradients (float32, shaped and sharded like params) and metrics of a whole batch.

    Every device adds up its own rows, micro-batch by micro-batch: the number of micro-batches is a runtime value, so this is
    a loop of a fixed body, not an unrolled program. Inside the loop a layer's weights are gathered over fsdp to be used and
    their gradients reduce-scattered over it; over data nothing travels until the one sum after the loop.
    """
    placement = mesh_lib.specs(jax.tree.map(lambda leaf: leaf.sharding, abstract_params(architecture, mesh)))
    attend = model.attention.choose(
        config.model.attention, mesh, compute_dtype=config.model.compute_dtype, architecture=architecture
    )

    def of_micro_batch(params: Any, rows: batch.Batch) -> tuple[jax.Array, Metrics]:
        scores = policy.score(
            architecture,
            params,
            rows,
            temperature=config.rollout.temperature,
            compute_dtype=config.model.compute_dtype,
            remat=config.model.remat,
            attend=attend,
        )
        return loss(scores, rows)

    def of_device(params: Any, rows: batch.Batch) -> tuple[jax.Array, Any, Metrics]:
        def accumulate(index: jax.Array, total: tuple[jax.Array, Any, Metrics]) -> tuple[jax.Array, Any, Metrics]:
            micro_batch = batch.micro_batch(rows, index)
            (value, metrics), gradients = jax.value_and_grad(of_micro_batch, has_aux=True)(params, micro_batch)
            return jax.tree.map(jnp.add, total, (value, gradients, metrics))

        value, metrics = jax.eval_shape(of_micro_batch, params, batch.micro_batch(rows, 0))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (value, params, metrics))
        value, gradients, metrics = jax.lax.fori_loop(0, rows.num_micro_batches, accumulate, zeros)
        whole = jax.tree.map(lambda _: PartitionSpec(), (value, metrics))
        value, metrics = mesh_lib.sum_over_rows(mesh, (value, metrics), whole)
        return value, mesh_lib.sum_over_rows(mesh, gradients, placement), metrics

    return jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(placement, batch.specs()),
        out_specs=(PartitionSpec(), placement, PartitionSpec()),
        # Which values are the same on which devices is stated by `parallel`'s functions.
        check_vma=False,
    )(params, rows)


def make_step(
    architecture: model.Architecture, optimizer: optax.GradientTransformation, mesh: Mesh, *, config: config_lib.Config
) -> Callable[[TrainState, batch.Batch], tuple[TrainState, Metrics]]:
    """The jitted update: (state, batch) → (state, metrics); donates the state.

    An update whose loss or gradient norm is not finite leaves parameters and optimizer state bitwise as they were and is
    counted. Compiles once for each shape of the batch.
    """
    loss = make_loss(config.update)
    schedule = learning_rate(config.optimizer)

    def step(state: TrainState, rows: batch.Batch) -> tuple[TrainState, Metrics]:
        value, gradients, metrics = loss_and_gradients(architecture, state.params, rows, loss, mesh, config=config)
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
            "actor/lr": schedule(_optimizer_count(state.opt_state)),
        }
        return jax.lax.cond(is_finite, apply, skip, state), metrics

    # The outputs' placement is stated, not inferred: an equal one that is written differently would compile a second time.
    placement = jax.tree.map(lambda leaf: leaf.sharding, abstract(abstract_params(architecture, mesh), optimizer, mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=(placement, mesh_lib.replicated(mesh)))
