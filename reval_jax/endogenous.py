"""The reward that a language model already holds, token by token, and how well it tells right responses from wrong ones.

Li et al. (arXiv 2506.23235) read a model's logits as soft Q-values: the inverse soft Bellman operator then gives the reward
under which the model is optimal. NumPy only: `token_scores` computes log pi and V.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from reval_jax import ragged

DISCOUNTS = (0.9, 0.99)


class Aucs(NamedTuple):
    """Each scorer's AUC on each of G prompts that have both right and wrong responses."""

    prompts: np.ndarray  # i64[G] the prompts, as numbered by the caller, ascending
    num_responses: int  # to these prompts
    by_scorer: dict[str, np.ndarray]  # f64[G], by the names of `response_scores`


def token_rewards(log_prob: np.ndarray, soft_value: np.ndarray, response_length: np.ndarray) -> np.ndarray:
    """The endogenous reward of every response token, f64[sum of response_length], in nats.

        r(s_h, a_h) = Q(s_h, a_h) - V(s_{h+1}) = log pi(a_h | s_h) + V(s_h) - V(s_{h+1}),  V(s_{H+1}) = 0
                                                                  (inverse soft Bellman, Li et al., arXiv 2506.23235)

    A response that was cut at the token limit ends like any other, with V(s_{H+1}) = 0, so that every response's rewards
    sum to log pi(tau) + V(s_1).

    Args:
      log_prob, soft_value: f[sum of response_length], as in `token_scores.TokenScores`.
      response_length: i[B], each 1 or more.
    """
    value = soft_value.astype(np.float64)
    following = np.append(value[1:], 0.0)
    following[ragged.starts(response_length)[1:] - 1] = 0.0
    following[-1] = 0.0
    return log_prob.astype(np.float64) + value - following


def response_scores(log_prob: np.ndarray, soft_value: np.ndarray, response_length: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of each response, f64[B] by name; arguments as for `token_rewards`.

    `return` is the sum R of the token rewards, log pi(tau) + V(s_1): V(s_1) is the same for all responses to a prompt, so
    within a prompt it ranks them as `log_prob` does. `return_per_token` is R / H, `discounted_0.9` the sum of
    0.9^(h-1) r_h, `log_prob` log pi(tau) and `log_prob_per_token` log pi(tau) / H.
    """
    rewards = token_rewards(log_prob, soft_value, response_length)
    starts, length = ragged.starts(response_length), response_length.astype(np.float64)
    offset = ragged.offsets(response_length)
    total, sum_log_prob = np.add.reduceat(rewards, starts), np.add.reduceat(log_prob.astype(np.float64), starts)
    discounted = {f"discounted_{each}": np.add.reduceat(rewards * each**offset, starts) for each in DISCOUNTS}
    return {
        "return": total,
        "return_per_token": total / length,
        **discounted,
        "log_prob": sum_log_prob,
        "log_prob_per_token": sum_log_prob / length,
    }


def auc(right: np.ndarray, wrong: np.ndarray) -> float:
    """The share of pairs (right, wrong) in which the right response has the higher score; a tie counts half.

    Args:
      right, wrong: scores f[n] and f[m], each with one element or more.
    """
    ordered = np.sort(wrong)
    below, not_above = np.searchsorted(ordered, right, "left"), np.searchsorted(ordered, right, "right")
    return float((below + not_above).mean() / (2 * len(wrong)))


def aucs(scores: dict[str, np.ndarray], is_right: np.ndarray, prompt: np.ndarray) -> Aucs:
    """Each scorer's AUC within the responses to each prompt; prompts whose responses are all right or all wrong are left out.

    Args:
      scores: f64[B] by name.
      is_right: bool[B].
      prompt: i[B], which prompt the response answers.
    """
    mixed = np.intersect1d(prompt[is_right], prompt[~is_right])
    groups = [(prompt == each) for each in mixed]
    return Aucs(
        mixed,
        int(sum(group.sum() for group in groups)),
        {
            name: np.array([auc(score[group & is_right], score[group & ~is_right]) for group in groups], np.float64)
            for name, score in scores.items()
        },
    )
