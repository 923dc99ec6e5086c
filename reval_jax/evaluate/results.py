"""Evaluation results: one-line summaries, metric names, comparison of two policies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from reval_jax import types
from reval_jax.evaluate import estimators, intervals


class Benchmark(NamedTuple):
    """A benchmark: the questions that were chosen from a data set."""

    name: str
    dataset: str  # its entry in eval.benchmarks
    num_rows: int  # usable rows of the data set
    fingerprint: str  # of all usable rows, rendered and tokenized
    prompts: types.Prompts  # the chosen questions
    prompt_opens_think: bool  # every prompt ends with an open `<think>`


class Result(NamedTuple):
    """The result of one policy on one benchmark."""

    name: str  # of the benchmark
    graded: estimators.GradedResponses
    estimates: dict[str, intervals.Estimate]  # by metric, such as `acc/mean@16`
    responses: tuple[str, ...]  # in (problem, sample) order

    @property
    def num_problems(self) -> int:
        """Number of questions."""
        return int(self.graded.reward.shape[0])

    @property
    def samples_per_prompt(self) -> int:
        """Number of responses to each question."""
        return int(self.graded.reward.shape[1])

    @property
    def unit(self) -> str:
        """The resampled unit of the intervals."""
        return "problems" if self.num_problems > 1 else "responses"

    @property
    def mean(self) -> float:
        """avg@k: the mean reward of a response."""
        return self.estimates[f"acc/mean@{self.samples_per_prompt}"].value

    @property
    def standard_error(self) -> float:
        """Standard error of `mean` over problems, or over the responses to a single problem."""
        reward = self.graded.reward.astype(np.float64)
        spread = reward.mean(axis=1) if len(reward) > 1 else reward[0]
        return float(spread.std(ddof=1) / np.sqrt(len(spread))) if len(spread) > 1 else float("nan")


def summary(result: Result) -> str:
    """The result on one line."""
    k, estimates = result.samples_per_prompt, result.estimates
    names = {f"avg@{k}": f"acc/mean@{k}"}
    if k > 1:
        names |= {f"pass@{k}": f"acc/pass@{k}", f"maj@{k}": f"acc/maj@{k}"}
    problems = "1 problem" if result.num_problems == 1 else f"{result.num_problems} problems"
    return (
        f"{result.name}: {', '.join(f'{label} = {_formatted(estimates[name])}' for label, name in names.items())} "
        f"({intervals.LEVEL:.0%} intervals over {result.unit}), {problems}, "
        f"mean length {estimates['response_length/mean'].value:.1f} tokens, "
        f"{estimates['response_length/clip_ratio'].value:.0%} cut, "
        f"{estimates['verifier/no_answer_ratio'].value:.0%} without an answer"
    )


def comparison_summary(result: Result, difference: dict[str, intervals.Estimate]) -> str:
    """The result of `differences` on one line."""
    k = result.samples_per_prompt
    names = [f"acc/mean@{k}", *(f"acc/{kind}@{k}" for kind in ("pass", "maj") if k > 1)]
    values = ", ".join(
        f"{name.removeprefix('acc/').replace('mean', 'avg')} {_formatted(difference[name], '+')}" for name in names
    )
    pairing = "paired by problem" if result.num_problems > 1 else "one problem, so responses resampled independently"
    return f"{result.name}: {values} ({intervals.LEVEL:.0%} intervals, {pairing})"


def _formatted(estimate: intervals.Estimate, sign: str = "") -> str:
    value, low, high = (format(number, f"{sign}.3f") for number in estimate)
    # A single observation, such as maj@n of one problem, has no interval.
    return value if np.isnan(estimate.low) else f"{value} [{low}, {high}]"


def as_metrics(result: Result) -> dict[str, float]:
    """The result by metric name, with each interval as `{metric}/low` and `{metric}/high`."""
    prefix = f"val-core/{result.name}"
    metrics = {f"{prefix}/acc/standard_error": result.standard_error}
    for name, estimate in result.estimates.items():
        metrics |= {
            f"{prefix}/{name}": estimate.value,
            f"{prefix}/{name}/low": estimate.low,
            f"{prefix}/{name}/high": estimate.high,
        }
    return metrics


def differences(result: Result, baseline: Result) -> dict[str, intervals.Estimate]:
    """`result` minus `baseline` in every metric, with paired intervals; see `intervals.differences`.

    Raises:
      ValueError: the benchmarks, or the numbers of problems or responses, differ.
    """
    if result.name != baseline.name:
        raise ValueError(
            f"{result.name} and {baseline.name} are two benchmarks. Compare two policies on the same benchmark."
        )
    return intervals.differences(result.graded, baseline.graded)
