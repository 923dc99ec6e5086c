"""`python -m reval_jax` is the `reval` command."""

from __future__ import annotations

from reval_jax import cli

raise SystemExit(cli.main())
