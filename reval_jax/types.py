"""Records that cross modules, with their shapes.

Dimension letters, in every module that gives no others: B trajectories, T tokens of a row, P prompt tokens, H response tokens (in
a sum over a trajectory), V vocabulary, D width, L layers; of a batch M micro-batches, R rows, C
response tokens of a row, S slots of a row. `model.forward` lists the model's.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np

PyTree = Any
"""Arrays, shapes, shardings or partition specs in nested containers: whatever `jax.tree.map` walks."""

Json = dict[str, Any]
"""A JSON object."""

VERDICTS = ("ok", "wrong", "unparsed", "no_box", "unclosed_think", "limit", "timeout", "crash")
"""Kinds of a verifier's verdict; a trajectory stores the index into this tuple."""

Value = TypeVar("Value")

NOT_SCORED = -1
"""Reference version of a trajectory that no reference has scored yet."""

UNKNOWN_ROW = -1
"""Row of the data set of a trajectory that a run of an earlier version sampled."""

NEW = -1.0
"""Priority of a trajectory whose residual no update has computed yet: it counts as the largest in the buffer."""


def present(value: Value | None) -> Value:
    """A value that is there, because the record of the algorithm that reads it says so.

    Raises:
      TypeError: it is not.
    """
    if value is None:
        raise TypeError("a number that the algorithm reads was not computed: name it in Algorithm.reads")
    return value


class Prompts(NamedTuple):
    """n prompts in the order of the prompt cursor."""

    cursor: np.ndarray  # i64[n] position in the endless prompt order; names the prompt in every random draw
    row: np.ndarray  # i64[n] row of the data set
    texts: tuple[str, ...]  # n rendered prompts
    tokens: tuple[np.ndarray, ...]  # n arrays i32[P_i]
    answers: tuple[str, ...]  # n gold answers


class Response(NamedTuple):
    """One sampled response, n tokens long."""

    prompt: int  # index into the prompts of the call
    sample: int  # 0 … N−1
    tokens: np.ndarray  # i32[n] the end-of-sequence token included
    log_prob: np.ndarray  # f32[n] nats, under the untruncated softmax(logits / temperature)
    truncated_log_prob: np.ndarray  # f32[n] nats, after top-k and top-p: what it was sampled from
    is_truncated: bool  # cut at the length limit
    # f32[n] nats, mean of log softmax(logits / temperature) over the vocabulary, in the state that the token was sampled
    # from; None where it was not asked for (`sampler.Sampling.records_mean_log_prob`)
    mean_log_prob: np.ndarray | None = None


class Verdicts(NamedTuple):
    """B graded responses."""

    reward: np.ndarray  # f32[B] 1 for a right answer, else 0; a function of your own may give anything between
    kind: np.ndarray  # i8[B] index into VERDICTS
    answer: tuple[str, ...]  # B answers in normal form, for maj@k; "" where the response has none


class Trajectories(NamedTuple):
    """B finished trajectories: one array per field, ragged parts end to end (`ragged`).

    One record from sampler to replay buffer to batch.
    """

    tokens: np.ndarray  # i32[sum of prompt_length + response_length] each prompt followed by its response
    # f32[sum of response_length] nats, under the policy that sampled them; of `rollout.pool`, the learner when they joined
    log_prob: np.ndarray
    token_values: (
        np.ndarray
    )  # f32[sum of response_length, K] what the algorithm keeps per response token; K is 0 for most
    prompt_length: np.ndarray  # i32[B] tokens
    response_length: np.ndarray  # i32[B] tokens
    is_truncated: np.ndarray  # bool[B]
    raw_reward: np.ndarray  # f32[B] from the verifier
    reward: np.ndarray  # f32[B] for the objective: by update.reward_design less penalties, then shaped by the algorithm
    greedy_reward: np.ndarray  # f32[B] reward of the prompt's greedy response; 0 where none was sampled
    verdict: np.ndarray  # i8[B] index into VERDICTS
    row: np.ndarray  # i64[B] row of the data set, or UNKNOWN_ROW
    cursor: np.ndarray  # i64[B] prompt cursor
    # i32[B] sample index of that prompt; from rollout.samples_per_prompt on, a response of `rollout.pool`
    sample: np.ndarray
    round: np.ndarray  # i32[B] round it was sampled in, or joined from the pool
    policy_version: np.ndarray  # i32[B] updates of the learner when it was sampled
    use_count: np.ndarray  # i32[B] updates that trained on it
    priority: np.ndarray  # f32[B] of replay draws by residual; NEW before the first update that read it
    reference_log_prob: np.ndarray  # f32[B] nats, log pi_ref(tau)
    reference_value: np.ndarray  # f32[B] nats, V_ref(s1)
    reference_version: np.ndarray  # i32[B] version of the reference that computed the two; NOT_SCORED before the first

    @property
    def size(self) -> int:
        """Number of trajectories."""
        return int(self.prompt_length.shape[0])

    @property
    def length(self) -> np.ndarray:
        """i32[B] tokens of prompt and response together."""
        return self.prompt_length + self.response_length

    @property
    def group(self) -> np.ndarray:
        """i32[B] 0, 1, …: the same number for the samples of one prompt."""
        return np.unique(self.cursor, return_inverse=True)[1].astype(np.int32)
