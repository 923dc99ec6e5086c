"""Exit codes of the `reval` command and of the demo."""

from __future__ import annotations

DONE = 0
FAILED = 1  # something that is not the user's input: one message, or the traceback of a fault in the program
WRONG_INPUT = 2  # one message on standard error says what to change
PREEMPTED = 75  # stopped by SIGTERM or SIGHUP: run the same command again to resume
INTERRUPTED = 130  # by SIGINT, as shells report it
OUTPUT_CLOSED = 141  # nobody reads standard output any more (`reval ... | head`)
