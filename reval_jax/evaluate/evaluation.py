"""Evaluation of a policy on benchmarks: loads them, samples responses, grades them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from reval_jax import config as config_lib
from reval_jax import keys, prompts, sampler, types, verifier
from reval_jax.data import rows
from reval_jax.evaluate import estimators, intervals, record
from reval_jax.evaluate.results import Benchmark, Result

if TYPE_CHECKING:
    import transformers


def load(
    config: config_lib.Config, tokenizer: transformers.PreTrainedTokenizerBase, *, date: str = ""
) -> list[Benchmark]:
    """The config's benchmarks, each cut to `eval.max_prompts` questions chosen by a fixed seed.

    Args:
      date: that a chat template prints as today's, YYYY-MM-DD; empty means today.

    Raises:
      ValueError: a data set is missing or malformed, or two benchmarks have the same name.
    """
    benchmarks = []
    for dataset in config.eval.benchmarks:
        # Some published benchmarks call their only split train, others test, so a directory's only split needs no setting.
        split = config.eval.split or rows.only_split(dataset) or config.task.split
        task = dataclasses.replace(config.task, dataset=dataset, split=split)
        data = prompts.load(task, tokenizer, date=date, names=rows.BENCHMARK)
        chosen, _ = prompts.take(data, 0, min(data.size, config.eval.max_prompts), seed=record.CHOICE_SEED)
        benchmarks.append(
            Benchmark(rows.label(dataset), dataset, data.size, data.fingerprint, chosen, data.prompt_opens_think)
        )
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) < len(names):
        raise ValueError(
            f"eval.benchmarks={list(config.eval.benchmarks)} have the names {names} in metrics: two are the same, so their "
            "metrics would collide. Leave one out, rename a file, or prepare a directory again with another --output, which "
            "names it."
        )
    return benchmarks


def check_same_problems(benchmarks: list[Benchmark], baselines: list[Benchmark]) -> None:
    """Refuse a comparison of policies that would answer different questions.

    Raises:
      ValueError: `task.long_prompts=drop` has dropped different rows, because the two tokenizers count tokens differently.
    """
    for one, other in zip(benchmarks, baselines, strict=True):
        if one.num_rows != other.num_rows or one.prompts.answers != other.prompts.answers:
            raise ValueError(
                f"{one.dataset} has {one.num_rows} usable rows with one model's tokenizer and {other.num_rows} with "
                "another's, so the two would answer different problems. Raise task.max_prompt_tokens until no row is dropped."
            )


def run(
    policy: sampler.SamplingPolicy,
    benchmark: Benchmark,
    *,
    config: config_lib.Config,
    round: int,
    grader: verifier.Grader,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Samples `eval.samples_per_prompt` responses to each question and grades them.

    In a run of several processes, each one evaluates the whole benchmark and gets the same result.

    Args:
      round: names the random draws, so that evaluations of different rounds are independent.
      should_stop: asked before each window of sampling, and while responses are graded, whether to give up.

    Raises:
      sampler.Interrupted, verifier.StoppedError: `should_stop` returned True.
      verifier.UnreliableError: more than `verifier.max_failed_share` of the verdicts are failures of the verifier.
    """
    settings = config.eval
    responses = policy.sampler.generate(
        policy.params,
        benchmark.prompts,
        keys.named_key(config.run.seed, f"eval/{benchmark.name}", round),
        samples_per_prompt=settings.samples_per_prompt,
        sampling=sampler.Sampling(settings.temperature, 0, settings.top_p, policy.stop_ids),
        hooks=sampler.Hooks(on_progress=on_progress, should_stop=should_stop),
    )
    texts = prompts.decode(policy.tokenizer, [response.tokens for response in responses], policy.stop_ids)
    answers = [benchmark.prompts.answers[response.prompt] for response in responses]
    verdicts = grader.score(texts, answers, prompt_opens_think=benchmark.prompt_opens_think, should_stop=should_stop)
    verifier.check_failures(verdicts.kind, config.verifier)
    graded = _graded(responses, verdicts, settings.samples_per_prompt)
    return Result(benchmark.name, graded, intervals.estimates(graded), tuple(texts))


def _graded(responses: list[types.Response], verdicts: types.Verdicts, num_samples: int) -> estimators.GradedResponses:
    """The graded responses, one row per problem."""
    starts = range(0, len(responses), num_samples)
    length = np.array([len(response.tokens) for response in responses], np.int32)
    is_truncated = np.array([response.is_truncated for response in responses], np.bool_)
    return estimators.GradedResponses(
        reward=verdicts.reward.reshape(-1, num_samples),
        answer=tuple(verdicts.answer[start : start + num_samples] for start in starts),
        verdict=verdicts.kind.reshape(-1, num_samples),
        length=length.reshape(-1, num_samples),
        is_truncated=is_truncated.reshape(-1, num_samples),
    )
