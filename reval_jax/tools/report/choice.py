"""Which rollouts a page has room for: of rounds from the first to the last, right and wrong ones, of different prompts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from reval_jax import rollout_files, types
from reval_jax.tools.report import reading

_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 40
_ROWS = 8  # responses of a round that are worth more than another round

Item = TypeVar("Item")


class Row(NamedTuple):
    """A response of a rollouts file."""

    round: int
    line: int  # 0 for the file's first
    record: types.Json

    @property
    def key(self) -> tuple[int, int]:
        """What names it in a run."""
        return self.round, self.line


class Choice(NamedTuple):
    """What was chosen, and of how much."""

    rows: list[Row]  # by rank: the first of every round, then the second of every round, …
    num_rounds: int  # whose files exist
    damaged: list[str]  # what is wrong with files that were left out


def choose(
    files: Mapping[int, Path],
    *,
    budget: float,
    cost: Callable[[types.Json], float],
    first: Collection[tuple[int, int]] = (),
) -> Choice:
    """Responses of the first round, the last, and rounds evenly between; the same for the same files.

    Args:
      files: of each round.
      budget: what all of them may cost; each round gets an equal part and at least one response.
      cost: of a response, from its line.
      first: (round, line) of responses that come before others; their rounds are among the chosen.
    """
    damaged: list[str] = []
    preferred, rounds = set(first), sorted(files)
    rows_of_last = _rows(files[rounds[-1]], rounds[-1], damaged) if rounds else []
    mean = sum(cost(row.record) for row in rows_of_last) / len(rows_of_last) if rows_of_last else 1.0
    count = min(_MOST_ROUNDS, max(_FEWEST_ROUNDS, int(budget / (_ROWS * max(mean, 1e-9)))))
    chosen = sorted(set(spread(rounds, count)) | ({round for round, _ in preferred} & files.keys()))
    by_round: list[list[Row]] = []
    left = budget
    for index, round in enumerate(chosen):
        rows = rows_of_last if round == rounds[-1] else _rows(files[round], round, damaged)
        part = left / (len(chosen) - index)
        kept: list[Row] = []
        for row in _ordered(rows, preferred):
            price = cost(row.record)
            if kept and price > part:
                break
            kept.append(row)
            part, left = part - price, left - price
        by_round.append(kept)
    ranked = [row for rank in itertools.zip_longest(*by_round) for row in rank if row is not None]
    return Choice(ranked, len(files), list(dict.fromkeys(damaged)))


def spread(values: Sequence[Item], count: int) -> list[Item]:
    """The first value, the last, and others evenly between; all of them if `count` is not smaller."""
    if len(values) <= count:
        return list(values)
    return [values[round(index * (len(values) - 1) / (count - 1))] for index in range(count)]


def _rows(file: Path, round: int, damaged: list[str]) -> list[Row]:
    """The file's responses; of a damaged file none, and the reason joins `damaged`."""
    try:
        records = [json.loads(line) for line in rollout_files.read(file).splitlines()]
        for record in records:
            _check(record)
    except (ValueError, RecursionError) as error:
        damaged.append(f"{file.name}: {error}")
        return []
    return [Row(round, line, record) for line, record in enumerate(records)]


def _check(record: Any) -> None:
    """Raises ValueError unless it has what every version has written."""
    wanted = {"prompt": str, "response": str, "answer": str, "verdict": str, "reward": float, "num_tokens": int}
    for name, kind in wanted.items():
        value = record.get(name) if isinstance(record, dict) else None
        is_reward = kind is float and (reading.is_number(value) or isinstance(value, bool))
        if not (is_reward or (kind is not float and isinstance(value, kind))):
            raise ValueError(f"a line's {name!r} is not what a run writes")


def _ordered(rows: Sequence[Row], preferred: Collection[tuple[int, int]]) -> list[Row]:
    """Preferred ones, then right and wrong ones in turn, each from one prompt after the other."""
    kinds: dict[bool, list[Row]] = {True: [], False: []}
    for row in rows:
        if row.key not in preferred:
            kinds[row.record["verdict"] == "ok"].append(row)
    in_turn = itertools.zip_longest(*(_by_prompt(kind) for kind in kinds.values()))
    return [row for row in rows if row.key in preferred] + [row for pair in in_turn for row in pair if row is not None]


def _by_prompt(rows: Sequence[Row]) -> list[Row]:
    of_prompt: dict[str, list[Row]] = {}
    for row in rows:
        of_prompt.setdefault(row.record["prompt"], []).append(row)
    return [row for rank in itertools.zip_longest(*of_prompt.values()) for row in rank if row is not None]
