"""The process of one experiment tracker: metrics come in by a pipe, and go to the tracker's library. Standard library only.

A process of its own, because these libraries start threads, servers and processes, take over streams and signals, and wait for a
network in their own exit handlers. Here none of it reaches the run, and a library that hangs can be killed.

`trackers` starts it with the library's name and the parent's process id. Standard input has a JSON object per line: first the
run (`project`, `name`, `directory`, `config`), then per round `round` and `values`, at last `outcome`. Without that last line the
run was killed, which counts as failed. What went wrong is the last line of standard error, and the exit code is 1.

DIRECTORY/trackers/LIBRARY.jsonl holds what a resume needs: the id under which the tracker has the run, then each round that was
handed to the library. It is locked, so that the process of a resumed run waits for the end of the one before.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

FAILED = "reval: "
"""Begins the line that says what went wrong."""

CLOSE_SECONDS = 10.0  # that the library gets to finish, from the last line or the parent's end
MAX_TEXT = 5000  # characters of a setting in MLflow, which takes no more than 6,000
MAX_BATCH = 100  # settings of one call of MLflow

Values = Mapping[str, float]


class Start(NamedTuple):
    """The first line, and what the process adds."""

    project: str
    name: str
    directory: str
    config: dict[str, dict[str, Any]]  # settings by section
    id: str  # of the run, the same whenever it resumes


class Wandb:
    """A run of Weights & Biases."""

    def __init__(self, start: Start) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or start.project,
            name=os.environ.get("WANDB_NAME") or start.name,
            id=os.environ.get("WANDB_RUN_ID") or start.id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or start.directory,
            config=start.config,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.config.update(start.config, allow_val_change=True)

    def write(self, round: int, values: Values) -> None:
        """Log one round."""
        self._run.log(dict(values), step=round, commit=True)

    def close(self, outcome: str) -> None:
        """Finish the run."""
        if outcome == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if outcome == "finished" else 1)


class Trackio:
    """A run of Trackio, which reports what fails as warnings, and goes on."""

    def __init__(self, start: Start) -> None:
        import trackio

        self._problems: list[str] = []

        def show(message: Warning | str, category: type[Warning], *others: Any, **options: Any) -> None:
            if category is UserWarning and str(message).startswith("trackio"):
                self._problems.append(str(message))

        warnings.simplefilter("always")
        warnings.showwarning = show
        # It finds a run by its name, and another run directory may have the same.
        name = f"{start.name}-{start.id[:6]}"
        self._run = trackio.init(start.project, name=name, config=start.config, resume="allow", embed=False)

    def write(self, round: int, values: Values) -> None:
        """Log one round."""
        self._run.log(dict(values), step=round)
        self._check()

    def close(self, outcome: str) -> None:
        """Finish the run."""
        self._run.finish()
        self._check()

    def _check(self) -> None:
        if self._problems:
            raise RuntimeError(self._problems[0])


class Mlflow:
    """A run of MLflow."""

    STATUS = {"finished": "FINISHED", "preempted": "KILLED", "failed": "FAILED"}  # noqa: RUF012

    def __init__(self, start: Start) -> None:
        import mlflow
        import mlflow.entities

        self._entities, self._client = mlflow.entities, mlflow.MlflowClient()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID") or self._experiment(start.project)
        found = self._client.search_runs([experiment], f"tags.`reval_jax.id` = '{start.id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_RUN_NAME") or start.name
            self._id = self._client.create_run(experiment, run_name=name, tags={"reval_jax.id": start.id}).info.run_id
        self._write_settings(start.config)

    def _experiment(self, project: str) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or project
        for is_last in (False, True):  # another run may make it at the same time
            if found := self._client.get_experiment_by_name(name):
                return found.experiment_id
            with contextlib.suppress(*([] if is_last else [Exception])):
                return self._client.create_experiment(name)
        raise RuntimeError(f"there is no experiment {name}")

    def _write_settings(self, config: dict[str, dict[str, Any]]) -> None:
        """Settings as parameters, which MLflow never changes: a resumed run's changed ones become tags."""
        settings = {f"{section}.{name}": _text(value) for section in config for name, value in config[section].items()}
        known = self._client.get_run(self._id).data.params
        new = [self._entities.Param(name, value) for name, value in settings.items() if name not in known]
        for first in range(0, len(new), MAX_BATCH):
            self._client.log_batch(self._id, params=new[first : first + MAX_BATCH])
        for name, value in settings.items():
            if known.get(name, value) != value:
                self._client.set_tag(self._id, f"resumed.{name}", value)

    def write(self, round: int, values: Values) -> None:
        """Log one round."""
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(mlflow_name(name), value, now, round) for name, value in values.items()]
        for first in range(0, len(metrics), 1000):  # its limit
            self._client.log_batch(self._id, metrics=metrics[first : first + 1000])

    def close(self, outcome: str) -> None:
        """Finish the run."""
        self._client.set_terminated(self._id, self.STATUS[outcome])


LIBRARIES: dict[str, type[Wandb] | type[Trackio] | type[Mlflow]] = {
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": Mlflow,
}


def mlflow_name(name: str) -> str:
    """The name of a metric in MLflow, which allows letters, digits and `_-./ `: `@` becomes `_at_`, any other character `_`."""
    return re.sub(r"[^\w\-./ ]", "_", name.replace("@", "_at_"), flags=re.ASCII)


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:MAX_TEXT]


class Record:
    """The file of what a resume needs; one process at a time has it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        is_new = not path.exists()
        self._file = path.open("a+b")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.seek(0)
        content = self._file.read()
        if content and not content.endswith(b"\n"):  # a machine that crashed
            content = content[: content.rfind(b"\n") + 1]
            self._file.truncate(len(content))
        lines = [json.loads(line) for line in content.splitlines()]
        self.id = lines[0]["id"] if lines else secrets.token_hex(8)
        self.last_round = lines[-1].get("round", -1) if lines else -1
        if not lines:
            self._add({"id": self.id})
            os.fsync(self._file.fileno())  # before the tracker knows it
        if is_new:
            directory = os.open(path.parent, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)

    def note(self, round: int) -> None:
        """The library has this round."""
        self.last_round = round
        self._add({"round": round})

    def _add(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()


def track(library: str, lines: Iterator[dict[str, Any]], end: threading.Event) -> None:
    """Hands the lines to the library; sets `end` when none follows."""
    start = next(lines)
    record = Record(Path(start["directory"], "trackers", f"{library}.jsonl"))
    tracker = LIBRARIES[library](Start(**start, id=record.id))
    outcome = "failed"
    for line in lines:
        if "outcome" in line:
            outcome = line["outcome"]
        elif line["round"] > record.last_round:  # a resumed run plays rounds again, with the same metrics
            tracker.write(line["round"], line["values"])
            record.note(line["round"])
    end.set()
    tracker.close(outcome)


def _end_in_time(parent: int, end: threading.Event) -> None:
    """Kills this process and those it started when the library takes too long to finish."""
    while os.getppid() == parent and not end.wait(0.5):
        pass
    time.sleep(CLOSE_SECONDS)
    os.killpg(0, signal.SIGKILL)


def _metrics_pipe() -> IO[str]:
    """Standard input under another descriptor, so that no library reads from it."""
    own, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    return os.fdopen(own, encoding="utf-8")


def main(library: str, parent: int) -> int:
    """Tracks until standard input ends; returns the exit code."""
    # The parent's signals reach all its group's processes, and it is the parent that says when the run ends.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    os.nice(5)  # the run comes first
    pipe, end = _metrics_pipe(), threading.Event()
    threading.Thread(target=_end_in_time, args=(parent, end), daemon=True).start()
    try:
        track(library, (json.loads(line) for line in pipe), end)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        print(f"\n{FAILED}{type(error).__name__}: {reason[:500]}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1], int(sys.argv[2]))
    sys.stderr.flush()
    os._exit(code)  # not by way of the library's exit handlers, which may wait
