"""Verified responses of an earlier run, which join the groups of the same questions in another run (RLEP, arXiv 2507.07451).

A pool holds exact token ids, from the replay buffers in a run's checkpoints. A question without stored responses gets none, where
the paper's code pads its group: every group here is of real responses only.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reval_jax import checkpoint, durable, keys, prompts, ragged, replay, run_directory, trajectories, types
from reval_jax import config as config_lib

FIELDS = ("tokens", "prompt_length", "response_length", "is_truncated", "row")
"""Fields of `types.Trajectories` that a pool stores. The others are those of the run that reads it."""
TASK = ("dataset", "split", "template", "instruction", "max_prompt_tokens")
"""Settings of `task` that decide which tokens a row's prompt has; stored, so that a message can name the one that differs."""
RIGHT = types.VERDICTS.index("ok")


class Pool(NamedTuple):
    """Right responses of an earlier run, in ascending order of their question's row."""

    trajectories: (
        types.Trajectories
    )  # of FIELDS, with the verdict `ok` and the raw reward 1; the other fields are empty
    about: types.Json  # data_fingerprint, task, run_dir and rounds of the run that sampled them

    @property
    def num_questions(self) -> int:
        """Different questions."""
        return int(np.unique(self.trajectories.row).size)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of everything that training reads."""
        digest = hashlib.sha256(str(self.about["data_fingerprint"]).encode())
        for name in FIELDS:
            values = getattr(self.trajectories, name)
            digest.update(f"{name} {values.dtype} {values.shape} ".encode() + values.tobytes())
        return digest.hexdigest()[:16]


def collect(run_dir: Path, rounds: Sequence[int] = ()) -> Pool:
    """The right responses in the replay buffers that a run saved, each response to a question once.

    Args:
      rounds: the checkpoints to read; none for all that the run has kept.

    Raises:
      ValueError: `run_dir` is not a run's, such a checkpoint does not exist, or no response in them is right.
    """
    directory = run_directory.RunDirectory(run_dir)
    config, about, _ = run_directory.recorded(directory)
    task = config.task
    store = checkpoint.Store.open(directory.checkpoints)
    try:
        chosen = sorted({store.choose(round) for round in rounds}) or store.whole()
        buffers = replay.concatenate([store.restore_replay(round) for round in chosen])
    finally:
        store.close()
    is_right = (buffers.verdict == RIGHT) & (buffers.row != types.UNKNOWN_ROW)
    kept = _different(buffers, np.flatnonzero(is_right))
    if not kept.size:
        named = ", ".join(f"round {round}" for round in chosen)
        raise ValueError(
            f"{run_dir} has no right response among the {buffers.size} in the replay buffers of its checkpoints (of {named}). "
            "Train until some responses are right; a larger replay.capacity or checkpoint.keep keeps more of them."
        )
    right = replay.gather(buffers, kept)
    return of(
        {name: getattr(right, name) for name in FIELDS},
        {
            "data_fingerprint": about["data_fingerprint"],
            "task": {name: getattr(task, name) for name in TASK},
            "run_dir": str(run_dir),
            "rounds": chosen,
        },
    )


def _different(all_: types.Trajectories, candidates: np.ndarray) -> np.ndarray:
    """Those of the candidates i64[n] that differ in question or response from every earlier one, by question."""
    tokens = ragged.split(all_.tokens, all_.length)
    first: dict[tuple[int, bytes], int] = {}
    for index in candidates.tolist():
        first.setdefault((int(all_.row[index]), tokens[index][all_.prompt_length[index] :].tobytes()), index)
    kept = np.array(list(first.values()), np.int64)
    return kept[np.argsort(all_.row[kept], kind="stable")]


def of(fields: dict[str, np.ndarray], about: types.Json) -> Pool:
    """The pool of right responses with these FIELDS, in ascending order of their row."""
    completed = replay.completed(fields)
    size = completed.size
    return Pool(
        completed._replace(
            raw_reward=np.ones(size, np.float32),
            verdict=np.full(size, RIGHT, np.int8),
            reference_version=np.full(size, types.NOT_SCORED, np.int32),
        ),
        about,
    )


def save(pool: Pool, path: Path) -> None:
    """Writes the pool as one npz file, complete or not at all.

    Raises:
      ValueError: the file exists or cannot be written.
    """
    if path.exists():
        raise ValueError(f"--output {path} exists. Name a new file, or remove that one first.")
    about = {**pool.about, "pool_fingerprint": pool.fingerprint}
    try:
        with durable.output(path, is_new=True) as file:
            fields = {name: getattr(pool.trajectories, name) for name in FIELDS}
            np.savez_compressed(file, allow_pickle=False, about=np.array(json.dumps(about, allow_nan=False)), **fields)
    except OSError as error:
        raise ValueError(f"--output {path} cannot be written: {error.strerror}. Choose another file.") from error


def load(path: str | Path) -> Pool:
    """The pool that `save` wrote.

    Raises:
      ValueError: the file is missing, damaged or no pool.
    """
    try:
        with zipfile.ZipFile(os.path.expanduser(path)) as archive:
            # Whole members first: their checksums are compared before anything in them is believed.
            members = {name: io.BytesIO(archive.read(f"{name}.npy")) for name in ("about", *FIELDS)}
        arrays = {name: np.lib.format.read_array(member, allow_pickle=False) for name, member in members.items()}
        about = json.loads(str(arrays.pop("about")))
        fingerprint = about.pop("pool_fingerprint")
        pool = of(arrays, about)
        if pool.fingerprint != fingerprint or not about["task"].keys() >= {*TASK}:
            raise ValueError("its content does not have its fingerprint")
    except OSError as error:
        raise ValueError(
            f"rollout.pool={path} cannot be read: {error.strerror or error}. Name a file that `reval data pool` wrote."
        ) from error
    except (
        ValueError,
        KeyError,
        EOFError,
        TypeError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(
            f"rollout.pool={path} is damaged, or not a pool ({type(error).__name__}: {error}). Write it again with "
            "`reval data pool --run-dir RUN --output FILE`."
        ) from error
    return pool


def of_run(config: config_lib.Config, data: prompts.Dataset, stop_ids: Sequence[int]) -> Pool | None:
    """The pool that `rollout.pool` names, if it names one.

    Args:
      stop_ids: tokens that end a response of the run.

    Raises:
      ValueError: as `load` and `check`.
    """
    if not config.rollout.pool:
        return None
    pool = load(config.rollout.pool)
    check(pool, data, config, stop_ids)
    return pool


def check(pool: Pool, data: prompts.Dataset, config: config_lib.Config, stop_ids: Sequence[int]) -> None:
    """Refuses a pool whose responses would not be responses to this run's prompts.

    Args:
      stop_ids: tokens that end a response of this run.

    Raises:
      ValueError: another data set or other prompt tokens, a longer response than the run samples, or one that does not end.
    """
    name, stored, task = f"rollout.pool={config.rollout.pool}", pool.trajectories, pool.about["task"]
    if pool.about["data_fingerprint"] != data.fingerprint:
        different = [
            f"task.{field}={task[field]!r} and here {getattr(config.task, field)!r}"
            for field in TASK
            if task[field] != getattr(config.task, field)
        ]
        reason = "; ".join(different) or "rows, tokenizer or chat template differ"
        raise ValueError(
            f"{name} has responses to a data set with the fingerprint {pool.about['data_fingerprint']}, but this run's is "
            f"{data.fingerprint} ({reason}). Train on the pool's data set with its template, or use a pool of this one."
        )
    tokens = ragged.split(stored.tokens, stored.length)
    for row, own, length in zip(stored.row.tolist(), tokens, stored.prompt_length.tolist(), strict=True):
        if not 0 <= row < data.size or not np.array_equal(own[:length], data.tokens[row]):
            raise ValueError(
                f"{name} has other prompt tokens for row {row} than task.template={config.task.template} gives in this run. Use "
                "a pool of a run with the same data set, template and tokenizer."
            )
    longest, limit = int(stored.response_length.max()), config.rollout.max_response_tokens
    if longest > limit:
        raise ValueError(
            f"{name} has a response of {longest} tokens, but rollout.max_response_tokens={limit}. Set it to at least {longest}."
        )
    last = stored.tokens[np.cumsum(stored.length) - 1]
    is_cut = stored.is_truncated & (stored.response_length == limit)
    endless = ~is_cut & ~np.isin(last, stop_ids)
    if endless.any():
        raise ValueError(
            f"{name} has responses that end with token {last[endless][0]}, but responses of this run end with "
            f"{', '.join(map(str, sorted(stop_ids)))}, or at {limit} tokens (rollout.max_response_tokens). Use a pool of a "
            "run with the same model family, template and limit."
        )


def of_questions(
    pool: Pool, rows: np.ndarray, cursors: np.ndarray, m: int, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows i64[k] of the pool, at most m different ones for each prompt, and the number of responses i64[n] of each prompt.

    A question with at most m responses gets all of them, with more m that are drawn without replacement, every choice equally
    likely. A draw depends on (seed, cursor) and on the question's responses alone.

    Args:
      rows: i64[n], the prompts' rows of the data set.
      cursors: i64[n], the prompts' cursors.
    """
    first, past = (np.searchsorted(pool.trajectories.row, rows, side=side) for side in ("left", "right"))
    chosen = []
    for start, size, cursor in zip(first.tolist(), (past - first).tolist(), cursors.tolist(), strict=True):
        order = np.arange(size)
        if size > m:
            order = keys.host_permutation(keys.named_key(seed, "pool", cursor), size)[:m]
        chosen.append(start + order)
    counts = np.array([len(part) for part in chosen], np.int64)
    return np.concatenate([*chosen, np.zeros(0, np.int64)]), counts


def responses(
    pool: Pool, fresh: types.Trajectories, config: config_lib.Config, *, policy_version: int
) -> types.Trajectories:
    """The stored responses that join the groups of `fresh`, with this run's rewards, samples N, N + 1, … of their prompts.

    Their log-probabilities are 0 until the learner has scored them, and no reference has.

    Args:
      fresh: a round's trajectories, of whole groups.
      policy_version: of the learner that scores them.
    """
    cursors, first = np.unique(fresh.cursor, return_index=True)
    rows, counts = of_questions(pool, fresh.row[first], cursors, config.rollout.pool_samples, seed=config.run.seed)
    stored, of_group = replay.gather(pool.trajectories, rows), np.repeat(first, counts)
    return stored._replace(
        cursor=fresh.cursor[of_group],
        sample=(config.rollout.samples_per_prompt + ragged.offsets(counts)).astype(np.int32),
        round=fresh.round[of_group],
        policy_version=np.full(stored.size, policy_version, np.int32),
        greedy_reward=fresh.greedy_reward[of_group],
        reward=trajectories.rewards(stored.response_length, stored.raw_reward, config),
    )
