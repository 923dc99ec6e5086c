"""Finished trajectories: responses and their verdicts in one flat record, with their rewards; shares and groups of prompts."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence

import numpy as np

from reval_jax import config as config_lib
from reval_jax import distributed, ragged, replay, types


def join(
    prompts: types.Prompts,
    responses: Sequence[types.Response],
    verdicts: types.Verdicts,
    *,
    round: int,
    policy_version: int,
    config: config_lib.Config,
    greedy_reward: np.ndarray | None = None,
    token_values: np.ndarray | None = None,
) -> types.Trajectories:
    """B trajectories in the order of the responses, with the reward of `update.reward_design` less the penalty for length.

    What needs the whole round or the group, the algorithm's part of the reward, is added when the round is collected.

    Args:
      greedy_reward: f32[prompts], of each prompt's greedy response; None where none was sampled.
      token_values: f32[sum of response lengths, K], what the sampler recorded for the algorithm; None for K = 0.
    """
    num = len(responses)
    prompt = np.array([response.prompt for response in responses], np.int32)
    length = np.array([len(response.tokens) for response in responses], np.int32)
    prompt_tokens = [prompts.tokens[index] for index in prompt]
    reward = rewards(length, verdicts.reward, config)
    return types.Trajectories(
        tokens=ragged.interleave(prompt_tokens, [response.tokens for response in responses]).astype(np.int32),
        log_prob=np.concatenate([response.log_prob for response in responses]),
        token_values=np.zeros((length.sum(dtype=np.int64), 0), np.float32) if token_values is None else token_values,
        prompt_length=np.array([len(tokens) for tokens in prompt_tokens], np.int32),
        response_length=length,
        is_truncated=np.array([response.is_truncated for response in responses], np.bool_),
        raw_reward=verdicts.reward,
        reward=reward,
        greedy_reward=np.zeros(num, np.float32) if greedy_reward is None else greedy_reward[prompt],
        verdict=verdicts.kind,
        row=prompts.row[prompt],
        cursor=prompts.cursor[prompt],
        sample=np.array([response.sample for response in responses], np.int32),
        round=np.full(num, round, np.int32),
        policy_version=np.full(num, policy_version, np.int32),
        use_count=np.zeros(num, np.int32),
        priority=np.full(num, types.NEW, np.float32),
        reference_log_prob=np.zeros(num, np.float32),
        reference_value=np.zeros(num, np.float32),
        reference_version=np.full(num, types.NOT_SCORED, np.int32),
    )


def rewards(lengths: np.ndarray, raw_reward: np.ndarray, config: config_lib.Config) -> np.ndarray:
    """f32[B]: the rewards of responses of these lengths, in tokens, by `update.reward_design` less the penalty for length."""
    return designed_reward(raw_reward, config.update, penalty=length_penalty(lengths, config.rollout))


def length_penalty(length: np.ndarray, settings: config_lib.Rollout) -> np.ndarray:
    """f32[B] from 0 to 1: the reward that responses of these lengths, in tokens, lose.

    DAPO's soft overlong punishment (arXiv 2503.14476): it grows linearly over the last `penalty_tokens` tokens before the
    limit, to 1 at the limit; with 0, over the last fifth.
    """
    if settings.truncated != "penalty":
        return np.zeros(length.shape, np.float32)
    tokens = settings.penalty_tokens or max(1, settings.max_response_tokens // 5)
    free = settings.max_response_tokens - tokens
    return (np.maximum(length - free, 0) / tokens).astype(np.float32)


def designed_reward(
    raw_reward: np.ndarray, settings: config_lib.Update, *, penalty: np.ndarray | float = 0.0
) -> np.ndarray:
    """f32[B]: the reward by `update.reward_design`, less the penalty, before an algorithm compares groups.

    Args:
      raw_reward: f32[B], from 0 to 1.
      penalty: f32[B].
    """
    design = 2 * raw_reward - 1 if settings.reward_design == "signed" else raw_reward
    return np.asarray(design - penalty, np.float32)


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


def share(prompts: types.Prompts, index: int, count: int) -> types.Prompts:
    """The prompts that process `index` of `count` decodes: a contiguous part, so that the parts join in prompt order."""
    total = len(prompts.texts)
    part = slice(index * total // count, (index + 1) * total // count)
    return types.Prompts._make(field[part] for field in prompts)


def gather(local: types.Trajectories) -> types.Trajectories:
    """The trajectories of all processes, in process order, equal on all of them: a collective call."""
    buffer = io.BytesIO()
    np.savez(buffer, **local._asdict())
    payloads = distributed.gather_bytes(buffer.getvalue())
    parts = [dict(np.load(io.BytesIO(payload), allow_pickle=False)) for payload in payloads]
    return replay.concatenate([types.Trajectories(**part) for part in parts])


def join_prompts(parts: Sequence[types.Prompts]) -> types.Prompts:
    """The prompts of all parts, in order."""
    cursor, row, texts, tokens, answers = zip(*parts, strict=True)
    chain = itertools.chain.from_iterable
    return types.Prompts(
        np.concatenate(cursor), np.concatenate(row), tuple(chain(texts)), tuple(chain(tokens)), tuple(chain(answers))
    )


def is_mixed(trajectories: types.Trajectories) -> np.ndarray:
    """bool[B]: whether the raw rewards of the trajectory's group, the samples of its prompt, differ."""
    _, group = np.unique(trajectories.cursor, return_inverse=True)
    highest, lowest = np.zeros(group.max() + 1, np.float32), np.ones(group.max() + 1, np.float32)
    np.maximum.at(highest, group, trajectories.raw_reward)
    np.minimum.at(lowest, group, trajectories.raw_reward)
    return (highest > lowest)[group]


def choose_groups(trajectories: types.Trajectories, num_groups: int) -> np.ndarray:
    """Rows, in order, of `num_groups` groups: the first whose rewards differ, then the first of the others.

    Args:
      trajectories: at least `num_groups` whole groups, in (prompt cursor, sample) order.
    """
    mixed = is_mixed(trajectories)
    cursors, first = np.unique(trajectories.cursor, return_index=True)
    kept = cursors[np.argsort(~mixed[first], kind="stable")[:num_groups]]
    return np.flatnonzero(np.isin(trajectories.cursor, kept))
