"""Prompts, their rollout and its verdicts → finished trajectories with their shaped reward."""

from __future__ import annotations

import io

import jax.numpy as jnp
import numpy as np

from reval_jax import config as config_lib
from reval_jax import mesh as mesh_lib
from reval_jax import objective, types


def trajectories(
    prompts: types.Prompts,
    rollout: types.Rollout,
    verdicts: types.Verdicts,
    *,
    round: int,
    policy_version: int,
    settings: config_lib.Update,
) -> types.Trajectories:
    """B trajectories in the rollout's order, their reward frozen in the design the config asks for.

    The group of a trajectory is its prompt's samples of this round: a replayed group is incomplete, so nothing that needs
    the group is left for later.
    """
    num = rollout.length.shape[0]
    prompt_length = np.array([len(tokens) for tokens in prompts.tokens], np.int32)[rollout.prompt]
    offsets = np.cumsum(rollout.length) - rollout.length
    pieces: list[np.ndarray] = []
    for index in range(num):
        pieces += [prompts.tokens[rollout.prompt[index]], rollout.tokens[offsets[index] :][: rollout.length[index]]]
    return types.Trajectories(
        tokens=np.concatenate(pieces).astype(np.int32),
        log_prob=rollout.log_prob,
        prompt_length=prompt_length,
        response_length=rollout.length.astype(np.int32),
        is_truncated=rollout.is_truncated,
        raw_reward=verdicts.reward,
        reward=shape_reward(verdicts.reward, rollout.prompt, settings),
        verdict=verdicts.kind,
        cursor=prompts.cursor[rollout.prompt],
        sample=rollout.sample,
        round=np.full(num, round, np.int32),
        policy_version=np.full(num, policy_version, np.int32),
        use_count=np.zeros(num, np.int32),
        reference_log_prob=np.zeros(num, np.float32),
        reference_value=np.zeros(num, np.float32),
        reference_version=np.full(num, types.NOT_SCORED, np.int32),
    )


def shape_reward(raw_reward: np.ndarray, group: np.ndarray, settings: config_lib.Update) -> np.ndarray:
    """f32[B]: the reward design of Fig. 9, and for GRPO the group's advantage of it.

    Args:
      raw_reward: f32[B], 0 or 1.
      group: i32[B] prompt of each trajectory.
    """
    reward = jnp.asarray(2 * raw_reward - 1 if settings.reward == "signed" else raw_reward, jnp.float32)
    groups = jnp.asarray(group, jnp.int32)
    if settings.objective == "grpo":
        shaped = objective.group_advantage(reward, groups)
    elif settings.reward == "group_normalized":
        shaped = objective.group_normalized_reward(reward, groups)
    else:
        shaped = reward
    return np.asarray(shaped, np.float32)


def check_divides(prompts_per_round: int, num_processes: int) -> None:
    """Refuse a round that leaves processes with unequal numbers of prompts.

    Raises:
      ValueError: naming what works.
    """
    if prompts_per_round % num_processes:
        raise ValueError(
            f"rollout.prompts_per_round={prompts_per_round} does not divide over {num_processes} processes, so some would wait "
            f"for the others. Use a multiple of {num_processes}."
        )


def share_of(prompts: types.Prompts, index: int, count: int) -> types.Prompts:
    """The prompts that process `index` of `count` decodes: a contiguous part, so that parts join in prompt order."""
    total = len(prompts.texts)
    part = slice(index * total // count, (index + 1) * total // count)
    return types.Prompts._make(field[part] for field in prompts)


def gather(mine: types.Trajectories) -> types.Trajectories:
    """The trajectories of all processes, in process order, the same on every one."""
    buffer = io.BytesIO()
    np.savez(buffer, **mine._asdict())
    parts = [np.load(io.BytesIO(payload), allow_pickle=False) for payload in mesh_lib.gather_bytes(buffer.getvalue())]
    return types.Trajectories(**{name: np.concatenate([part[name] for part in parts]) for name in mine._fields})
