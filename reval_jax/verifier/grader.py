"""Grades responses: exact comparison in this process; algebra, checkers of other libraries and own rewards in workers."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reval_jax import terminal, types
from reval_jax.sandbox import pool, search_path, worker
from reval_jax.verifier import checkers, extraction, grading

if TYPE_CHECKING:  # at run time a worker imports this file, and does not need pydantic
    from reval_jax import config as config_lib

FAILURES = ("timeout", "crash")
"""Verdicts for which grading itself failed; with a function of the user's, `limit` is one too."""

MAX_WORKERS = 16  # upper bound of the default; each worker imports its libraries

_ALGEBRA = "reval_jax.equality.symbolic:compare"
_REASONING_GYM = "reval_jax.procedural.gym:reasoning_gym_score"

# Together they import, compile and cache all that an answer can need, so that none of it counts as an answer's CPU time.
_WARM_UP = (
    ("\\frac{x}{2}+x^2", "x^2+0.5x"),
    ("\\sqrt{2}+\\sqrt{3}", "\\sqrt{5+2\\sqrt{6}}"),
    ("\\sin(x)^2+\\cos^2 x", "1"),
    ("e^{i\\pi}", "-1"),
    ("\\log_2 8 + \\ln e", "4"),
    ("(x, \\frac{\\pi}{2})", "(x, \\pi/2)"),
    ("\\{\\sqrt{8}, 1\\}", "\\{1, 2\\sqrt{2}\\}"),
    ("[0, \\sqrt{2}) \\cup (3, \\infty)", "[0, 2^{1/2}) \\cup (3, \\infty)"),
    ("y = 2x + 1", "2x - y + 1 = 0"),
    ("\\begin{pmatrix} 1 & x \\\\ 0 & 1 \\end{pmatrix}", "\\begin{pmatrix} 1 & x \\\\ 0 & 2 \\end{pmatrix}"),
    ("\\binom{5}{2} + 4!", "34"),
    ("x < \\sqrt{2}", "\\sqrt{2} > x"),
    ("\\sum_{n=1}^{4} n", "10"),
)


class UnreliableError(RuntimeError):
    """Grading is impossible, or failed too often for its verdicts to be trained on."""


class _Call(NamedTuple):
    """One call of a function in a worker."""

    target: str  # module:function
    arguments: tuple[str, ...]


Kept = tuple[str, bool | float | str | None, str]
"""Kind, value and message of a call's outcome."""


class Memory(NamedTuple):
    """Outcomes of calls that are kept while a round is unfinished."""

    known: Mapping[str, Kept]  # by a name of the call
    keep: Callable[[str, Kept], None]  # called with each new outcome that another attempt may not repeat


NOTHING = Memory({}, lambda key, outcome: None)


def _key(call: _Call) -> str:
    return hashlib.sha256(json.dumps(call).encode()).hexdigest()[:32]


def _keep(memory: Memory, calls: Sequence[_Call], index: int, outcome: pool.TaskOutcome) -> None:
    """Keeps an outcome, unless it says more of the machine or of a faulty function than of the answer."""
    if outcome.kind in ("done", "limit"):
        memory.keep(_key(calls[index]), (outcome.kind, outcome.value, outcome.message))


class _PendingGrade(NamedTuple):
    """A grade that depends on the outcomes of calls."""

    grade: grading.Grade  # the final one if there are no calls
    calls: tuple[_Call, ...]
    settle: Callable[[grading.Grade, Sequence[pool.TaskOutcome]], grading.Grade]


class Grader:
    """Grades by the settings in `task` and `verifier`. A context manager; leaving it ends its processes.

    The first answer that needs a worker starts one; several answers at once use up to `verifier.workers` processes. A verdict
    depends on the response and its gold answer, never on the other responses, their order or the number of processes.
    """

    def __init__(self, config: config_lib.Config, *, log: Callable[[str], None] | None = None) -> None:
        """A grader without processes.

        Args:
          log: receives the first crash message; by default, print to standard error.
        """
        self._answer_format, self._settings = config.task.answer_format, config.verifier
        self._log = log or (lambda text: print(terminal.visible(text), file=sys.stderr, flush=True))
        self._pools: dict[str, pool.Pool] = {}
        self._has_logged = False

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes."""
        while self._pools:
            self._pools.popitem()[1].close()

    @property
    def pools(self) -> tuple[pool.Pool, ...]:
        """The pools in use, for measurements."""
        return tuple(self._pools.values())

    def score(
        self,
        texts: Sequence[str],
        answers: Sequence[str],
        *,
        prompt_opens_think: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
        memory: Memory = NOTHING,
    ) -> types.Verdicts:
        """The verdicts of B responses, each against the gold answer at its own index.

        Args:
          prompt_opens_think: the prompts end with an open `<think>`, so a response without `</think>` has no answer.
          should_stop: asked about once a second whether to give up.
          memory: of an earlier call with the same responses, so that what was near a limit is decided once.

        Raises:
          ValueError: the numbers of texts and answers differ.
          UnreliableError: a worker can't be started.
          StoppedError: `should_stop` returned True; no verdict is kept.
        """
        if len(texts) != len(answers):
            raise ValueError(
                f"Grader.score got {len(texts)} texts and {len(answers)} answers. Pass one answer for each text."
            )
        pairs = zip(texts, answers, strict=True)
        return grading.verdicts(
            self.grades(pairs, prompt_opens_think=prompt_opens_think, should_stop=should_stop, memory=memory)
        )

    def grade(
        self, text: str, answer: str, *, extracted: bool = False, prompt_opens_think: bool = False
    ) -> grading.Grade:
        """The grade of one response or, with `extracted`, of one answer; see `score`."""
        return self.grades([(text, answer)], extracted=extracted, prompt_opens_think=prompt_opens_think)[0]

    def grades(
        self,
        pairs: Iterable[tuple[str, str]],
        *,
        extracted: bool = False,
        prompt_opens_think: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
        memory: Memory = NOTHING,
    ) -> list[grading.Grade]:
        """The grades of (response, gold answer) pairs, in order; a repeated pair is graded once."""
        pairs = list(pairs)
        pending: dict[tuple[str, str], _PendingGrade] = {}
        for pair in dict.fromkeys(pairs):
            if should_stop():
                raise pool.StoppedError
            pending[pair] = self._start_or_crash(*pair, extracted=extracted, prompt_opens_think=prompt_opens_think)
        outcomes = self._run_calls((call for each in pending.values() for call in each.calls), should_stop, memory)
        final = {
            pair: each.settle(each.grade, [outcomes[call] for call in each.calls]) if each.calls else each.grade
            for pair, each in pending.items()
        }
        return [final[pair] for pair in pairs]

    def _start_or_crash(self, text: str, answer: str, *, extracted: bool, prompt_opens_think: bool) -> _PendingGrade:
        """`_start`, with the verdict `crash` for an error: a bug of ours that a text triggers must not end the run."""
        try:
            return self._start(text, answer, extracted=extracted, prompt_opens_think=prompt_opens_think)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"[:500]
            self._log_once(f"comparing a response with {answer[:100]!r}: {message}")
            return _PendingGrade(grading.Grade(0.0, "crash", None, message), (), self._grade_reward)

    def _log_once(self, message: str) -> None:
        if not self._has_logged:
            self._has_logged = True
            self._log(f"verifier: a verdict is `crash` (only the first is reported): {message}")

    def _start(self, text: str, answer: str, *, extracted: bool, prompt_opens_think: bool) -> _PendingGrade:
        """The grade as far as this process can decide it, and the calls that decide the rest."""
        checker = checkers.parse_gold(answer)
        if checker and not self._settings.function:
            return self._start_checker(text, *checker, extracted=extracted, prompt_opens_think=prompt_opens_think)
        grade = grading.grade(
            text, answer, answer_format=self._answer_format, prompt_opens_think=prompt_opens_think, extracted=extracted
        )
        if self._settings.function:
            # The built-in grade provides only the answer, for maj@k.
            unknown = grading.Grade(0.0, "crash", grade.extracted, "", grade.answer)
            return _PendingGrade(unknown, (_Call(self._settings.function, (text, answer)),), self._grade_reward)
        calls = tuple(_Call(_ALGEBRA, pair) for pair in grade.pairs)
        return _PendingGrade(grade, calls, self._grade_comparisons)

    def _start_checker(
        self, text: str, name: str, payload: str, *, extracted: bool, prompt_opens_think: bool
    ) -> _PendingGrade:
        """`_start` for a gold answer that names a checker."""
        prediction = extraction.Extraction(text, "", "")
        if not extracted:
            prediction = extraction.extract(
                text, answer_format=self._answer_format, prompt_opens_think=prompt_opens_think
            )
        if prediction.answer is None:
            grade = grading.Grade(0.0, prediction.kind, None, prediction.explanation)
            return _PendingGrade(grade, (), self._grade_reward)
        ordinary = grading.grade(prediction.answer, "", answer_format=self._answer_format, extracted=True)
        grade = grading.Grade(0.0, "wrong", prediction.answer, f"the checker {name!r} refuses it", ordinary.answer)
        if ordinary.kind == "limit":
            return _PendingGrade(ordinary, (), self._grade_reward)
        if name in checkers.CHECKERS:
            if checkers.check(name, payload, prediction.answer):
                grade = grade._replace(reward=1.0, kind="ok", explanation=f"the checker {name!r} accepts it")
            return _PendingGrade(grade, (), self._grade_reward)
        return _PendingGrade(grade, (_Call(_REASONING_GYM, (payload, prediction.answer)),), self._grade_reward)

    def _grade_reward(self, grade: grading.Grade, outcomes: Sequence[pool.TaskOutcome]) -> grading.Grade:
        """The grade from a function's result: a number from 0 to 1 is the reward; its kind is `ok` for 1, else `wrong`."""
        (outcome,) = outcomes
        kind, message, value = outcome.kind, outcome.message, outcome.value
        if kind == "done" and (isinstance(value, str) or value is None or not 0 <= value <= 1):
            kind, message = "crash", f"the function returned {value!r}, not a number from 0 to 1"
        if kind == "done" and value is not None:
            reward = float(value)
            return grade._replace(
                reward=reward, kind="ok" if reward == 1 else "wrong", explanation=f"the function returned {reward:g}"
            )
        if kind == "crash":
            self._log_once(f"the function failed: {message}")
        return grade._replace(reward=0.0, kind=kind, explanation=message)

    def _grade_comparisons(self, grade: grading.Grade, outcomes: Sequence[pool.TaskOutcome]) -> grading.Grade:
        """The grade from the results of algebra."""
        for each in outcomes:
            if each.kind == "crash":
                self._log_once(f"comparing {(grade.extracted or '')[:100]!r}: {each.message}")
        return grading.settle(grade, [str(each.value) if each.kind == "done" else each.kind for each in outcomes])

    def _run_calls(
        self, calls: Iterable[_Call], should_stop: Callable[[], bool], memory: Memory
    ) -> dict[_Call, pool.TaskOutcome]:
        """The outcome of every call."""
        by_target: dict[str, dict[_Call, None]] = {}
        outcomes: dict[_Call, pool.TaskOutcome] = {}
        for call in calls:
            if known := memory.known.get(_key(call)):
                outcomes[call] = pool.TaskOutcome(*known, seconds=0.0)
            else:
                by_target.setdefault(call.target, {})[call] = None
        for target, calls_of_target in by_target.items():
            try:
                first = next(iter(calls_of_target))
                keep = functools.partial(_keep, memory, list(calls_of_target))
                arguments = [call.arguments for call in calls_of_target]
                results = self._pool_for(target, first).run(arguments, should_stop=should_stop, on_outcome=keep)
            except pool.RefusedError as error:
                raise UnreliableError(f"a worker process of the verifier cannot load {target}: {error}") from error
            outcomes |= zip(calls_of_target, results, strict=True)
        return outcomes

    def _pool_for(self, target: str, first: _Call) -> pool.Pool:
        """The pool that calls `target`; `first` is one of the calls."""
        if target not in self._pools:
            settings = self._settings
            warm_up: list[list[str]] = []
            if target == _ALGEBRA:
                warm_up = [list(pair) for pair in _WARM_UP]
            elif target == _REASONING_GYM:
                # Imports the library and creates its data set; payload and answer are trusted.
                warm_up = [[first.arguments[0], ""]]
            worker_settings = worker.WorkerSettings(
                target=target,
                may_compile=target == settings.function,
                cpu_limit=settings.cpu_limit,
                wall_limit=settings.wall_limit,
                memory_limit=settings.memory_limit << 20,
                # An answer that tampers with the library's scorer must not affect the next one.
                tasks_per_child=1 if target == _REASONING_GYM else settings.tasks_per_worker,
                warm_up=warm_up,
                num_arguments=len(first.arguments),
            )
            path = [Path(os.path.expanduser(settings.function_path))] if target == settings.function else []
            self._pools[target] = pool.Pool(worker_settings, num_workers=settings.workers or _num_workers(), path=path)
        return self._pools[target]


def _num_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_WORKERS)


def check(settings: config_lib.Verifier) -> None:
    """Refuses a reward function that cannot be loaded; a worker tries it, as in a run.

    Raises:
      ValueError: `verifier.function_path` is not a directory, or the module cannot be imported or has no such function of
        two arguments.
    """
    if not settings.function:
        return
    directory = Path(os.path.expanduser(settings.function_path)).resolve()
    if not directory.is_dir():
        raise ValueError(
            f"verifier.function_path={settings.function_path} is not a directory. "
            "Name the directory that contains the module of verifier.function."
        )
    module = settings.function.partition(":")[0]
    if search_path.is_shadowed(module):
        raise ValueError(
            f"verifier.function={settings.function} cannot be loaded: the standard library has a module {module}, which is found "
            "before yours. Give your file another name."
        )
    worker_settings = worker.WorkerSettings(
        settings.function, True, settings.cpu_limit, settings.wall_limit, settings.memory_limit << 20, 1, [], 2
    )
    try:
        with pool.Pool(worker_settings, num_workers=1, path=[directory]) as trial:
            trial.start()
    except pool.RefusedError as error:
        raise ValueError(
            f"verifier.function={settings.function} cannot be loaded: {error} (looked for in {directory}, then where Python "
            "finds its modules). Write MODULE:FUNCTION of a function of the response and the gold answer, and set "
            "verifier.function_path to the module's directory."
        ) from error


def check_failures(kinds: np.ndarray, settings: config_lib.Verifier) -> None:
    """Refuses a round in which too many verdicts are failures.

    The built-in grader gives `limit` to answers that are too large or too slow to compare, which is the responses' fault. With
    `verifier.function` it counts as a failure, because a slow function reaches the limit whatever the response is.

    Args:
      kinds: i8[B], indices into types.VERDICTS.

    Raises:
      UnreliableError: their share is larger than `verifier.max_failed_share`.
    """
    failures = ("limit", *FAILURES) if settings.function else FAILURES
    counts = {kind: int(np.sum(kinds == types.VERDICTS.index(kind))) for kind in failures}
    failed, max_share = sum(counts.values()), settings.max_failed_share
    if failed > max_share * len(kinds):
        listed = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        raise UnreliableError(
            f"grading failed for {failed} of {len(kinds)} responses ({listed}), more than "
            f"verifier.max_failed_share={max_share:g} allows: such rewards say little about the answers. "
            "Look at the responses in the run's rollouts/. Raise verifier.wall_limit (timeout) or verifier.max_failed_share; or "
            "repair your verifier.function if you use one, and start with a new --run-dir: a run keeps its function as it was."
        )
