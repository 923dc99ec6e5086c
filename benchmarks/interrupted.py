"""Trains one long run that is interrupted twice, and evaluates the model before and after training.

    python -m benchmarks.interrupted [--config configs/gsm8k_smollm2.yaml] [--stops TERM:5 KILL:12]

A stop names a signal and a number of finished rounds; the signal is sent while the next round samples, and the same `reval train`
then resumes the run. At the end `reval eval` compares the last round with the untrained model. A run that is complete in --runs
is neither trained nor evaluated again. Writes docs/NAME.json and docs/NAME.svg for a config NAME.yaml, without the text or the
answer of any problem.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from reval_jax import config as config_lib
from reval_jax import metrics

CURVES = {
    "share of right responses": "critic/score/mean",
    "loss": "actor/loss",
    "gradient norm before clipping": "actor/grad_norm",
    "tokens per response": "response_length/mean",
}
"""Title → metric of each panel."""

ALSO = ("actor/kl_ref", "timing_s/generate", "timing_s/round")
"""Metrics that are recorded, but not plotted."""

EXIT_CODES = {"TERM": 75, "KILL": -signal.SIGKILL}
"""Signal that stops a run → the exit code expected then."""


@dataclasses.dataclass(frozen=True)
class Interrupted:
    """Train with interruptions, and compare the trained with the untrained model."""

    config: Path = Path("configs/gsm8k_smollm2.yaml")
    stops: tuple[str, ...] = ("TERM:5", "KILL:12")  # signal (TERM or KILL) and finished rounds after which it is sent
    delay: float = 30  # seconds of sampling before the signal
    runs: Path = Path("runs")  # parent directory of the run
    docs: Path = Path("docs")  # directory of the results


class Stop(NamedTuple):
    """A signal, and the number of finished rounds after which it is sent."""

    signum: signal.Signals
    rounds: int


def main() -> None:
    """Does the missing part of training and evaluation, and plots the run."""
    args = tyro.cli(Interrupted)
    stops = [read_stop(text) for text in args.stops]
    try:
        settings = config_lib.load(args.config)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    run_dir = args.runs / args.config.stem
    args.docs.mkdir(exist_ok=True)
    log, evaluation = run_dir / "interruptions.jsonl", run_dir / "eval.json"
    sent = metrics.read(log) if log.exists() else []
    for stop in stops[len(sent) :]:
        interrupt(args, run_dir, stop, log)
    if num_finished(run_dir) < settings.run.rounds:
        call(train(args, run_dir))
    if not evaluation.exists():
        rounds = ["--round", "0", str(settings.run.rounds)]
        call([*reval("eval"), "--run-dir", str(run_dir), *rounds, "--json", str(evaluation)])
    record = describe(
        args, run_dir, metrics.read(log) if log.exists() else [], json.loads(evaluation.read_text(encoding="utf-8"))
    )
    target = args.docs / f"{args.config.stem}.json"
    target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(record, target.with_suffix(".svg"))
    for name, difference in record["difference"].items():
        print(f"{name}: {difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]")


def read_stop(text: str) -> Stop:
    """Parses a stop of the command line."""
    name, _, rounds = text.partition(":")
    if name not in EXIT_CODES or not rounds.isdigit():
        raise SystemExit(
            f"--stops {text}: write SIGNAL:ROUNDS, SIGNAL one of {', '.join(EXIT_CODES)}, for example TERM:5."
        )
    return Stop(signal.Signals[f"SIG{name}"], int(rounds))


def interrupt(args: Interrupted, run_dir: Path, stop: Stop, log: Path) -> None:
    """Trains until `stop.rounds` rounds are finished, sends the signal during the next one, and logs the result."""
    process = subprocess.Popen(train(args, run_dir))
    try:
        while num_finished(run_dir) < stop.rounds and process.poll() is None:
            time.sleep(1)
        time.sleep(args.delay)
        reached, sent = num_finished(run_dir), time.monotonic()
        process.send_signal(stop.signum)
        code = process.wait()
    finally:
        process.kill()
    if code != EXIT_CODES[stop.signum.name.removeprefix("SIG")]:
        raise SystemExit(f"The run ended with exit code {code} before it could be stopped by {stop.signum.name}.")
    note = {"signal": stop.signum.name, "rounds": reached, "exit": code, "seconds": round(time.monotonic() - sent, 1)}
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(note) + "\n")


def call(command: list[str]) -> None:
    """Runs a command; exits with its exit code if it fails, since it has printed the reason."""
    code = subprocess.run(command).returncode
    if code:
        raise SystemExit(code)


def reval(command: str) -> list[str]:
    """First words of a `reval` command line."""
    return [sys.executable, "-m", "reval_jax", command]


def train(args: Interrupted, run_dir: Path) -> list[str]:
    """The command that starts or resumes the run."""
    return [*reval("train"), "--config", str(args.config), "--run-dir", str(run_dir)]


def num_finished(run_dir: Path) -> int:
    """The last round with a complete line in metrics.jsonl; 0 before the first."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    return max((json.loads(line)["training/round"] for line in lines if line.endswith("\n")), default=0)


def describe(
    args: Interrupted, run_dir: Path, interruptions: list[dict[str, Any]], evaluation: dict[str, Any]
) -> dict[str, Any]:
    """The record to write: curves, interruptions, and the evaluation without its problems."""
    rounds = [line for line in metrics.read(run_dir / "metrics.jsonl") if line["training/round"]]
    ends = ({key: value for key, value in result.items() if key != "problems"} for result in evaluation["results"])
    return {
        "command": f"python -m benchmarks.interrupted --config {args.config} --stops {' '.join(args.stops)}",
        "machine": f"{platform.machine()}, {platform.platform()}",
        "settings": evaluation["settings"],
        "packages": evaluation["packages"],
        "interruptions": interruptions,
        "minutes": sum(line["timing_s/round"] for line in rounds) / 60,
        "curves": {key: [line[key] for line in rounds] for key in (*CURVES.values(), *ALSO)},
        "ends": list(ends),
        "difference": evaluation["comparisons"][0]["differences"],
    }


def draw(record: dict[str, Any], target: Path) -> None:
    """Plots the curves by round, with a line at each interruption."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for axes, (title, key) in zip(panels.flat, CURVES.items(), strict=True):
        curve = record["curves"][key]
        axes.plot(range(1, len(curve) + 1), curve, marker=".")
        for stop in record["interruptions"]:
            axes.axvline(stop["rounds"] + 0.5, color="grey", linestyle=":")
            axes.annotate(stop["signal"], (stop["rounds"] + 0.5, max(curve)), fontsize="x-small")
        axes.set(title=title, xlabel="round")
        axes.grid(alpha=0.3)
    figure.savefig(target)


if __name__ == "__main__":
    main()
