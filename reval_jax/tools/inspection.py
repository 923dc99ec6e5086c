"""`reval inspect`: the endogenous reward of every token of rollouts under any policy, and its AUC against correctness."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from reval_jax import batch, endogenous, prompts, ragged, replay, rollout_files, token_scores, trajectories, types
from reval_jax import config as config_lib
from reval_jax.data import files, rows
from reval_jax.evaluate import intervals
from reval_jax.tools.report import choice, token_file

if TYPE_CHECKING:
    import transformers

    from reval_jax import inference

FORMAT = 1
"""Increased when a key of the JSON is removed or changes its meaning."""

CHUNK = 64  # responses that are packed and scored at once

BASELINE = "log_prob"  # the scorer that the others are compared with


class Rollout(NamedTuple):
    """One line of a rollouts file."""

    where: str  # file:line
    prompt: str  # rendered
    response: str  # its end token's text included
    verdict: str  # of types.VERDICTS; "ok" is right
    num_tokens: int | None  # that the sampler counted; None where the file does not say
    tokens: tuple[
        int, ...
    ] = ()  # that were sampled; empty where the file, of an earlier version or another program, has none


class Inspection(NamedTuple):
    """The scores of B responses, which are read in the order of the files."""

    rollouts: tuple[Rollout, ...]
    tokens: tuple[np.ndarray, ...]  # B arrays i32[H], of the responses
    log_prob: tuple[np.ndarray, ...]  # B arrays f32[H], nats
    soft_value: tuple[np.ndarray, ...]  # B arrays f32[H], nats
    rewards: tuple[np.ndarray, ...]  # B arrays f64[H], `endogenous.token_rewards`
    scores: dict[str, np.ndarray]  # f64[B], `endogenous.response_scores`
    aucs: endogenous.Aucs
    estimates: dict[str, intervals.Estimate]  # the mean AUC over prompts, by scorer; empty without a mixed prompt
    gains: dict[str, intervals.Estimate]  # the same minus the baseline's, paired by prompt

    @property
    def num_retokenized(self) -> int:
        """Responses whose text has become another number of tokens than the sampler counted."""
        pairs = zip(self.rollouts, self.tokens, strict=True)
        return sum(each.num_tokens not in (None, len(tokens)) for each, tokens in pairs)


def read(paths: Iterable[Path]) -> tuple[Rollout, ...]:
    """The lines of rollouts files, in order.

    Raises:
      ValueError: a file cannot be read or a line is no rollout (the message names it), or there is none.
    """
    rollouts = tuple(_rollout(where, record) for path in paths for where, record in _records(path))
    if not rollouts:
        raise ValueError("the rollouts files have no line. Name files of a round with at least one response.")
    return rollouts


def _records(path: Path) -> Iterable[rows.Record]:
    if path.suffix == rollout_files.COMPRESSED:
        return rows.parsed_lines(path, rollout_files.read(path).split(b"\n"))
    return files.read(path)


def _rollout(where: str, record: Any) -> Rollout:
    reason = None
    if isinstance(record, rows.BadRecord):
        reason = record.reason
    elif not isinstance(record, dict):
        reason = "not a JSON object"
    else:
        missing = [name for name in ("prompt", "response") if not (isinstance(record.get(name), str) and record[name])]
        if missing:
            reason = f"'{missing[0]}' is missing, empty or not text"
        elif record.get("verdict") not in types.VERDICTS:
            reason = f"'verdict' is {record.get('verdict')!r}, not one of {', '.join(types.VERDICTS)}"
    if reason:
        raise ValueError(
            f"{where}: {reason}. A line of a rollouts file has the texts 'prompt' and 'response' and a 'verdict', as in "
            "RUN/rollouts/round_000001.jsonl.gz."
        )
    return _from_record(where, record)


def _from_record(where: str, record: types.Json) -> Rollout:
    ids = record.get("tokens")
    tokens = tuple(ids) if isinstance(ids, list) and all(type(each) is int and each >= 0 for each in ids) else ()
    return Rollout(where, record["prompt"], record["response"], record["verdict"], record.get("num_tokens"), tokens)


def is_right(rollouts: Iterable[Rollout]) -> np.ndarray:
    """bool[B]: the verdict is `ok`."""
    return np.array([each.verdict == "ok" for each in rollouts], np.bool_)


def prompt_index(rollouts: Iterable[Rollout]) -> np.ndarray:
    """i64[B]: which prompt, numbered by first appearance of its text in all files together."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(each.prompt, len(numbers)) for each in rollouts], np.int64)


def why_no_auc(rollouts: tuple[Rollout, ...]) -> str | None:
    """Why no AUC exists, or None."""
    right, prompt = is_right(rollouts), prompt_index(rollouts)
    if np.intersect1d(prompt[right], prompt[~right]).size:
        return None
    return (
        f"no prompt has both right and wrong responses ({right.sum()} of {right.size} responses to {prompt.max() + 1} "
        "prompts are right), so no AUC exists"
    )


def tokenized(
    rollouts: tuple[Rollout, ...],
    config: config_lib.Config,
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    vocab_size: int,
) -> types.Trajectories:
    """The rollouts as tokens of this tokenizer: those that were sampled, or else those of the text.

    Sampled ids are another tokenizer's unless this one decodes them to the response's text. Prompt and response are tokenized
    apart.

    Args:
      config: `task.template` decides whether a beginning-of-sequence token comes first, as it did in the run.
      vocab_size: of the model.

    Raises:
      ValueError: a text has no token.
    """
    index = prompt_index(rollouts)
    texts = tuple(dict.fromkeys(each.prompt for each in rollouts))
    prompt_tokens = tuple(prompts.encode_rendered(list(texts), config.task.template, tokenizer))
    responses = _response_tokens(rollouts, tokenizer, vocab_size)
    for each, prompt, response in zip(rollouts, index, responses, strict=True):
        if not len(prompt_tokens[prompt]) or not response:
            raise ValueError(f"{each.where}: with this tokenizer its prompt or response has no token. Remove the line.")
    order = np.arange(len(texts), dtype=np.int64)
    unsampled = [np.zeros(len(response), np.float32) for response in responses]
    return trajectories.join(
        types.Prompts(order, order, texts, prompt_tokens, ("",) * len(texts)),
        [
            types.Response(int(prompt), sample, np.array(response, np.int32), zeros, zeros, is_truncated=False)
            for sample, (prompt, response, zeros) in enumerate(zip(index, responses, unsampled, strict=True))
        ],
        types.Verdicts(
            is_right(rollouts).astype(np.float32),
            np.array([types.VERDICTS.index(each.verdict) for each in rollouts], np.int8),
            ("",) * len(rollouts),
        ),
        round=0,
        policy_version=0,
        config=config,
    )


def _response_tokens(
    rollouts: tuple[Rollout, ...], tokenizer: transformers.PreTrainedTokenizerBase, vocab_size: int
) -> list[list[int]]:
    kept = [list(each.tokens) if each.tokens and max(each.tokens) < vocab_size else [] for each in rollouts]
    decoded = tokenizer.batch_decode(kept, skip_special_tokens=False)
    is_own = [bool(ids) and text == each.response for ids, text, each in zip(kept, decoded, rollouts, strict=True)]
    texts = [each.response for each, own in zip(rollouts, is_own, strict=True) if not own]
    others = iter(prompts.encode(texts, tokenizer) if texts else [])
    return [ids if own else next(others) for ids, own in zip(kept, is_own, strict=True)]


def scored(
    policy: inference.Policy,
    tokens: types.Trajectories,
    config: config_lib.Config,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> token_scores.TokenScores:
    """Token scores of the trajectories on the host, at `rollout.temperature`.

    Args:
      on_progress: called with (responses scored, responses in all).
    """
    scorer = token_scores.make_scorer(policy.architecture, policy.meshes.learner, config=config)
    limits = batch.Limits(CHUNK, config.update.micro_batch_tokens, int(tokens.response_length.max()))
    parts = []
    for start in range(0, tokens.size, CHUNK):
        end = min(start + CHUNK, tokens.size)
        chunk = replay.gather(tokens, np.arange(start, end))
        parts.append(token_scores.score(scorer, policy.params, chunk, policy.meshes.learner, limits=limits))
        if on_progress:
            on_progress(end, tokens.size)
    return jax.tree.map(lambda *each: np.concatenate(each), *parts)


def inspect(rollouts: tuple[Rollout, ...], tokens: types.Trajectories, scores: token_scores.TokenScores) -> Inspection:
    """Rewards, scores and AUCs of the rollouts.

    Args:
      tokens: of `tokenized`.
      scores: of `scored`.
    """
    length = tokens.response_length
    log_prob, soft_value = np.asarray(scores.log_prob), np.asarray(scores.soft_value)
    by_response = endogenous.response_scores(log_prob, soft_value, length)
    aucs = endogenous.aucs(by_response, is_right(rollouts), prompt_index(rollouts))
    estimates: dict[str, intervals.Estimate] = {}
    gains: dict[str, intervals.Estimate] = {}
    if aucs.prompts.size:
        estimates = intervals.of_means(aucs.by_scorer)
        baseline = aucs.by_scorer[BASELINE]
        gains = intervals.of_means({name: each - baseline for name, each in aucs.by_scorer.items()})
    of_all = ragged.split(tokens.tokens, tokens.length)
    return Inspection(
        rollouts,
        tuple(part[start:] for part, start in zip(of_all, tokens.prompt_length, strict=True)),
        tuple(ragged.split(log_prob, length)),
        tuple(ragged.split(soft_value, length)),
        tuple(ragged.split(endogenous.token_rewards(log_prob, soft_value, length), length)),
        by_response,
        aucs,
        estimates,
        gains,
    )


def summary(inspection: Inspection) -> str:
    """The AUCs as a table for a terminal."""
    right, num_mixed = is_right(inspection.rollouts), inspection.aucs.prompts.size
    lines = [
        f"{right.size} responses to {_prompts(prompt_index(inspection.rollouts).max() + 1)}, {right.sum()} right; AUC over "
        f"{_prompts(num_mixed)} with right and wrong responses ({inspection.aucs.num_responses} responses)"
        + (f", {intervals.LEVEL:.0%} intervals over prompts" if num_mixed > 1 else "")
    ]
    if inspection.estimates:
        lines.append(f"{'score':<20} {'AUC':<23} minus {BASELINE}")
    for name, estimate in inspection.estimates.items():
        gain = "" if name == BASELINE else _formatted(inspection.gains[name], "+")
        lines.append(f"{name:<20} {_formatted(estimate):<23} {gain}".rstrip())
    return "\n".join(lines)


def _prompts(count: int) -> str:
    return "1 prompt" if count == 1 else f"{count} prompts"


def _formatted(estimate: intervals.Estimate, sign: str = "") -> str:
    value, low, high = (format(number, f"{sign}.3f") for number in estimate)
    # One prompt has no interval.
    return value if np.isnan(estimate.low) else f"{value} [{low}, {high}]"


def as_json(
    inspection: Inspection,
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    command: str,
    model: str,
    paths: Iterable[Path],
    temperature: float,
) -> types.Json:
    """The results, with a right and a wrong response as examples; docs/inspect.md explains the keys.

    Args:
      command: as the user typed it.
      model: the model or checkpoint that scored.
      paths: of the rollouts files.
      temperature: that the logits were divided by.
    """
    rollouts, right = inspection.rollouts, is_right(inspection.rollouts)
    return {
        "format": FORMAT,
        "command": command,
        "model": model,
        "rollouts": [str(path) for path in paths],
        "temperature": temperature,
        "num_prompts": int(prompt_index(rollouts).max()) + 1,
        "num_responses": len(rollouts),
        "num_right": int(right.sum()),
        "num_mixed_prompts": int(inspection.aucs.prompts.size),
        "num_mixed_responses": inspection.aucs.num_responses,
        "num_retokenized": inspection.num_retokenized,
        "intervals": {
            "method": "percentile bootstrap over prompts",
            "level": intervals.LEVEL,
            "resamples": intervals.RESAMPLES,
            "seed": intervals.SEED,
        },
        "scores": {
            name: {"auc": estimate._asdict(), f"minus_{BASELINE}": inspection.gains[name]._asdict()}
            for name, estimate in inspection.estimates.items()
        },
        "examples": [response_record(inspection, index, tokenizer) for index in _examples(inspection)],
    }


def _examples(inspection: Inspection) -> list[int]:
    """The first right and the first wrong response to the first prompt with both, or the first response."""
    if not inspection.aucs.prompts.size:
        return [0]
    right = is_right(inspection.rollouts)
    answers = prompt_index(inspection.rollouts) == inspection.aucs.prompts[0]
    return [int(np.flatnonzero(answers & right)[0]), int(np.flatnonzero(answers & ~right)[0])]


def response_records(inspection: Inspection, tokenizer: transformers.PreTrainedTokenizerBase) -> Iterator[types.Json]:
    """`response_record` of every response, in order."""
    return (response_record(inspection, index, tokenizer) for index in range(len(inspection.rollouts)))


def response_record(inspection: Inspection, index: int, tokenizer: transformers.PreTrainedTokenizerBase) -> types.Json:
    """One response with its scores, and its tokens' texts and numbers; these are rounded to 1e-6 nat."""
    rollout, tokens = inspection.rollouts[index], inspection.tokens[index].tolist()
    return {
        "where": rollout.where,
        "prompt": rollout.prompt,
        "response": rollout.response,
        "verdict": rollout.verdict,
        "scores": {name: float(values[index]) for name, values in inspection.scores.items()},
        "token_ids": tokens,
        "tokens": tokenizer.batch_decode([[token] for token in tokens], skip_special_tokens=False),
        "log_prob": _rounded(inspection.log_prob[index]),
        "soft_value": _rounded(inspection.soft_value[index]),
        "endogenous_reward": _rounded(inspection.rewards[index]),
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]


class Sample(NamedTuple):
    """Responses of a run that its report colours, spread over its rounds."""

    keys: tuple[tuple[int, int], ...]  # round, and line of the round's file from 0
    rollouts: tuple[Rollout, ...]


def sample_for_report(files: Mapping[int, Path], *, max_tokens: int) -> Sample:
    """Responses of about so many tokens together, from the first of the rounds to the last.

    Args:
      files: of each round.
    """
    found = choice.choose(files, budget=max_tokens, cost=lambda record: record["num_tokens"])
    kept = sorted((row for row in found.rows if row.record["response"]), key=lambda row: row.key)
    where = [f"{files[row.round]}:{row.line + 1}" for row in kept]
    return Sample(
        tuple(row.key for row in kept),
        tuple(_from_record(place, row.record) for place, row in zip(where, kept, strict=True)),
    )


def token_rows(
    sample: Sample,
    tokens: types.Trajectories,
    scores: token_scores.TokenScores,
    reference_scores: token_scores.TokenScores,
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> Iterator[types.Json]:
    """The rows of `token_file.write`, rounded to 1e-3 nat.

    Args:
      tokens: of `tokenized`.
      scores, reference_scores: of `scored`, under the run's last checkpoint and its initial model.
    """
    length = tokens.response_length
    log_ratio = np.asarray(scores.log_prob) - np.asarray(reference_scores.log_prob)
    rewards = [
        endogenous.token_rewards(np.asarray(each.log_prob), np.asarray(each.soft_value), length)
        for each in (scores, reference_scores)
    ]
    columns = [ragged.split(values, length) for values in (log_ratio, *rewards)]
    of_all = ragged.split(tokens.tokens, tokens.length)
    for index, (key, rollout) in enumerate(zip(sample.keys, sample.rollouts, strict=True)):
        ids = of_all[index][tokens.prompt_length[index] :].tolist()
        numbers = ([round(float(value), 3) for value in column[index]] for column in columns)
        yield {
            "round": key[0],
            "line": key[1],
            "digest": token_file.digest(rollout.prompt, rollout.response),
            "tokens": tokenizer.batch_decode([[token] for token in ids], skip_special_tokens=False),
            **dict(zip(token_file.SCORES, numbers, strict=True)),
        }
