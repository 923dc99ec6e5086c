"""The demo from a cold compilation cache."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.parts import Emit, SkippedError

ROOT = Path(__file__).resolve().parents[2]
MODEL = Path("models") / "SmolLM2-135M-Instruct.gguf"


def demo(is_small: bool, emit: Emit) -> None:
    """Seconds to the end of the first round and to the end of the demo; small: of few samples, stopped after the first round."""
    if not (ROOT / MODEL).is_file():
        raise SkippedError(f"{MODEL} is missing: `make demo` downloads it, or bring it (93 MB)")
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        # The demo reads and writes relative to where it runs: here its run is new, and no other run is touched.
        for name in ("configs", "models"):
            (directory / name).symlink_to(ROOT / name)
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(directory / "xla")}
        words = [sys.executable, "-m", "reval_jax.tools.demo", *(["--samples", "4"] if is_small else [])]
        start = time.monotonic()
        process = subprocess.Popen(words, cwd=directory, env=environment, stdout=sys.stderr)
        metrics = directory / "runs" / "demo_medium" / "metrics.jsonl"
        _wait_for_line(process, metrics)
        first = time.monotonic() - start
        if is_small:
            process.send_signal(signal.SIGTERM)
        code = process.wait()
        if not metrics.exists():
            raise RuntimeError(f"the demo ended with exit code {code} before its first round")
        rounds = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        emit(
            {
                "what": "demo, cold cache",
                "first_round_s": first,
                "all_s": time.monotonic() - start,
                "rounds": len(rounds),
                "round_s": [line["timing_s/round"] for line in rounds],
                "score": [line["critic/score/mean"] for line in rounds],
                "exit_code": code,
                "is_fine": code == (75 if is_small else 0),  # 75: stopped by the signal, and saved
            }
        )


def _wait_for_line(process: subprocess.Popen[bytes], metrics: Path) -> None:
    """Waits until the file has a line or the process has ended."""
    while process.poll() is None and not (metrics.exists() and b"\n" in metrics.read_bytes()):
        time.sleep(0.05)
