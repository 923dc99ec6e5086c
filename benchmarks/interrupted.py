"""One long run that is stopped twice on its way, evaluated before and after.

    python -m benchmarks.interrupted [--config configs/gsm8k_smollm2.yaml] [--stops TERM:5 KILL:12]

Each stop is a signal, sent while the round after so many finished ones samples; then the same `reval train` goes on. At the
end `reval eval` compares the last round with the untrained model. A run that is complete in --runs is neither trained nor
evaluated again. Writes docs/NAME.json and docs/NAME.svg, NAME the config's; no problem's text or answer is in them.
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

import matplotlib
import tyro

from reval_jax import config as config_lib
from reval_jax import metrics

matplotlib.use("agg")
from matplotlib import pyplot as plt

CURVES = {
    "share of the responses that are right": "critic/score/mean",
    "loss": "actor/loss",
    "gradient norm before clipping": "actor/grad_norm",
    "tokens a response": "response_length/mean",
}
"""Panels of the plot."""

ALSO = ("actor/kl_ref", "timing_s/generate", "timing_s/round")
"""Metrics that are kept beside those that are drawn."""

EXIT_CODES = {"TERM": 75, "KILL": -signal.SIGKILL}
"""Signals that a run may be stopped by, and how it ends then."""


@dataclasses.dataclass(frozen=True)
class Interrupted:
    """Train with interruptions, and compare the two ends."""

    config: Path = Path("configs/gsm8k_smollm2.yaml")
    stops: tuple[str, ...] = ("TERM:5", "KILL:12")  # signal (TERM or KILL) and finished rounds after which it is sent
    delay: float = 30  # seconds into the round that is cut
    runs: Path = Path("runs")  # where the run lives
    docs: Path = Path("docs")  # where the figures go


class Stop(NamedTuple):
    """A signal, and the finished rounds after which it is sent."""

    signum: signal.Signals
    rounds: int


def main() -> None:
    """Runs what is missing and draws it."""
    given = tyro.cli(Interrupted)
    stops = [read_stop(text) for text in given.stops]
    try:
        settings = config_lib.load(given.config)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    run_dir = given.runs / given.config.stem
    given.docs.mkdir(exist_ok=True)
    log, evaluation = run_dir / "interruptions.jsonl", run_dir / "eval.json"
    sent = metrics.read(log) if log.exists() else []
    for stop in stops[len(sent) :]:
        interrupt(given, run_dir, stop, log)
    if num_finished(run_dir) < settings.run.rounds:
        call(train(given, run_dir))
    if not evaluation.exists():
        rounds = ["--round", "0", str(settings.run.rounds)]
        call([*reval("eval"), "--run-dir", str(run_dir), *rounds, "--json", str(evaluation)])
    record = describe(
        given, run_dir, metrics.read(log) if log.exists() else [], json.loads(evaluation.read_text(encoding="utf-8"))
    )
    target = given.docs / f"{given.config.stem}.json"
    target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(record, target.with_suffix(".svg"))
    for name, difference in record["difference"].items():
        print(f"{name}: {difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]")


def read_stop(text: str) -> Stop:
    """A stop as it is written on the command line."""
    name, _, rounds = text.partition(":")
    if name not in EXIT_CODES or not rounds.isdigit():
        raise SystemExit(
            f"--stops {text}: write SIGNAL:ROUNDS, SIGNAL one of {', '.join(EXIT_CODES)}, for example TERM:5."
        )
    return Stop(signal.Signals[f"SIG{name}"], int(rounds))


def interrupt(given: Interrupted, run_dir: Path, stop: Stop, log: Path) -> None:
    """Trains until so many rounds are finished, sends the signal into the next one, and notes what came of it."""
    process = subprocess.Popen(train(given, run_dir))
    try:
        while num_finished(run_dir) < stop.rounds and process.poll() is None:
            time.sleep(1)
        time.sleep(given.delay)
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
    """Runs a command, which says itself what is wrong; ends with its exit code then."""
    code = subprocess.run(command).returncode
    if code:
        raise SystemExit(code)


def reval(command: str) -> list[str]:
    """The beginning of a `reval` command line."""
    return [sys.executable, "-m", "reval_jax", command]


def train(given: Interrupted, run_dir: Path) -> list[str]:
    """The command that starts the run, and that goes on with it."""
    return [*reval("train"), "--config", str(given.config), "--run-dir", str(run_dir)]


def num_finished(run_dir: Path) -> int:
    """Rounds whose line in metrics.jsonl is whole, without the evaluation of the untrained model."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    return max((json.loads(line)["training/round"] for line in lines if line.endswith("\n")), default=0)


def describe(
    given: Interrupted, run_dir: Path, interruptions: list[dict[str, Any]], evaluation: dict[str, Any]
) -> dict[str, Any]:
    """What is quoted: curves, interruptions, and the evaluation without its problems."""
    rounds = [line for line in metrics.read(run_dir / "metrics.jsonl") if line["training/round"]]
    ends = ({key: value for key, value in result.items() if key != "problems"} for result in evaluation["results"])
    return {
        "command": f"python -m benchmarks.interrupted --config {given.config} --stops {' '.join(given.stops)}",
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
    """The curves by round, with a line where the run was stopped."""
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
