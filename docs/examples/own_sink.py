"""A user-defined metric sink: a table of a few metrics in the run directory, one row per round.

    PYTHONPATH=docs/examples reval train --config configs/one_shot_easy.yaml --run.sinks tensorboard own_sink:table

reval_jax calls only `table`, a function of the config and the run directory that returns the sink, which is a function of a round
and its metrics.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from reval_jax import config, sinks

COLUMNS = ("critic/score/mean", "actor/loss", "response_length/mean", "timing_s/round")


def table(settings: config.Config, run_dir: Path) -> sinks.Sink:
    """A sink that appends COLUMNS to table.csv; the cell of an absent metric is empty."""
    path = run_dir / "table.csv"

    def write(round: int, metrics: Mapping[str, float | str]) -> None:
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            if is_new:
                rows.writerow(["round", *COLUMNS])
            rows.writerow([round, *(metrics.get(name, "") for name in COLUMNS)])

    return write
