"""Percentile bootstrap intervals of means over problems, and of the difference of two policies on the same problems."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from reval_jax.evaluate import estimators

LEVEL = 0.95  # nominal probability that an interval contains the true value
RESAMPLES = 2000  # bootstrap samples per interval
SEED = 0  # of the resampling; not run.seed, so that the same responses always give the same interval
BLOCK_BYTES = 2**26  # resampled values in memory at once, bytes


class Estimate(NamedTuple):
    """A number with its interval; low and high are NaN if there is only one observation to resample."""

    value: float
    low: float
    high: float


def estimates(graded: estimators.GradedResponses) -> dict[str, Estimate]:
    """Every metric of `estimators.by_problem` with its interval.

    Problems are resampled with replacement, each with all its responses, because problems differ more than the responses to
    one problem. A single problem has its responses resampled instead (for maj@k, its groups of k); the interval then
    holds for that problem alone.
    """
    values, resampled = estimators.by_problem(graded), _resampled(graded, stream=0)
    return {name: _estimate(float(by_problem.mean()), resampled[name]) for name, by_problem in values.items()}


def differences(one: estimators.GradedResponses, other: estimators.GradedResponses) -> dict[str, Estimate]:
    """`one` minus `other` in every metric; both must have the same problems and number of responses.

    The intervals are paired: a resampled problem counts for both, so its difficulty cancels. With one problem the
    responses of the two are resampled independently.

    Raises:
      ValueError: the numbers of problems or responses differ.
    """
    if one.reward.shape != other.reward.shape:
        raise ValueError(
            f"a comparison of {one.reward.shape} rewards (problems, responses) with {other.reward.shape}: pairs need the same "
            "problems and the same number of responses. Evaluate both with the same settings."
        )
    one_values, other_values = estimators.by_problem(one), estimators.by_problem(other)
    gaps = {name: values - other_values[name] for name, values in one_values.items()}
    if len(one.reward) > 1:
        resampled = _resampled_means(gaps, stream=0)
    else:
        first, second = _resampled(one, stream=0), _resampled(other, stream=1)
        resampled = {name: values - second[name] for name, values in first.items()}
    return {name: _estimate(float(gap.mean()), resampled[name]) for name, gap in gaps.items()}


def of_means(values: dict[str, np.ndarray]) -> dict[str, Estimate]:
    """The mean of each named f64[U] with its interval, all resampled over the same units; NaN bounds for one unit."""
    resampled = _resampled_means(values, stream=0)
    return {name: _estimate(float(by_unit.mean()), resampled[name]) for name, by_unit in values.items()}


def wilson(share: float, num: int) -> Estimate:
    """A share of `num` independent observations with Wilson's interval, which has a width at 0 and at 1 too.

    (share + z^2/2n ± z sqrt(share (1 - share)/n + z^2/4n^2)) / (1 + z^2/n)          (Wilson 1927, z = 1.96)
    """
    z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle, scale = share + z**2 / (2 * num), 1 + z**2 / num
    half = z * math.sqrt(share * (1 - share) / num + z**2 / (4 * num**2))
    # At 0 and 1 a bound equals the share but for rounding.
    return Estimate(share, min(share, max(0.0, (middle - half) / scale)), max(share, min(1.0, (middle + half) / scale)))


def of_groups(values: np.ndarray, group: np.ndarray) -> Estimate:
    """The mean of observations f[B] with its interval over their groups, which are resampled whole.

    One group holds independent observations: Wilson's interval if all are 0 or 1, else a bootstrap over them. Where all are 0, or
    all are 1, no resample differs: then it is Wilson's interval over the groups.

    Args:
      group: i[B], 0, 1, …: equal for observations that may depend on each other, as the responses to one prompt.
    """
    if (values == values[0]).all() and values[0] in (0, 1):
        num_groups = int(group.max()) + 1
        return wilson(float(values[0]), num_groups if num_groups > 1 else values.size)
    if group.max() > 0:
        sums, counts = np.bincount(group, values), np.bincount(group)
        # A group of another size weighs as much as its observations do.
        means = bootstrap(np.stack([sums, counts], axis=-1), lambda drawn: drawn.sum(axis=1), stream=0)
        return _estimate(float(values.mean()), means[:, 0] / means[:, 1])
    if np.isin(values, (0, 1)).all():
        return wilson(float(values.mean()), values.size)
    return of_means({"": values.astype(np.float64)})[""]


def bootstrap(units: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, stream: int) -> np.ndarray:
    """f64[RESAMPLES, ...]: the statistic of RESAMPLES resamples, each of U units drawn with replacement.

    Args:
      units: [U, ...].
      statistic: maps b resamples, [b, U, ...], to f64[b, ...].
      stream: selects independent random numbers.
    """
    num = len(units)
    # Scales raw words to 0 ... U - 1: NumPy promises the stream of raw words, but not the algorithm of `integers`. Scaling 32
    # bits makes some units more likely than others by less than U / 2**32.
    words = np.random.Philox(key=SEED, counter=[0, 0, 0, stream]).random_raw(RESAMPLES * num)
    drawn = ((words >> np.uint64(32)) * np.uint64(num) >> np.uint64(32)).astype(np.int64).reshape(RESAMPLES, num)
    block = max(1, BLOCK_BYTES // max(1, units.nbytes))
    return np.concatenate([statistic(units[drawn[i : i + block]]) for i in range(0, RESAMPLES, block)])


def _resampled(graded: estimators.GradedResponses, *, stream: int) -> dict[str, np.ndarray]:
    """f64[RESAMPLES] of every metric, resampled over problems, or over the responses to a single problem."""
    if len(graded.reward) > 1:
        return _resampled_means(estimators.by_problem(graded), stream=stream)
    reward, answer = graded.reward[0], graded.answer[0]
    resampled = _resampled_means(
        {name: values[0] for name, values in estimators.by_response(graded).items()}, stream=stream
    )
    for k in estimators.group_sizes(len(reward)):
        resampled[f"acc/pass@{k}"] = bootstrap(reward, functools.partial(estimators.pass_at, k=k), stream=stream)
        # A group of k responses has one majority, so maj@k needs several groups to be resampled.
        resampled |= _resampled_means({f"acc/maj@{k}": estimators.maj_at(reward, answer, k)}, stream=stream)
    return resampled


def _resampled_means(values: dict[str, np.ndarray], *, stream: int) -> dict[str, np.ndarray]:
    """f64[RESAMPLES] of each metric's mean, all from the same draws; NaN if there is one observation."""
    units = np.stack(list(values.values()), axis=-1)
    means = bootstrap(units, lambda drawn: drawn.mean(axis=1), stream=stream)
    return dict(zip(values, np.full_like(means, np.nan).T if len(units) == 1 else means.T, strict=True))


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))
