"""What was seen of a policy on a benchmark: in words, under the names dashboards know, and beside another policy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from reval_jax import types
from reval_jax.evaluate import estimators, intervals


class Benchmark(NamedTuple):
    """A set of held-out questions."""

    name: str
    dataset: str  # as eval.benchmarks names it
    num_rows: int  # rows of the data set that could be asked
    fingerprint: str  # of all of them, as they are rendered and tokenized
    prompts: types.Prompts  # the questions that were chosen
    prompt_opens_think: bool  # the prompts end inside an open `<think>`


class Result(NamedTuple):
    """What was seen of one policy on one benchmark."""

    name: str  # the benchmark's
    outcomes: estimators.Outcomes
    estimates: dict[str, intervals.Estimate]  # by metric, as `acc/mean@16`
    responses: tuple[str, ...]  # in (problem, sample) order

    @property
    def num_problems(self) -> int:
        """Questions asked."""
        return int(self.outcomes.reward.shape[0])

    @property
    def samples_per_prompt(self) -> int:
        """Responses to each."""
        return int(self.outcomes.reward.shape[1])

    @property
    def unit(self) -> str:
        """What the intervals were resampled over."""
        return "problems" if self.num_problems > 1 else "responses"

    @property
    def mean(self) -> float:
        """avg@k: the mean reward of a response."""
        return self.estimates[f"acc/mean@{self.samples_per_prompt}"].value

    @property
    def standard_error(self) -> float:
        """Of `mean`, over problems; over responses where there is one problem."""
        reward = self.outcomes.reward.astype(np.float64)
        spread = reward.mean(axis=1) if len(reward) > 1 else reward[0]
        return float(spread.std(ddof=1) / np.sqrt(len(spread))) if len(spread) > 1 else float("nan")


def sentence(result: Result) -> str:
    """The result on one line."""
    k, found = result.samples_per_prompt, result.estimates
    named = {f"avg@{k}": f"acc/mean@{k}"}
    if k > 1:
        named |= {f"pass@{k}": f"acc/pass@{k}", f"maj@{k}": f"acc/maj@{k}"}
    problems = "1 problem" if result.num_problems == 1 else f"{result.num_problems} problems"
    return (
        f"{result.name}: {', '.join(f'{said} = {_shown(found[name])}' for said, name in named.items())} "
        f"({intervals.LEVEL:.0%} intervals over {result.unit}), {problems}, "
        f"mean length {found['response_length/mean'].value:.1f} tokens, "
        f"{found['response_length/clip_ratio'].value:.0%} cut, "
        f"{found['verifier/no_answer_ratio'].value:.0%} without an answer"
    )


def comparison(result: Result, difference: dict[str, intervals.Estimate]) -> str:
    """What `differences` found, on one line."""
    k = result.samples_per_prompt
    named = [f"acc/mean@{k}", *(f"acc/{kind}@{k}" for kind in ("pass", "maj") if k > 1)]
    shown = ", ".join(
        f"{name.removeprefix('acc/').replace('mean', 'avg')} {_shown(difference[name], '+')}" for name in named
    )
    pairing = "paired by problem" if result.num_problems > 1 else "one problem, so responses resampled apart"
    return f"{result.name}: {shown} ({intervals.LEVEL:.0%} intervals, {pairing})"


def _shown(estimate: intervals.Estimate, sign: str = "") -> str:
    value, low, high = (format(number, f"{sign}.3f") for number in estimate)
    # One observation, such as one majority of one problem's responses, has no interval.
    return value if np.isnan(estimate.low) else f"{value} [{low}, {high}]"


def as_metrics(result: Result) -> dict[str, float]:
    """The result under the names dashboards know, each metric's interval as `{metric}/low` and `{metric}/high`."""
    prefix = f"val-core/{result.name}"
    found = {f"{prefix}/acc/standard_error": result.standard_error}
    for name, estimate in result.estimates.items():
        found |= {
            f"{prefix}/{name}": estimate.value,
            f"{prefix}/{name}/low": estimate.low,
            f"{prefix}/{name}/high": estimate.high,
        }
    return found


def differences(result: Result, baseline: Result) -> dict[str, intervals.Estimate]:
    """`result` minus `baseline` in every metric, with paired intervals; see `intervals.differences`.

    Raises:
      ValueError: the two are of different benchmarks, or of other numbers of problems or responses.
    """
    if result.name != baseline.name:
        raise ValueError(f"{result.name} and {baseline.name} are two benchmarks. Compare two policies on one.")
    return intervals.differences(result.outcomes, baseline.outcomes)
