"""The value head: its values and gradients against NumPy and torch, its optimizer, and where it is left out."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
import transformers
from support import fake_pods, hf_checkpoints, tiny_programs, tiny_sampler

from reval_jax import (
    batch,
    checkpoint,
    distributed,
    mesh,
    model,
    policy,
    reference,
    sampler,
    setup,
    update,
    weights,
)
from reval_jax.tools.plan import compilation, memory
from reval_jax.weights import layout

ARCHITECTURE = hf_checkpoints.tiny_architecture(has_value_head=True)
COEFFICIENT = 0.1  # of the value's loss beside the policy's


def tiny_with_head(**settings):
    """A tiny policy with a value head of random weights."""
    return tiny_programs.tiny(architecture=ARCHITECTURE, **settings)


def actor_critic_loss(scores, rows):
    """mean over response tokens of -r log pi(a|s) + COEFFICIENT (V(s) - r)^2."""
    reward = batch.per_response_token(rows.reward, rows)
    terms = COEFFICIENT * (scores.value - reward) ** 2 - reward * scores.log_prob
    return jnp.where(scores.response_mask, terms, 0.0).sum() / rows.num_response_tokens, {}


def loss_and_gradients(tiny, trajectories):
    packed = batch.pack(trajectories, tiny.mesh, limits=tiny.limits)
    algorithm = tiny.algorithm._replace(loss=actor_critic_loss)
    run = jax.jit(
        lambda params, rows: update.loss_and_gradients(
            tiny.architecture, params, rows, algorithm, tiny.mesh, config=tiny.config
        )
    )
    value, gradients, *_ = run(tiny.params, packed)
    return float(value), distributed.fetch(gradients)


def scored(tiny, trajectories):
    where = batch.arrange(trajectories, tiny.mesh, limits=tiny.limits)
    packed = batch.pack(trajectories, tiny.mesh, limits=tiny.limits, arrangement=where)
    run = jax.jit(
        lambda params, rows: policy.score(
            tiny.architecture, params, rows, temperature=0.7, compute_dtype=tiny.config.model.compute_dtype
        )
    )
    return run(tiny.params, batch.micro_batch(packed, 0)), where


def test_values_are_those_of_the_predicting_positions():
    tiny, trajectories = tiny_with_head(), tiny_programs.random_trajectories(8)
    params = jax.device_get(tiny.params)
    scores, where = scored(tiny, trajectories)
    assert len(set(where.row)) < 8, "no row holds two trajectories, so packing is not tested"
    for index, (row, first) in enumerate(zip(where.row, where.first, strict=True)):
        tokens, prompt, response = tiny_programs.tokens_of(trajectories, index)
        hidden = tiny_programs.hidden_and_head(ARCHITECTURE, params, tokens)[0][prompt - 1 : prompt + response - 1]
        expected = hidden @ params["value_head"]["weight"].astype(np.float64) + params["value_head"]["bias"]
        np.testing.assert_allclose(scores.value[row, first : first + response], expected, atol=2e-5)
    assert scores.value.dtype == np.float32
    assert not np.any(np.asarray(scores.value)[~np.asarray(scores.response_mask)])


def test_a_value_head_changes_no_bit_of_the_other_scores_and_without_one_there_is_no_value():
    trajectories, with_head = tiny_programs.random_trajectories(8), tiny_with_head()
    policy_alone = with_head._replace(
        architecture=ARCHITECTURE.without_value_head(), params=model.without_value_head(with_head.params)
    )
    valued, plain = scored(with_head, trajectories)[0], scored(policy_alone, trajectories)[0]
    assert plain.value is None
    for one, other in zip(valued._replace(value=None), plain, strict=True):
        np.testing.assert_array_equal(one, other)


def test_in_bfloat16_the_value_is_a_float32_sum_of_the_hidden_states():
    hidden = jax.random.normal(jax.random.key(0), (3, 4096), jnp.bfloat16)
    weight = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    values = jax.jit(model.value)({"value_head": {"weight": weight, "bias": np.float32(2)}}, hidden)
    expected = np.asarray(hidden, np.float64) @ weight.astype(np.float64) + 2
    np.testing.assert_allclose(values, expected, atol=1e-4)


def test_the_initial_value_head_is_zero_on_every_device_and_a_trained_one_is_kept():
    tiny = tiny_with_head(fsdp=4, tensor=2)
    published = model.without_value_head(jax.device_get(tiny.params))
    placed = setup.place_params(published, ARCHITECTURE, tiny.mesh)
    assert jax.tree.map(lambda leaf: leaf.shape, placed["value_head"]) == {"weight": (32,), "bias": ()}
    for leaf in jax.tree.leaves(placed["value_head"]):
        assert leaf.dtype == np.float32
        assert leaf.sharding.is_fully_replicated
        assert not np.any(leaf)
    kept = setup.place_params(jax.device_get(tiny.params), ARCHITECTURE, tiny.mesh)
    np.testing.assert_array_equal(kept["value_head"]["weight"], tiny.params["value_head"]["weight"])
    assert "value_head" not in setup.place_params(published, ARCHITECTURE.without_value_head(), tiny.mesh)


# --- gradients -------------------------------------------------------------------------------------------------------


def torch_loss_and_gradients(directory, params, trajectories):
    """Loss and gradients in float64 by `transformers`, one unpadded sequence at a time; gradients by published name."""
    torch = pytest.importorskip("torch", reason="torch is not installed, on which transformers computes")
    decoder = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float64, attn_implementation="eager", local_files_only=True
    )
    head = {name: torch.tensor(leaf, dtype=torch.float64, requires_grad=True) for name, leaf in params.items()}
    loss = torch.zeros((), dtype=torch.float64)
    for index in range(trajectories.size):
        tokens, prompt, response = tiny_programs.tokens_of(trajectories, index)
        output = decoder(torch.asarray(tokens[None].astype(np.int64)), output_hidden_states=True)
        predicting = slice(prompt - 1, prompt + response - 1)
        log_prob = torch.log_softmax(output.logits[0, predicting], dim=-1)
        log_prob = log_prob[torch.arange(response), torch.asarray(tokens[prompt:].astype(np.int64))]
        value = output.hidden_states[-1][0, predicting] @ head["weight"] + head["bias"]
        reward = float(trajectories.reward[index])
        loss = loss + (COEFFICIENT * (value - reward) ** 2 - reward * log_prob).sum()
    loss = loss / int(trajectories.response_length.sum())
    loss.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in decoder.named_parameters()}
    return loss.item(), gradients, {name: leaf.grad.numpy() for name, leaf in head.items()}


@pytest.mark.parity
@pytest.mark.slow
def test_loss_and_gradients_of_head_and_trunk_equal_torchs(tmp_path):
    tiny, trajectories = tiny_with_head(update={"micro_batch_tokens": 48}), tiny_programs.random_trajectories(8)
    params = jax.device_get(tiny.params)
    directory = hf_checkpoints.tiny_checkpoint(tmp_path / "model")
    loaded = weights.load(directory)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.without_value_head(params))
    expected, by_name, of_head = torch_loss_and_gradients(directory, params["value_head"], trajectories)
    value, gradients = loss_and_gradients(tiny, trajectories)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for name, gradient in of_head.items():
        np.testing.assert_allclose(gradients["value_head"][name], gradient, rtol=1e-4, atol=1e-6)
    largest = max(np.abs(gradient).max() for gradient in by_name.values())
    for tensor in layout.tensors(ARCHITECTURE):
        np.testing.assert_allclose(layout.published(tensor, gradients), by_name[tensor.name], atol=2e-5 * largest)


@pytest.mark.parametrize("axes", [{}, pytest.param({"fsdp": 4, "tensor": 2}, marks=pytest.mark.slow)], ids=["1", "8"])
def test_gradients_of_the_head_equal_a_loop_and_those_of_the_trunk_do_not_depend_on_devices_or_micro_batches(axes):
    trajectories = tiny_programs.random_trajectories(8)
    tiny = tiny_with_head(**axes, update={"micro_batch_tokens": 48})
    params = jax.device_get(tiny.params)
    _, gradients = loss_and_gradients(tiny, trajectories)
    weight, bias = np.zeros(32), 0.0
    for index in range(trajectories.size):
        tokens, prompt, response = tiny_programs.tokens_of(trajectories, index)
        hidden = tiny_programs.hidden_and_head(ARCHITECTURE, params, tokens)[0][prompt - 1 : prompt + response - 1]
        error = hidden @ params["value_head"]["weight"] + params["value_head"]["bias"] - trajectories.reward[index]
        weight, bias = weight + 2 * COEFFICIENT * error @ hidden, bias + 2 * COEFFICIENT * error.sum()
    num_tokens = trajectories.response_length.sum()
    np.testing.assert_allclose(gradients["value_head"]["weight"], weight / num_tokens, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradients["value_head"]["bias"], bias / num_tokens, rtol=1e-4)
    if axes:
        _, whole = loss_and_gradients(tiny_with_head(), trajectories)
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest, rtol=0), gradients, whole)


# --- the optimizer and the checkpoint --------------------------------------------------------------------------------


def stepped(optimizer, params, gradients, num=3):
    """Updates of the last of `num` steps with these gradients."""
    state, step = optimizer.init(params), jax.jit(optimizer.update)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(num):
            updates, state = step(gradients, state, params)
    return updates


def test_the_value_head_has_its_own_learning_rate_and_the_rest_is_updated_as_without_it():
    settings = tiny_programs.settings(
        optimizer={"learning_rate": 1e-3, "value_learning_rate": 4e-2, "warmup_updates": 4, "max_grad_norm": 1e9}
    ).optimizer
    params = hf_checkpoints.tiny_params(ARCHITECTURE)
    gradients = jax.tree.map(lambda leaf: np.sin(50 * leaf), params)
    updates = stepped(update.make_optimizer(settings, has_value_head=True), params, gradients)
    plain = stepped(
        update.make_optimizer(settings), model.without_value_head(params), model.without_value_head(gradients)
    )
    jax.tree.map(np.testing.assert_array_equal, model.without_value_head(updates), plain)
    faster = update.make_optimizer(dataclasses.replace(settings, learning_rate=4e-2))
    expected = stepped(faster, params["value_head"], gradients["value_head"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates["value_head"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{}, {"fsdp": 2, "tensor": 2}], ids=["1", "4"])
def test_the_step_fits_the_value_head_to_the_rewards_and_compiles_once(axes):
    tiny = tiny_with_head(**axes, optimizer={"learning_rate": 1e-6, "value_learning_rate": 0.03})
    optimizer = update.make_optimizer(tiny.config.optimizer, has_value_head=True)
    algorithm = tiny.algorithm._replace(loss=actor_critic_loss)
    step = update.make_step(tiny.architecture, tiny.mesh, algorithm=algorithm, config=tiny.config)
    state = update.init(tiny.params, optimizer, tiny.mesh)
    rows = batch.pack(tiny_programs.random_trajectories(8), tiny.mesh, limits=tiny.limits)
    before = distributed.fetch(tiny.params)
    losses = []
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(30):
            state, metrics, _ = step(state, rows)
            losses.append(float(metrics["actor/loss"]))
    assert losses[-1] < losses[0] - 0.05
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), distributed.fetch(state.params), before)
    assert max(jax.tree.leaves(model.without_value_head(moved))) < 1e-4
    assert min(jax.tree.leaves(moved["value_head"])) > 0.03
    assert step._cache_size() == 1


def test_a_checkpoint_restores_the_head_and_its_moments_and_the_policy_without_it(tmp_path):
    tiny = tiny_with_head(fsdp=2, tensor=2)
    optimizer = update.make_optimizer(tiny.config.optimizer, has_value_head=True)
    state = jax.tree.map(lambda leaf: leaf + 1, update.init(tiny.params, optimizer, tiny.mesh))
    saved = checkpoint.CheckpointState(
        params=state.params,
        optimizer=state._replace(params=None),
        reference=None,
        replay=tiny_programs.random_trajectories(4),
        progress=checkpoint.Progress(round=1),
    )
    store = checkpoint.Store(tmp_path / "checkpoints", tiny.config.checkpoint)
    store.save(1, saved, tiny.config)
    store.wait()
    abstract = update.abstract_params(tiny.architecture, tiny.mesh)
    like = saved._replace(
        params=abstract, optimizer=update.abstract(abstract, optimizer, tiny.mesh)._replace(params=None)
    )
    restored = store.restore(1, like)
    assert store.has_value_head(1)
    policy_alone = store.restore_params(1, update.abstract_params(ARCHITECTURE.without_value_head(), tiny.mesh))
    store.close()
    jax.tree.map(np.testing.assert_array_equal, restored.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, restored.optimizer, state._replace(params=None))
    assert np.any(optax.tree.get(restored.optimizer.opt_state, "mu")["value_head"]["weight"])
    jax.tree.map(np.testing.assert_array_equal, policy_alone, model.without_value_head(state.params))


# --- where it is left out --------------------------------------------------------------------------------------------


def test_the_samplers_copy_and_the_reference_leave_the_value_head_out():
    tiny = tiny_with_head(fsdp=2, tensor=2)
    alone = model.without_value_head(tiny.params)
    engine = tiny_sampler.engine_of(tiny)
    assert engine == tiny_sampler.engine_of(tiny._replace(architecture=ARCHITECTURE.without_value_head()))
    copies = [sampler.sync_weights(params, engine) for params in (tiny.params, alone)]
    jax.tree.map(np.testing.assert_array_equal, *copies)
    sampler.lower_sync_weights(update.abstract_params(ARCHITECTURE, tiny.mesh), engine)
    current = reference.init(tiny.params, config=tiny.config)
    shapes = reference.abstract(update.abstract_params(ARCHITECTURE, tiny.mesh), config=tiny.config)
    assert jax.tree.structure(current.params) == jax.tree.structure(shapes) == jax.tree.structure(alone)
    scorer = reference.make_scorer(ARCHITECTURE, tiny.mesh, config=tiny.config)
    trajectories = tiny_programs.random_trajectories(8)
    log_prob, _ = reference.score(scorer, reference.load(current), trajectories, tiny.mesh, limits=tiny.limits)
    assert np.all(log_prob < 0)


def test_an_export_holds_the_model_and_apart_the_value_head(tmp_path):
    params = hf_checkpoints.tiny_params(ARCHITECTURE)
    directory = weights.export(
        tmp_path / "model",
        ARCHITECTURE.without_value_head(),
        model.without_value_head(params),
        hf_checkpoints.tiny_tokenizer(),
        eos_token_ids=(2,),
        value_head=params["value_head"],
        dtype="bfloat16",
    )
    assert weights.load(str(directory)).architecture == ARCHITECTURE.without_value_head()
    assert {file.name for file in directory.glob("*.safetensors")} == {"model.safetensors"}
    stored = safetensors.numpy.load_file(directory / "value_head" / "value_head.safetensors")
    assert stored.keys() == {"weight", "bias"}
    jax.tree.map(np.testing.assert_array_equal, stored, params["value_head"])


def test_a_plan_counts_the_value_head_with_the_learner_only():
    pod, config = fake_pods.fake_pod(), tiny_programs.settings(mesh={"fsdp": 4, "tensor": 2})
    with_head, plain = (
        {phase.name: phase.kinds for phase in memory.lower_bounds(architecture, pod, config)}
        for architecture in (ARCHITECTURE, ARCHITECTURE.without_value_head())
    )
    numbers = 4 * (32 + 1)
    more = {
        name: {kind: size - plain[name][kind] for kind, size in kinds.items() if size != plain[name][kind]}
        for name, kinds in with_head.items()
    }
    always = {"params": numbers, "optimizer": 2 * numbers}
    assert more == dict.fromkeys(more, always) | {"update": always | {"gradients": numbers}}
    devices = mesh.make(config.mesh, pod.devices)
    with jax.numpy_dtype_promotion("standard"):
        for program in ("score", "sync_weights", "update"):
            compilation._lower_learner(program, ARCHITECTURE, pod, config)
    assert update.abstract_params(ARCHITECTURE, devices)["value_head"]["weight"].sharding.is_fully_replicated
