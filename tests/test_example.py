"""The example of another trainer runs, and imports only jax."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_equations_train_in_a_program_that_has_jax_only():
    program = (
        "import runpy, sys\n"
        "runpy.run_path('docs/examples/own_trainer.py')\n"
        "print(sorted({'flax', 'optax', 'orbax', 'transformers', 'pydantic'} & {name.split('.')[0] for name in sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
