"""Grades responses: exact comparison here, and whatever might run without end, or run the answer, in worker processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reval_jax import types
from reval_jax.sandbox import pool, worker
from reval_jax.verifier import checkers, extraction, grading

if TYPE_CHECKING:  # a worker imports this file with its package, and has no use for pydantic
    from reval_jax import config as config_lib

FAILURES = ("limit", "timeout", "crash")
"""Kinds of verdicts that say more about the grading than about the answer."""

MAX_WORKERS = 16  # that are started unasked: each has to import its libraries

_ALGEBRA = "reval_jax.equality.symbolic:compare"
_LIBRARY = "reval_jax.procedural.gym:reasoning_gym_score"

# Between them they import, compile and cache what an answer can need, so that no answer's CPU time pays for it.
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
    """The grading failed too often for its verdicts to be trained on, or can't be done at all."""


class _Call(NamedTuple):
    """A question that a worker has to answer."""

    target: str
    arguments: tuple[str, ...]


class _Open(NamedTuple):
    """A grade that waits for calls."""

    grade: grading.Grade
    calls: tuple[_Call, ...]
    settle: Callable[[grading.Grade, Sequence[pool.Outcome]], grading.Grade]


class Grader:
    """Grades by the settings in `task` and `verifier`; a context manager, whose processes end with it.

    A process is started when the first answer needs one, and several answers at once keep as many of them busy as
    `verifier.workers` allows. A verdict depends on the response and its gold answer, never on the other responses, their
    order, or the number of processes.
    """

    def __init__(self, config: config_lib.Config, *, say: Callable[[str], None] | None = None) -> None:
        """A grader that starts nothing yet.

        Args:
          say: takes the first message of a crash; standard error by default.
        """
        self._answer_format, self._settings = config.task.answer_format, config.verifier
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._pools: dict[str, pool.Pool] = {}
        self._has_said = False

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
        self, texts: Sequence[str], answers: Sequence[str], *, prompt_opens_think: bool = False
    ) -> types.Verdicts:
        """The verdicts of B responses, each against the gold answer at its own index.

        Args:
          prompt_opens_think: the prompts have opened `<think>`, so a response without `</think>` is thinking to its end.

        Raises:
          ValueError: another number of answers than of texts.
          UnreliableError: a worker can't be started.
        """
        if len(texts) != len(answers):
            raise ValueError(
                f"Grader.score got {len(texts)} texts and {len(answers)} answers. Pass one answer for each text."
            )
        return grading.verdicts(self.grades(zip(texts, answers, strict=True), prompt_opens_think=prompt_opens_think))

    def grade(
        self, text: str, answer: str, *, extracted: bool = False, prompt_opens_think: bool = False
    ) -> grading.Grade:
        """The grade of one response, or of an answer where `extracted`; see `score`."""
        return self.grades([(text, answer)], extracted=extracted, prompt_opens_think=prompt_opens_think)[0]

    def grades(
        self, pairs: Iterable[tuple[str, str]], *, extracted: bool = False, prompt_opens_think: bool = False
    ) -> list[grading.Grade]:
        """The grades of pairs of a response and a gold answer, in their order; a pair that comes again is graded once."""
        pairs = list(pairs)
        opened = {
            pair: self._guarded(*pair, extracted=extracted, prompt_opens_think=prompt_opens_think)
            for pair in dict.fromkeys(pairs)
        }
        outcomes = self._outcomes(call for each in opened.values() for call in each.calls)
        settled = {
            pair: each.settle(each.grade, [outcomes[call] for call in each.calls]) if each.calls else each.grade
            for pair, each in opened.items()
        }
        return [settled[pair] for pair in pairs]

    def _guarded(self, text: str, answer: str, *, extracted: bool, prompt_opens_think: bool) -> _Open:
        """`_open`, with `crash` for an error in it: a text that finds a fault of ours must not end the run."""
        try:
            return self._open(text, answer, extracted=extracted, prompt_opens_think=prompt_opens_think)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"[:500]
            self._say_once(f"comparing a response with {answer[:100]!r}: {message}")
            return _Open(grading.Grade(0.0, "crash", None, message), (), self._rewarded)

    def _say_once(self, message: str) -> None:
        if not self._has_said:
            self._has_said = True
            self._say(f"verifier: a verdict is `crash` (said once): {message}")

    def _open(self, text: str, answer: str, *, extracted: bool, prompt_opens_think: bool) -> _Open:
        """What this process can say of a response, and what it has to ask."""
        checked = checkers.checked(answer)
        if checked and not self._settings.function:
            return self._open_checked(text, *checked, extracted=extracted, prompt_opens_think=prompt_opens_think)
        grade = grading.grade(
            text, answer, answer_format=self._answer_format, prompt_opens_think=prompt_opens_think, extracted=extracted
        )
        if self._settings.function:
            # Of ours only the answer is kept, which maj@k counts.
            unknown = grading.Grade(0.0, "crash", grade.extracted, "", grade.answer)
            return _Open(unknown, (_Call(self._settings.function, (text, answer)),), self._rewarded)
        calls = tuple(_Call(_ALGEBRA, pair) for pair in grade.pairs)
        return _Open(grade, calls, self._compared)

    def _open_checked(self, text: str, name: str, payload: str, *, extracted: bool, prompt_opens_think: bool) -> _Open:
        """The same for a response that a task's own checker decides."""
        found = extraction.Found(text, "", "")
        if not extracted:
            found = extraction.find(text, answer_format=self._answer_format, prompt_opens_think=prompt_opens_think)
        if found.answer is None:
            return _Open(grading.Grade(0.0, found.kind, None, found.explanation), (), self._rewarded)
        shown = grading.grade(found.answer, "", answer_format=self._answer_format, extracted=True)
        grade = grading.Grade(0.0, "wrong", found.answer, f"the checker {name!r} refuses it", shown.answer)
        if shown.kind == "limit":
            return _Open(shown, (), self._rewarded)
        if name in checkers.CHECKERS:
            if checkers.check(name, payload, found.answer):
                grade = grade._replace(reward=1.0, kind="ok", explanation=f"the checker {name!r} accepts it")
            return _Open(grade, (), self._rewarded)
        return _Open(grade, (_Call(_LIBRARY, (payload, found.answer)),), self._rewarded)

    def _rewarded(self, grade: grading.Grade, outcomes: Sequence[pool.Outcome]) -> grading.Grade:
        """The grade that a function's number gives; below 1 it is the reward all the same, and its kind is `wrong`."""
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
            self._say_once(f"the function failed: {message}")
        return grade._replace(reward=0.0, kind=kind, explanation=message)

    def _compared(self, grade: grading.Grade, outcomes: Sequence[pool.Outcome]) -> grading.Grade:
        """The grade that algebra gives."""
        for each in outcomes:
            if each.kind == "crash":
                self._say_once(f"comparing {(grade.extracted or '')[:100]!r}: {each.message}")
        return grading.settle(grade, [str(each.value) if each.kind == "done" else each.kind for each in outcomes])

    def _outcomes(self, calls: Iterable[_Call]) -> dict[_Call, pool.Outcome]:
        """The outcome of every call."""
        by_target: dict[str, dict[_Call, None]] = {}
        for call in calls:
            by_target.setdefault(call.target, {})[call] = None
        outcomes: dict[_Call, pool.Outcome] = {}
        for target, asked in by_target.items():
            try:
                answered = self._pool(target, next(iter(asked))).run([call.arguments for call in asked])
            except pool.RefusedError as error:
                raise UnreliableError(f"a worker process of the verifier cannot load {target}: {error}") from error
            outcomes |= zip(asked, answered, strict=True)
        return outcomes

    def _pool(self, target: str, first: _Call) -> pool.Pool:
        """The processes that call `target`, of whose calls `first` is one."""
        if target not in self._pools:
            settings = self._settings
            warm_up: list[list[str]] = []
            if target == _ALGEBRA:
                warm_up = [list(pair) for pair in _WARM_UP]
            elif target == _LIBRARY:  # imports it and makes its data set; the payload is ours, so is this answer
                warm_up = [[first.arguments[0], ""]]
            asked = worker.Settings(
                target=target,
                may_compile=target == settings.function,
                cpu_limit=settings.cpu_limit,
                wall_limit=settings.wall_limit,
                memory_limit=settings.memory_limit << 20,
                # An answer that got at the library's scorer must not decide about the next.
                tasks_per_child=1 if target == _LIBRARY else settings.tasks_per_worker,
                warm_up=warm_up,
            )
            path = [Path(settings.function_path)] if target == settings.function else []
            self._pools[target] = pool.Pool(asked, num_workers=settings.workers or _num_workers(), path=path)
        return self._pools[target]


def _num_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_WORKERS)


def check(settings: config_lib.Verifier) -> None:
    """Refuses a reward function that can't be had; the attempt is made in a worker, where it will be imported.

    Raises:
      ValueError: `verifier.function_path` is no directory, the module can't be imported, or has no such function.
    """
    if not settings.function:
        return
    directory = Path(settings.function_path).resolve()
    if not directory.is_dir():
        raise ValueError(
            f"verifier.function_path={settings.function_path} is no directory. "
            "Name the one that holds the module of verifier.function."
        )
    asked = worker.Settings(
        settings.function, True, settings.cpu_limit, settings.wall_limit, settings.memory_limit << 20, 1, []
    )
    try:
        with pool.Pool(asked, num_workers=1, path=[directory]) as tried:
            tried.start()
    except pool.RefusedError as error:
        raise ValueError(
            f"verifier.function={settings.function} cannot be loaded: {error} (looked for in {directory}, then where Python "
            "finds its modules). Write MODULE:FUNCTION, and set verifier.function_path to the module's directory."
        ) from error


def check_failures(kinds: np.ndarray, *, most: float) -> None:
    """Refuses verdicts too many of which failed.

    Args:
      kinds: i8[B], indices into types.VERDICTS.
      most: share that may be `limit`, `timeout` or `crash`.

    Raises:
      UnreliableError: there are more.
    """
    counts = {kind: int(np.sum(kinds == types.VERDICTS.index(kind))) for kind in FAILURES}
    failed = sum(counts.values())
    if failed > most * len(kinds):
        found = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        raise UnreliableError(
            f"grading failed for {failed} of {len(kinds)} responses ({found}), more than verifier.max_failed_share={most:g} "
            "allows: their rewards would say little about the answers. Look at the responses in the run's rollouts/, repair "
            "verifier.function if it is yours, or raise verifier.wall_limit (timeout) or verifier.max_failed_share."
        )
