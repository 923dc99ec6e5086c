"""Exit codes of the `reval` command and of the demo."""

from __future__ import annotations

DONE = 0
FAILED = 1
WRONG_INPUT = 2  # one message on standard error says what to change
PREEMPTED = 75  # stopped on request, after saving: run the same command again
INTERRUPTED = 130  # by SIGINT, as shells report it
OUTPUT_CLOSED = 141  # nobody reads standard output any more (`reval ... | head`)
