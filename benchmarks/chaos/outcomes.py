"""What an attack may end with, and how an end is told from what a process printed, returned and left on disk."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

IDENTICAL = "identical"
SAID = "said"
SILENT = "silent"
TRACEBACK = "traceback"
HANG = "hang"
UNCLEAR = "unclear"
LATE = "late"
NOT_RUN = "not run"

OUTCOMES = {
    IDENTICAL: "after a resume no byte differs from the run that was never stopped",
    SAID: "one message names what is damaged or refused, or an older whole checkpoint is used and that is said",
    SILENT: "something differs, and nothing was said",
    TRACEBACK: "a traceback or a crash of the interpreter",
    HANG: "a process did not end by itself",
    UNCLEAR: "another exit code than promised, no message, several, or one that names nothing",
    LATE: "it ended later than promised",
    NOT_RUN: "this machine lacks what the attack needs",
}
"""Outcome → what it means."""

KEPT = (IDENTICAL, SAID)
"""The outcomes that keep every promise."""

CRASHES = ("Traceback (most recent call last)", "Fatal Python error", "Check failure stack trace", "terminate called")

WRITTEN_BY_LIBRARIES = re.compile(r"^(W|E|I|F)\d{4} |^WARNING:|^Exception ignored")


class Attempt(NamedTuple):
    """One attack and its outcome."""

    part: str
    name: str
    outcome: str
    detail: str = ""  # of an outcome that breaks a promise: what was found
    faults: int = 1  # injected in this attempt
    seconds: float = 0.0  # that the part measures, such as from a signal to the end
    group: str = ""  # the attempt's row in the part's table

    @property
    def is_kept(self) -> bool:
        """Whether no promise is broken."""
        return self.outcome in (*KEPT, NOT_RUN)


class End(NamedTuple):
    """How a process ended."""

    code: int | None  # minus the signal that killed it; None: it had to be killed, because its time was over
    output: str  # both streams
    seconds: float  # from its start


def messages(output: str) -> list[str]:
    """The lines by which the command says why it ended."""
    return [line for line in output.splitlines() if line.startswith("reval: ")]


def has_crashed(output: str) -> bool:
    """Whether the output holds a traceback, or the stack of a crash."""
    return any(mark in output for mark in CRASHES)


def fault(
    end: End, *, codes: Collection[int], needs_message: bool | None = None, most_messages: int = 1
) -> tuple[str, str] | None:
    """The broken promise in how a process ended, as (outcome, detail), or None.

    Args:
      codes: the promised exit codes.
      needs_message: whether a message is promised; None: for every code but 0 and 75.
      most_messages: more are a fault too.
    """
    tail = "\n".join(end.output.splitlines()[-12:])
    if end.code is None:
        return HANG, f"did not end within {end.seconds:.0f} s: {tail}"
    if has_crashed(end.output):
        lines = [line for line in end.output.splitlines() if line.strip()]
        return TRACEBACK, f"exit code {end.code}, {len(lines)} lines: {' | '.join(lines[-3:])}"
    if end.code not in codes:
        return UNCLEAR, f"exit code {end.code}, promised {sorted(codes)}: {tail}"
    if needs_message is None:
        needs_message = end.code not in (0, 75)
    if needs_message and not 1 <= len(messages(end.output)) <= most_messages:
        return UNCLEAR, f"exit code {end.code} with {len(messages(end.output))} messages: {tail}"
    return None


def compared(differences: Sequence[str], said: str = "") -> tuple[str, str]:
    """(outcome, detail) of a run that ended, from its differences to the run that was never stopped.

    Args:
      said: what was said about the damage; empty: nothing.
    """
    if not differences:
        return (SAID, said) if said else (IDENTICAL, "")
    return SILENT, f"{'; '.join(differences[:4])} ({len(differences)} differences){f'; said: {said}' if said else ''}"


def counts(attempts: Sequence[Attempt]) -> dict[str, int]:
    """Number of attempts by outcome, in the order of `OUTCOMES`."""
    return {name: count for name in OUTCOMES if (count := sum(attempt.outcome == name for attempt in attempts))}
