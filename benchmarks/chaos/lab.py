"""The tiny run that is attacked: its files, its processes, and the run that is never stopped."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, TypeVar

import yaml

from benchmarks.chaos import compare
from benchmarks.chaos.outcomes import Attempt, End

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support import tiny_runs  # noqa: E402

TIME_LIMIT = 240.0  # seconds after which a process counts as hanging; one takes 5 to 10 on an idle core
ROUNDS = 12

REWARD = '''"""A reward that is 1 for about half of the responses. It waits while a file named `slow` lies beside it."""
import pathlib
import time


def parity(response: str, answer: str) -> float:
    """1 for a response of an even number of characters."""
    if (pathlib.Path(__file__).parent / "slow").exists():
        time.sleep(6)
    return float(len(response) % 2 == 0)
'''

Task = TypeVar("Task")


class Process:
    """A process in a session of its own, whose output goes to a file, so that no full pipe stops it."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.started = time.monotonic()
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        self.pid = self._process.pid

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def send(self, signum: int) -> None:
        """Sends a signal to the process alone, not to its workers."""
        self._process.send_signal(signum)

    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait(self, time_limit: float = TIME_LIMIT) -> End:
        """Waits for its end; a process that does not end in time prints its threads and is killed."""
        code: int | None
        try:
            code = self._process.wait(time_limit)
        except subprocess.TimeoutExpired:
            code = None
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(signal.SIGABRT)  # Python's fault handler prints the threads
            time.sleep(1)
        seconds = time.monotonic() - self.started
        self.sweep()
        return End(code, self.output(), seconds)

    def sweep(self) -> None:
        """Kills what is left of its session."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


class Lab:
    """The files of the run, and what every part needs."""

    def __init__(
        self,
        directory: Path,
        *,
        seed: int = 0,
        lanes: int = 2,
        is_busy: bool = False,
        log: Callable[[str], None] = print,
    ) -> None:
        """Write the model, the data and the config below the directory.

        Args:
          lanes: runs at the same time.
          is_busy: other jobs run on this machine, so times are not checked.
        """
        self.directory, self.seed, self.lanes, self.is_busy, self.log = directory, seed, lanes, is_busy, log
        self._lock = threading.Lock()
        self._references: dict[str, compare.Reference] = {}
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "rewards.py").write_text(REWARD, encoding="utf-8")
        self.slow = directory / "slow"  # while it exists, a graded answer takes seconds
        self.config = tiny_runs.write_files(directory)
        tree = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        tree["rollout"] |= {"decode_slots": 3, "decode_window": 3}
        tree["verifier"] = {"function": "rewards:parity", "function_path": str(directory), "workers": 1}
        tree["checkpoint"] = {"every": 2, "keep": 2}
        tree["eval"]["every"] = 4
        tree["run"] = {"rounds": ROUNDS}
        self.config.write_text(yaml.safe_dump(tree), encoding="utf-8")

    def random(self, *names: Any) -> random.Random:
        """Random numbers of these names, the same in every call."""
        return random.Random(f"{self.seed} {names}")

    def environment(self, **more: str) -> dict[str, str]:
        """The variables of a process of the run."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))},
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "PYTHONFAULTHANDLER": "1",
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_COMPILATION_CACHE_DIR": str(self.directory / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **more,
        }

    def train(
        self, run_dir: Path, *options: str, program: Sequence[str] = ("-m", "reval_jax"), **variables: str
    ) -> Process:
        """Starts `reval train` on the run directory."""
        words = [sys.executable, *program, "train", "--config", str(self.config), "--run-dir", str(run_dir), *options]
        return Process(words, self._log_file(run_dir.name), self.environment(**variables))

    def call(self, *words: str) -> End:
        """Runs another `reval` command to its end."""
        command = [sys.executable, "-m", "reval_jax", *words]
        return Process(command, self._log_file(words[0]), self.environment()).wait()

    def reference(self, *options: str) -> compare.Reference:
        """The run with these options that is never stopped, with a checkpoint of every round; played once."""
        with self._lock:
            name = "_".join(("reference", *options)).replace("-", "").replace(".", "_")
            if name not in self._references:
                run_dir = self.directory / name
                every = ("--checkpoint.every", "1", "--checkpoint.keep", "1000")
                end = self.train(run_dir, *options, *every).wait()
                if end.code != 0:
                    raise SystemExit(f"chaos: the run without any fault ended with exit code {end.code}:\n{end.output}")
                self._references[name] = compare.Reference(run_dir, end.seconds)
            return self._references[name]

    def new_run(self, *names: Any) -> Path:
        """The path of a new run directory."""
        path = self.directory / "runs" / "_".join(str(name) for name in names)
        path.parent.mkdir(exist_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        return path

    def spread(
        self, attack: Callable[[Task], Attempt], tasks: Sequence[Task], *, lanes: int | None = None
    ) -> list[Attempt]:
        """The attempts of all tasks, made in `lanes` threads, with lines of progress."""
        attempts, told = [], time.monotonic()
        with futures.ThreadPoolExecutor(lanes or self.lanes) as pool:
            for done in futures.as_completed([pool.submit(attack, task) for task in tasks]):
                attempt = done.result()
                attempts.append(attempt)
                if not attempt.is_kept:
                    self.log(f"  BROKEN {attempt.part} {attempt.name}: {attempt.outcome}: {attempt.detail}")
                if time.monotonic() - told > 20:
                    told = time.monotonic()
                    kept = sum(each.is_kept for each in attempts)
                    self.log(f"  {attempt.part}: {len(attempts)} of {len(tasks)}, {kept} kept")
        return attempts

    def _log_file(self, name: str) -> Path:
        logs = self.directory / "logs"
        logs.mkdir(exist_ok=True)
        return logs / f"{name}_{threading.get_ident()}_{time.monotonic_ns()}.log"
