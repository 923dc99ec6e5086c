"""The loss of every method in float64 torch, written from the papers' formulas, one unpadded sequence at a time.

Nothing here is this package's: `transformers` computes the logits, torch the gradients. A method is a function of all
trajectories of one optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import transformers

torch = pytest.importorskip("torch", reason="torch is not installed, on which transformers computes")


class Row(NamedTuple):
    """One trajectory of H response tokens: the policy's numbers with their gradient, and the recorded ones, float64."""

    log_prob: torch.Tensor  # [H] nats
    soft_value: torch.Tensor  # [] nats, logsumexp at the last prompt token
    mean_log_prob: torch.Tensor  # [H] nats, mean over the vocabulary
    value: torch.Tensor  # [H] of the value head
    behaviour: torch.Tensor  # [H] nats, log-probabilities of the sampler
    reward: float = 0.0  # as shaped, or the advantage
    reference_log_prob: float = 0.0  # nats, of the response
    reference_value: float = 0.0  # nats
    columns: torch.Tensor | None = None  # [H, K] recorded per token
    weight: float = 1.0  # importance weight of a replay draw

    @property
    def log_ratio(self) -> torch.Tensor:
        """[H] nats."""
        return self.log_prob - self.behaviour


class Policy:
    """A decoder of `transformers` and a value head, in float64."""

    def __init__(self, directory: str | Path, value_head: dict[str, np.ndarray], *, temperature: float) -> None:
        self.decoder = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float64, attn_implementation="eager", local_files_only=True
        )
        self.head = {
            name: torch.tensor(leaf, dtype=torch.float64, requires_grad=True) for name, leaf in value_head.items()
        }
        self.temperature = temperature

    def score(self, tokens: np.ndarray, prompt: int) -> Row:
        """The policy's numbers of one sequence whose first `prompt` tokens are the prompt; the sampler is the policy."""
        output = self.decoder(torch.asarray(tokens[None].astype(np.int64)), output_hidden_states=True)
        predicting = slice(prompt - 1, len(tokens) - 1)
        logits = output.logits[0, predicting] / self.temperature
        log_softmax = torch.log_softmax(logits, dim=-1)
        targets = torch.asarray(tokens[prompt:].astype(np.int64))
        log_prob = log_softmax[torch.arange(len(targets)), targets]
        value = output.hidden_states[-1][0, predicting] @ self.head["weight"] + self.head["bias"]
        return Row(
            log_prob, torch.logsumexp(logits[0], dim=-1), log_softmax.mean(dim=-1), value, log_prob.detach().clone()
        )

    def gradients(self, loss: torch.Tensor) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Of the decoder's parameters by their published names, and of the value head's."""
        names, parameters = zip(*self.decoder.named_parameters(), strict=True)
        leaves = [*parameters, *self.head.values()]
        found = torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)
        arrays = [gradient.numpy() for gradient in found]
        return dict(zip(names, arrays, strict=False)), dict(zip(self.head, arrays[len(names) :], strict=True))


# --- Value-based methods ---------------------------------------------------------------------------------------------


def reval(rows: list[Row], *, beta: float) -> torch.Tensor:
    """Mean of (V - V_ref + log pi - log pi_ref - r / beta)^2."""
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        gap = row.soft_value - row.reference_value + row.log_prob.sum() - row.reference_log_prob
        total = total + row.weight * (gap - row.reward / beta) ** 2
    return total / len(rows)


def reval_with_constant_value(rows: list[Row], *, beta: float) -> torch.Tensor:
    """ReVal's loss without the gradient of V, as in the paper's Eq. 4."""
    return reval([row._replace(soft_value=row.soft_value.detach()) for row in rows], beta=beta)


def tbrm(rows: list[Row], *, beta: float) -> torch.Tensor:
    """ReVal's loss with the reward r - beta V_ref."""
    return reval([row._replace(reward=row.reward - beta * row.reference_value) for row in rows], beta=beta)


def regression(rows: list[Row], *, beta: float) -> torch.Tensor:
    """Mean of (log pi - log pi_ref - r / beta)^2."""
    return torch.stack([(row.log_prob.sum() - row.reference_log_prob - row.reward / beta) ** 2 for row in rows]).mean()


def oapl(rows: list[Row], *, beta: float) -> torch.Tensor:
    """Mean of (beta (log pi - log pi_ref) - (r - V*))^2 / beta^2, with r - V* as the rows' reward."""
    errors = [beta * (row.log_prob.sum() - row.reference_log_prob) - row.reward for row in rows]
    return sum(error**2 for error in errors) / len(rows) / beta**2


# --- Losses per token of policy gradients ----------------------------------------------------------------------------


def _worse(advantage: torch.Tensor | float, ratio: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(low, high))


def clipped(row: Row, *, low: float, high: float, dual: float, advantage: torch.Tensor | None = None) -> torch.Tensor:
    """max(-A r, -A clip(r, 1 - low, 1 + high)), and at most -A dual where A < 0."""
    advantage = torch.full_like(row.behaviour, row.reward) if advantage is None else advantage
    loss = _worse(advantage, row.log_ratio.clamp(-20, 20).exp(), 1 - low, 1 + high)
    return torch.where(advantage < 0, torch.minimum(loss, -advantage * dual), loss)


def reinforce(row: Row) -> torch.Tensor:
    """-A log pi."""
    return -row.reward * row.log_prob


def cispo(row: Row, *, low: float, high: float) -> torch.Tensor:
    """-sg(clip(r, 1 - low, 1 + high)) A log pi."""
    return row.log_ratio.detach().exp().clamp(1 - low, 1 + high) * reinforce(row)


def quadratic(row: Row, *, strength: float) -> torch.Tensor:
    """-A log pi + strength / 2 (log r)^2."""
    return reinforce(row) + strength / 2 * row.log_ratio**2


def token_weight(row: Row, *, high: float) -> torch.Tensor:
    """min(r, high) of each token, a constant."""
    return row.log_ratio.detach().exp().clamp(max=high)


def sequence_weight(row: Row, *, high: float) -> float:
    """min(product of r, high), a constant."""
    return min(float(row.log_ratio.detach().sum().exp()), high)


def token_mask(row: Row, *, low: float, high: float) -> torch.Tensor:
    """Whether r is within the bounds."""
    ratio = row.log_ratio.detach().exp()
    return ((low <= ratio) & (ratio <= high)).double()


def sequence_mask(row: Row, *, low: float, high: float) -> float:
    """Whether the geometric mean of r is within the bounds."""
    return float(low <= float(row.log_ratio.detach().mean().exp()) <= high)


# --- Means -----------------------------------------------------------------------------------------------------------


def token_mean(rows: list[Row], loss: Callable[[Row], torch.Tensor]) -> torch.Tensor:
    """Over all tokens of all trajectories."""
    return torch.cat([loss(row) for row in rows]).mean()


def trajectory_mean(rows: list[Row], loss: Callable[[Row], torch.Tensor]) -> torch.Tensor:
    """Over trajectories, of the mean over each one's tokens."""
    return torch.stack([loss(row).mean() for row in rows]).mean()


def constant_mean(rows: list[Row], loss: Callable[[Row], torch.Tensor], *, constant: float) -> torch.Tensor:
    """Over trajectories, of the sum over each one's tokens by a constant."""
    return torch.stack([loss(row).sum() for row in rows]).mean() / constant


# --- Methods that are more than a loss per token and a mean ----------------------------------------------------------


def gspo(rows: list[Row], *, low: float, high: float) -> torch.Tensor:
    """Mean over trajectories of max(-A s, -A clip(s, 1 - low, 1 + high)), s the geometric mean of the tokens' ratios."""
    return torch.stack([_worse(row.reward, row.log_ratio.mean().exp(), 1 - low, 1 + high) for row in rows]).mean()


def harmful_squares(rows: list[Row]) -> np.ndarray:
    """Squared log-ratios of the tokens with A > 0 and r > 1, or A < 0 and r < 1."""
    deltas = [(row.log_ratio.detach().numpy(), row.reward) for row in rows]
    return np.concatenate([delta[reward * delta > 0] ** 2 for delta, reward in deltas])


def exact_threshold(squares: np.ndarray, *, budget: float) -> float:
    """The square of M2PO's threshold: where the sum of min(square, threshold) reaches budget x their number."""
    left, remaining = budget * len(squares), len(squares)
    for square in np.sort(squares):
        if square * remaining > left:
            return left / remaining
        left, remaining = left - square, remaining - 1
    return np.inf


def grid_threshold(squares: np.ndarray, *, budget: float) -> float:
    """The same rounded down to a power of 2^(1/8) between 2^-8 and 2^8."""
    exact = exact_threshold(squares, budget=budget)
    if exact == np.inf:
        return exact
    return 2.0 ** (float(np.clip(np.floor(8 * np.log2(exact)), -64, 64)) / 8)


def m2po(rows: list[Row], *, budget: float, parts: list[list[int]] | None = None) -> torch.Tensor:
    """Mean over tokens of max(-A r, -A clip(r)), the clip at the threshold but never within [0.7, 1.5].

    With `parts`, lists of indices of rows, each part has a threshold of its own, as in the published code.
    """
    losses = []
    for part in parts or [list(range(len(rows)))]:
        chosen = [rows[index] for index in part]
        tau = np.sqrt(grid_threshold(harmful_squares(chosen), budget=budget))
        low, high = min(np.exp(-tau), 0.7), max(np.exp(tau), 1.5)
        losses += [_worse(row.reward, row.log_ratio.exp(), low, high) for row in chosen]
    return torch.cat(losses).mean()


def rover(rows: list[Row], *, scale: float) -> torch.Tensor:
    """Mean over tokens of (q - target)^2; its one column is the sampler's mean log-probability over the vocabulary."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        assert row.columns is not None
        gap = (row.mean_log_prob - row.columns[:, 0]).detach()
        for token in range(len(row.log_prob)):
            following = gap[token + 1] if token + 1 < len(row.log_prob) else 0.0
            total = total + (scale * row.log_ratio[token] - row.reward - scale * following) ** 2
            count += 1
    return total / count


def value_loss(rows: list[Row], *, clip: float) -> torch.Tensor:
    """Mean over tokens of half the larger of (V - R)^2 and the same of V within `clip` of the old value."""

    def loss(row: Row) -> torch.Tensor:
        assert row.columns is not None
        old, _, target = row.columns.T
        near = old + (row.value - old).clamp(-clip, clip)
        return 0.5 * torch.maximum((row.value - target) ** 2, (near - target) ** 2)

    return token_mean(rows, loss)


def ppo(rows: list[Row], *, clip: float, value_clip: float, coefficient: float) -> torch.Tensor:
    """Clipped policy loss and clipped value loss; the columns are old value, advantage and return."""

    def loss(row: Row) -> torch.Tensor:
        assert row.columns is not None
        return clipped(row, low=clip, high=clip, dual=np.inf, advantage=row.columns[:, 1])

    return token_mean(rows, loss) + coefficient * value_loss(rows, clip=value_clip)
