"""Every method's loss and gradients through the whole model, on packed rows, against float64 torch on single sequences."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from support import hf_checkpoints, tiny_programs

from reval_jax import batch, distributed, types, update
from reval_jax import config as config_lib
from reval_jax.weights import layout

pytest.importorskip("torch", reason="torch is not installed, on which the oracle computes")
from support import torch_methods as oracle

pytestmark = pytest.mark.parity

PRESETS = Path(__file__).resolve().parent.parent / "configs" / "algorithms"
ARCHITECTURE = hf_checkpoints.tiny_architecture()
WITH_HEAD = hf_checkpoints.tiny_architecture(has_value_head=True)
NUM = 12  # trajectories of the step, up to 16 tokens each
TEMPERATURE, MAX_RESPONSE = 0.8, 12
SIZES = {
    "task": {"max_prompt_tokens": 6},
    "rollout": {
        "prompts_per_round": 3,
        "samples_per_prompt": 4,
        "max_response_tokens": MAX_RESPONSE,
        "temperature": TEMPERATURE,
    },
    "replay": {"capacity": 96},
    "update": {"batch_size": NUM},
}
ONE: dict[str, int] = {}
EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}


class Method(NamedTuple):
    """A loss by the oracle, with the numbers that its paper or ALGORITHMS.md names, and the settings that ask for it."""

    loss: Callable[[list[Any]], Any]
    settings: dict[str, dict[str, Any]]
    columns: str = ""  # what `token_values` hold


def averaged(mean, loss, **numbers):
    """A loss per token, averaged."""
    return lambda rows: mean(rows, functools.partial(loss, **numbers))


def weighted(mean, loss, weight):
    """A loss per token times a weight, averaged."""
    return lambda rows: mean(rows, lambda row: loss(row) * weight(row))


token, trajectory = oracle.token_mean, oracle.trajectory_mean
constant = functools.partial(oracle.constant_mean, constant=MAX_RESPONSE)
grpo_clip = functools.partial(oracle.clipped, low=0.2, high=0.28, dual=3.0)
OF_PRESET = {
    "reval": functools.partial(oracle.reval, beta=0.02),
    "tbrm": functools.partial(oracle.tbrm, beta=0.002),
    "regression": functools.partial(oracle.regression, beta=0.002),
    "oapl": functools.partial(oracle.oapl, beta=0.001),
    "grpo": averaged(token, grpo_clip),
    "dapo": averaged(token, oracle.clipped, low=0.2, high=0.28, dual=10.0),
    "rlep": averaged(token, oracle.clipped, low=0.2, high=0.28, dual=10.0),
    "psr": averaged(token, oracle.clipped, low=0.2, high=0.2, dual=3.0),
    "nsr": averaged(token, oracle.clipped, low=0.2, high=0.2, dual=3.0),
    "dr_grpo": averaged(constant, oracle.clipped, low=0.2, high=0.2, dual=np.inf),
    "rloo": averaged(constant, oracle.reinforce),
    "remax": averaged(constant, oracle.reinforce),
    "gspo": functools.partial(oracle.gspo, low=3e-4, high=4e-4),
    "cispo": averaged(token, oracle.cispo, low=1.0, high=0.28),
    "m2po": functools.partial(oracle.m2po, budget=0.04),
    "rover": functools.partial(oracle.rover, scale=1.0),
    "ppo": functools.partial(oracle.ppo, clip=0.2, value_clip=0.5, coefficient=0.1),
}


def gradient_of(**settings):
    """Settings of a policy gradient."""
    return {"update": {"objective": "policy_gradient", **settings}}


BY_SETTING = {
    "trajectory mean": Method(averaged(trajectory, grpo_clip), gradient_of(mean="trajectory")),
    "quadratic": Method(
        averaged(token, oracle.quadratic, strength=0.3), gradient_of(surrogate="quadratic", quadratic_strength=0.3)
    ),
    "token weight": Method(
        weighted(token, oracle.reinforce, functools.partial(oracle.token_weight, high=1.5)),
        gradient_of(surrogate="reinforce", correction="token", correction_high=1.5),
    ),
    "sequence weight": Method(
        weighted(token, oracle.reinforce, functools.partial(oracle.sequence_weight, high=1.5)),
        gradient_of(surrogate="reinforce", correction="sequence", correction_high=1.5),
    ),
    "token mask": Method(
        weighted(token, grpo_clip, functools.partial(oracle.token_mask, low=0.6, high=1.5)),
        gradient_of(correction="token_mask", correction_low=0.6, correction_high=1.5),
    ),
    "sequence mask": Method(
        weighted(token, grpo_clip, functools.partial(oracle.sequence_mask, low=0.95, high=1.1)),
        gradient_of(correction="sequence_mask", correction_low=0.95, correction_high=1.1),
    ),
    "importance weights": Method(
        functools.partial(oracle.reval, beta=0.05), {"update": {"beta": 0.05}, "replay": {"priority": "residual"}}
    ),
    "stopped value": Method(
        functools.partial(oracle.reval_with_constant_value, beta=0.05),
        {"update": {"beta": 0.05, "stop_value_gradient": True}},
    ),
}
METHODS = BY_SETTING | {
    name: Method(loss, config_lib.read_yaml(PRESETS / f"{name}.yaml"), name if name in ("rover", "ppo") else "")
    for name, loss in OF_PRESET.items()
}
QUICK = ("grpo", "gspo", "rover", "m2po")


def alike(name: str) -> tuple[str, ...]:
    """The methods whose programs differ from that of `name` in the loss alone."""
    if name in ("rover", "ppo", "m2po"):
        return (name,)
    return tuple(other for other in METHODS if other not in ("rover", "ppo", "m2po"))


class Step(NamedTuple):
    """One optimizer step's trajectories, as the oracle and as this package have them."""

    policy: oracle.Policy
    rows: list[Any]  # oracle.Row, without columns
    trajectories: types.Trajectories
    weight: np.ndarray  # f32[NUM]
    columns: dict[str, np.ndarray]  # f32[all tokens, K]
    found: dict[str, tuple[Any, ...]]  # what `by_torch` has computed

    def rows_of(self, method: Method) -> list[Any]:
        """With the columns of the method, and weights where it reads them."""
        ends = np.cumsum(self.trajectories.response_length)[:-1]
        columns = np.split(self.columns[method.columns].astype(np.float64), ends)
        weight = self.weight if method is METHODS["importance weights"] else np.ones(NUM)
        return [
            row._replace(columns=oracle.torch.tensor(part), weight=float(factor))
            for row, part, factor in zip(self.rows, columns, weight, strict=True)
        ]

    def by_torch(self, name: str) -> tuple[Any, ...]:
        """The oracle's loss, the size of its terms, and its gradients of the decoder and of the value head."""
        if name not in self.found:
            method = METHODS[name]
            rows = self.rows_of(method)
            loss = method.loss(rows)
            size = abs(method.loss([row._replace(reward=abs(row.reward)) for row in rows]).item())
            self.found[name] = (loss.item(), size, *self.policy.gradients(loss))
        return self.found[name]

    def trajectories_of(self, method: Method) -> types.Trajectories:
        """With the columns of the method."""
        return self.trajectories._replace(token_values=self.columns[method.columns])

    def arranged(
        self, method: Method, axes: dict[str, int], micro_batch_tokens: int, packer: batch.Packer = batch.first_fit
    ) -> batch.Arrangement:
        """Packed rows in several micro-batches."""
        limits = batch.Limits(NUM, micro_batch_tokens, MAX_RESPONSE, self.columns[method.columns].shape[1])
        return batch.arrange(self.trajectories_of(method), tiny_of(method, axes).mesh, limits=limits, packer=packer)


def log_ratios(rng: np.random.Generator, length: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """f64[all tokens] nats: mostly small, as after a few updates, and some beyond every clip; two responses barely move."""
    num, starts = int(length.sum()), np.cumsum(length) - length
    large = rng.uniform(0.45, 1.6, num) * rng.choice([-1, 1], num)
    ratios = np.where(rng.random(num) < 0.2, large, rng.normal(0, 0.03, num))
    for index in (int(np.argmax(reward)), int(np.argmin(reward))):
        ratios[starts[index] : starts[index] + length[index]] = 1e-4
    # Ratios of 4 and 15 where the advantage is negative reach the dual clips.
    for index, planted in zip(np.flatnonzero((reward < 0) & (length > 4))[:2], (1.4, 2.7), strict=True):
        ratios[starts[index] + 2] = planted
    return ratios


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    rng, head = np.random.default_rng(0), hf_checkpoints.tiny_params(WITH_HEAD)["value_head"]
    directory = hf_checkpoints.tiny_checkpoint(tmp_path_factory.mktemp("methods") / "model")
    policy = oracle.Policy(directory, head, temperature=TEMPERATURE)
    drawn = tiny_programs.random_trajectories(NUM, seed=2, max_prompt=6, max_response=10)
    length = drawn.response_length
    assert length.min() == 1 < length.max() == 10
    scored = [policy.score(*tiny_programs.tokens_of(drawn, index)[:2]) for index in range(NUM)]

    def joined(field):
        return np.concatenate([getattr(row, field).detach().numpy() for row in scored])

    def near(values, spread):
        return (values + rng.normal(0, spread, len(values))).astype(np.float32)

    reward = (rng.choice([-1, 1], NUM) * rng.uniform(0.3, 1.5, NUM)).astype(np.float32)
    trajectories = drawn._replace(
        log_prob=(joined("log_prob") - log_ratios(rng, length, reward)).astype(np.float32),
        reward=reward,
        reference_log_prob=near(np.array([row.log_prob.sum().item() for row in scored]), 3.0),
        reference_value=near(np.array([row.soft_value.item() for row in scored]), 1.0),
    )
    advantage, value = np.zeros(int(length.sum())), joined("value")
    columns = {
        "": np.zeros((advantage.size, 0), np.float32),
        "rover": near(joined("mean_log_prob"), 0.4)[:, None],
        "ppo": np.stack([near(value, 0.5), near(advantage, 1.0), near(value, 1.0)], axis=1),
    }
    behaviour = np.split(trajectories.log_prob.astype(np.float64), np.cumsum(length)[:-1])
    rows = [
        row._replace(
            behaviour=oracle.torch.tensor(behaviour[index]),
            reward=float(trajectories.reward[index]),
            reference_log_prob=float(trajectories.reference_log_prob[index]),
            reference_value=float(trajectories.reference_value[index]),
        )
        for index, row in enumerate(scored)
    ]
    return Step(policy, rows, trajectories, rng.uniform(0.2, 3, NUM).astype(np.float32), columns, {})


def tiny_of(method: Method, axes: dict[str, int]) -> tiny_programs.Tiny:
    """The tiny policy under a method's settings."""
    merged = {name: SIZES.get(name, {}) | method.settings.get(name, {}) for name in SIZES | method.settings}
    has_head = merged["update"].get("objective") == "ppo"
    return tiny_programs.tiny(**axes, architecture=WITH_HEAD if has_head else ARCHITECTURE, **merged)


@functools.cache
def program(names: tuple[str, ...], axes: tuple[tuple[str, int], ...]) -> Callable[..., Any]:
    """Jitted (params, rows, index) → loss, gradients and metrics of the method `names[index]`, by the update's own function.

    Methods that differ in the loss alone share a program, because compiling takes far longer than running.
    """
    tinies = [tiny_of(METHODS[name], dict(axes)) for name in names]
    records, first = [tiny.algorithm for tiny in tinies], tinies[0]

    def chosen(index: jax.Array, *arguments: Any) -> Any:
        if len(records) == 1:
            return records[0].loss(*arguments)
        return jax.lax.switch(
            index, [lambda *each, loss=record.loss: (loss(*each)[0], {}) for record in records], *arguments
        )

    def run(params: Any, rows: batch.Batch, index: jax.Array) -> Any:
        algorithm = records[0]._replace(loss=functools.partial(chosen, index), per_trajectory=None)
        return update.loss_and_gradients(first.architecture, params, rows, algorithm, first.mesh, config=first.config)[
            :3
        ]

    # The programs run once: what LLVM saves there is less than it takes.
    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


def computed(
    step: Step,
    name: str,
    names: tuple[str, ...],
    axes: dict[str, int],
    *,
    micro_batch_tokens: int = 32,
    packer: batch.Packer = batch.first_fit,
) -> tuple[float, Any, dict[str, float]]:
    """Loss, gradients and metrics of a method, by the program of `names`."""
    method = METHODS[name]
    tiny, arrangement = tiny_of(method, axes), step.arranged(method, axes, micro_batch_tokens, packer)
    rows = batch.pack(
        step.trajectories_of(method), tiny.mesh, limits=tiny.limits, arrangement=arrangement, weight=step.weight
    )
    run = program(names, tuple(axes.items()))
    value, gradients, metrics = run(tiny.params, rows, np.int32(names.index(name)))
    return float(value), distributed.fetch(gradients), {key: float(metric) for key, metric in metrics.items()}


def assert_is_the_oracles(step, name, value, gradients):
    loss, size, by_name, of_head = step.by_torch(name)
    # Where advantages of both signs cancel, the terms' size decides the rounding.
    np.testing.assert_allclose(value, loss, rtol=1e-5, atol=1e-6 * size)
    largest = max(np.abs(gradient).max() for gradient in by_name.values())
    for tensor in layout.tensors(ARCHITECTURE):
        np.testing.assert_allclose(layout.published(tensor, gradients), by_name[tensor.name], atol=2e-5 * largest)
    assert ("value_head" in gradients) == (name == "ppo")
    for leaf, gradient in of_head.items() if name == "ppo" else ():
        np.testing.assert_allclose(gradients["value_head"][leaf], gradient, rtol=1e-4, atol=1e-6)


def test_every_preset_has_an_oracle():
    assert OF_PRESET.keys() == {file.stem for file in PRESETS.glob("*.yaml")}


@pytest.mark.parametrize("name", QUICK)
def test_loss_and_gradients_of_a_method_alone_equal_torchs(step, name):
    value, gradients, _ = computed(step, name, (name,), ONE)
    assert_is_the_oracles(step, name, value, gradients)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if name not in QUICK])
def test_loss_and_gradients_on_one_device_equal_torchs(step, name):
    value, gradients, _ = computed(step, name, alike(name), ONE)
    assert_is_the_oracles(step, name, value, gradients)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradients_on_eight_devices_equal_torchs(step, name):
    value, gradients, _ = computed(step, name, alike(name), EIGHT, micro_batch_tokens=16)
    assert_is_the_oracles(step, name, value, gradients)


# --- Metrics ---


@pytest.mark.parametrize(("name", "low", "high"), [("grpo", 0.8, 1.28), ("gspo", 0.9997, 1.0004)])
def test_the_share_of_clipped_tokens_is_a_count_over_the_batch(step, name, low, high):
    _, _, metrics = computed(step, name, (name,), ONE)
    count = 0
    for row in step.rows:
        log_ratio = row.log_ratio.detach().numpy()
        ratio = np.exp(log_ratio if name == "grpo" else np.full_like(log_ratio, log_ratio.mean()))
        count += int(np.sum(ratio > high if row.reward > 0 else ratio < low))
    assert count > 0
    np.testing.assert_allclose(metrics["actor/pg_clipfrac"], count / step.trajectories.response_length.sum(), rtol=1e-6)


@pytest.mark.slow
def test_the_mean_weight_of_a_correction_is_that_over_all_tokens(step):
    _, _, metrics = computed(step, "token weight", ("token weight",), ONE)
    expected = oracle.token_mean(step.rows, functools.partial(oracle.token_weight, high=1.5))
    np.testing.assert_allclose(metrics["actor/correction_weight"], expected.item(), rtol=1e-5)


@pytest.mark.slow
def test_the_value_loss_and_error_of_ppo_are_means_over_all_tokens(step):
    _, _, metrics = computed(step, "ppo", ("ppo",), ONE)
    rows = step.rows_of(METHODS["ppo"])
    np.testing.assert_allclose(metrics["critic/vf_loss"], oracle.value_loss(rows, clip=0.5).item(), rtol=1e-5)
    error = oracle.token_mean(rows, lambda row: (row.value - row.columns[:, 2]) ** 2)
    np.testing.assert_allclose(metrics["critic/squared_error"], error.item(), rtol=1e-5)


# --- The data of these tests ---


@pytest.mark.parametrize(("axes", "micro_batch_tokens"), [(ONE, 32), (EIGHT, 16)], ids=["1", "8"])
def test_rows_hold_several_responses_and_fill_several_micro_batches(step, axes, micro_batch_tokens):
    where = step.arranged(METHODS["grpo"], axes, micro_batch_tokens)
    assert where.slot.max() > 0
    assert where.row.max() >= where.shape.rows


def test_the_responses_reach_every_side_of_every_clip_and_mask(step):
    """No method is compared where it does nothing, and no number is so near a bound that float32 decides its side."""
    log_ratio = np.concatenate([row.log_ratio.detach().numpy() for row in step.rows])
    length = step.trajectories.response_length
    ratio, advantage = np.exp(log_ratio), np.repeat(step.trajectories.reward, length)
    for high in (1.2, 1.28, 1.5):
        for is_side in (advantage > 0, advantage < 0):
            assert np.any(is_side & (ratio > high))
            assert np.any(is_side & (ratio < 0.8))
            assert np.any(is_side & (np.abs(log_ratio) < 0.1))
    for dual in (3, 10):
        assert np.any((advantage < 0) & (ratio > dual))
    means = np.array([row.log_ratio.detach().mean().exp().item() for row in step.rows])
    sums = np.array([row.log_ratio.detach().sum().exp().item() for row in step.rows])
    positive = step.trajectories.reward > 0
    for is_side in (positive, ~positive):
        assert np.any(is_side & (means > 1.0004))
        assert np.any(is_side & (means < 0.9997))
        assert np.any(is_side & (means > 0.9997) & (means < 1.0004))
    for reached in (means < 0.95, means > 1.1, sums > 1.5, sums < 1.5):
        assert np.any(reached)
    old, _, target = step.columns["ppo"].T
    value = np.concatenate([row.value.detach().numpy() for row in step.rows])
    for moved in (value - old, old - value):
        assert np.any((moved > 0.5) & (np.abs(old - target) < 2))
    for bounded, bounds in ((ratio, (0.6, 0.8, 1.2, 1.28, 1.5, 3, 10)), (means, (0.9997, 1.0004, 0.95, 1.1))):
        assert np.abs(bounded[:, None] - bounds).min() > 1e-4
    assert np.abs(np.abs(value - old) - 0.5).min() > 1e-4


# --- M2PO's threshold ---


def test_m2pos_threshold_is_the_exact_one_rounded_down_to_the_grid_and_clips_both_sides(step):
    squares = oracle.harmful_squares(step.rows)
    exact, grid = (threshold(squares, budget=0.04) for threshold in (oracle.exact_threshold, oracle.grid_threshold))
    assert exact / 2**0.125 < grid <= exact
    np.testing.assert_allclose(np.minimum(squares, exact).sum(), 0.04 * squares.size, rtol=1e-12)
    own = np.concatenate([np.sign(row.reward) * row.log_ratio.detach().numpy() for row in step.rows])
    assert np.log(1.5) < np.sqrt(grid) < own.max(), "the clip of the step is not the one that never changes"


@pytest.mark.parametrize(
    ("axes", "micro_batch_tokens", "packer"),
    [
        (ONE, 32, batch.one_per_row),
        pytest.param(ONE, 16 * NUM, batch.first_fit, marks=pytest.mark.slow),
        pytest.param(EIGHT, 16, batch.first_fit, marks=pytest.mark.slow),
    ],
    ids=["one a row", "one micro-batch", "8 devices"],
)
def test_m2po_does_not_depend_on_packing_micro_batches_or_devices(step, axes, micro_batch_tokens, packer):
    value, gradients, metrics = computed(step, "m2po", ("m2po",), ONE)
    other = computed(step, "m2po", ("m2po",), axes, micro_batch_tokens=micro_batch_tokens, packer=packer)
    np.testing.assert_allclose(other[0], value, rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest, rtol=0), other[1], gradients)
    assert other[2] == pytest.approx(metrics, rel=1e-5)
    squares = oracle.harmful_squares(step.rows)
    assert metrics["m2po/second_moment"] == pytest.approx(squares.mean(), rel=1e-5)
    assert metrics["m2po/harmful_fraction"] == pytest.approx(
        squares.size / step.trajectories.response_length.sum(), rel=1e-6
    )


def test_a_threshold_of_each_micro_batch_would_depend_on_packing(step):
    """The published code's rule: the tests above would fail with it."""
    whole, losses = oracle.m2po(step.rows, budget=0.04).item(), []
    for packer in (batch.first_fit, batch.one_per_row):
        where = step.arranged(METHODS["m2po"], ONE, 32, packer)
        part = where.row // where.shape.rows
        parts = [np.flatnonzero(part == index).tolist() for index in range(part.max() + 1)]
        losses.append(oracle.m2po(step.rows, budget=0.04, parts=parts).item())
    distances = np.abs([losses[0] - whole, losses[1] - whole, losses[0] - losses[1]])
    assert distances.min() > 1e-3 * abs(whole)
