"""The `reval` command.

tyro turns dataclasses into flags with help; every command imports what it needs when it runs, so that `--help` and a
mistyped flag answer at once. Exit codes: 0 done; 2 the input is wrong (one message); 75 preempted after saving, run the
same command again; 1 failed; 130 interrupted; 141 nobody reads the output any more (`reval ... | head`).
"""

from __future__ import annotations

from reval_jax.cli import arguments, commands, output
from reval_jax.cli.entry import ARGUMENTS, COMMANDS, main

__all__ = ["ARGUMENTS", "COMMANDS", "arguments", "commands", "main", "output"]
