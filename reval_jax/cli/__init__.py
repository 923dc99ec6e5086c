"""The `reval` command.

tyro turns dataclasses into flags with help. Each command imports its dependencies when it runs, so that `--help` and a
mistyped flag answer at once. `reval_jax/exit_codes.py` lists the exit codes.
"""

from __future__ import annotations

from reval_jax.cli import arguments, commands, output
from reval_jax.cli.entry import ARGUMENTS, COMMANDS, main

__all__ = ["ARGUMENTS", "COMMANDS", "arguments", "commands", "main", "output"]
