"""Every command's arguments: tyro turns the fields into flags, and the comments behind them into help."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from reval_jax import config as config_lib

Settings = Annotated[config_lib.Config, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
ConfigFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Prediction = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PREDICTION")]
Gold = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GOLD")]


@dataclasses.dataclass(frozen=True)
class Train:
    """Train by the settings in a YAML file, or go on where the same command stopped.

    Every setting below can be given as --section.field VALUE and then overrides the file.
    """

    settings: Settings
    config: ConfigFile = None  # YAML with any of the settings below
    run_dir: Path | None = None  # where the run lives; default runs/NAME, NAME being the config file's


@dataclasses.dataclass(frozen=True)
class Eval:
    """Measure avg@k, pass@k and maj@k of models or of runs' checkpoints on eval.benchmarks, with intervals.

    Several policies answer the same problems, and each is compared with the first by paired intervals.
    """

    settings: Settings
    config: ConfigFile = None  # YAML with any of the settings below
    run_dir: tuple[Path, ...] = ()  # evaluate these runs' last checkpoints; the first one's config is the default
    round: tuple[int, ...] = ()  # evaluate the checkpoints of these rounds instead; 0 is the model before training
    json: Path | None = None  # write everything it takes to repeat this; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class Sample:
    """Print responses of a model or of a run's checkpoint to one prompt."""

    settings: Settings
    prompt: str = ""  # the question; rendered by task.template
    samples: int = 1  # responses
    config: ConfigFile = None  # YAML with any of the settings below
    run_dir: Path | None = None  # sample from this run's last checkpoint; its config is the default
    round: int | None = None  # sample from the checkpoint of this round instead of the last
    json: Path | None = None  # write the responses here too; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a run's policy as a directory that `transformers` loads."""

    run_dir: Path  # the run
    output: Path  # a directory that is new or empty
    round: int | None = None  # the checkpoint of this round instead of the last
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the written weights


@dataclasses.dataclass(frozen=True)
class Report:
    """Draw a run's metrics into report.html, one file without outside references."""

    run_dir: Path  # the run
    output: Path | None = None  # the file; default RUN_DIR/report.html


@dataclasses.dataclass(frozen=True)
class Plan:
    """Say whether a run fits a TPU slice, by compiling its programs for it; needs libtpu, but no TPU."""

    settings: Settings
    config: ConfigFile = None  # YAML with any of the settings below
    topology: str = ""  # the slice, for example v5e-16, v5p-128 (64 chips; v4 and v5p count TensorCores) or v5e:4x4
    search: bool = False  # find the fastest remat, micro_batch_tokens, decode_slots and, if need be, tensor that fit
    json: Path | None = None  # write the plan here too; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class Verify:
    """Explain how a response is graded.

    For example: reval verify --extracted 2/4 0.5
    PREDICTION and GOLD stand beside each other, and may begin with -.
    """

    prediction: Prediction  # a response with its answer in a box; with --extracted, the answer alone
    gold: Gold  # the right answer; several forms of it with ' ||| ' between them
    extracted: bool = False  # PREDICTION is an answer, not a response it would have to be found in
    answer_format: config_lib.AnswerFormat = "boxed"  # how the answer is found in a response
    json: Path | None = None  # write the verdict here too; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Say what this machine has and whether reval_jax computes right on it."""

    json: Path | None = None  # write the findings here too; /dev/stdout allowed


def format_names() -> Any:
    """The type of `--format`: a key of `data.formats.FORMATS`, which takes a second to import and so is when asked for."""
    from reval_jax.data import formats

    return Literal[tuple(formats.FORMATS)]


# The hint is given because tyro's would put brackets around the name here.
FormatName = Annotated[str, tyro.conf.arg(constructor_factory=format_names, help_behavior_hint="(default: plain)")]


@dataclasses.dataclass(frozen=True)
class Data:
    """Make and look at prompt sets: `data prepare` checks files and writes a data set, `data inspect` says what is in one."""


@dataclasses.dataclass(frozen=True)
class DataPrepare:
    """Check every row of files and write them as a data set for task.dataset or eval.benchmarks.

    A bad row is named by file and line, and the whole is refused unless a share may be quarantined. docs/data.md lists formats.
    """

    # .jsonl, .json, .parquet or .csv files; none: the format's published file, from the hub.
    input: tuple[Path, ...] = ()
    output: Path | None = None  # the directory to write; it must be new or empty
    config: ConfigFile = None  # YAML with any of these options, by the same names; the command line goes on top
    # How the files name question and answer, and where the gold answer is.
    format: FormatName = "plain"
    question: str = ""  # plain: the field with the question, instead of `question`
    answer: str = ""  # plain: the field with the gold answer, instead of `answer`
    split: str = "train"  # what the rows are a split of
    max_characters: int = 20_000  # characters of a question, and of an answer
    max_tokens: int = 0  # tokens of a question, its template not counted, by --model's tokenizer; 0 for no limit
    model: str = ""  # directory, .gguf file or hub id: no question may hold a special token of its tokenizer
    quarantine_fraction: float = 0.0  # share of the rows that may be left out; they are named in quarantine.jsonl
    seed: int = 0  # of the order of gpqa's options
    json: Path | None = None  # write what was made, or every bad row, here too; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class DataInspect:
    """Rows, lengths, duplicates, bad rows and examples of a data set, and what it shares with evaluation sets."""

    dataset: tyro.conf.Positional[str]  # a file, a directory of `data prepare`, or procedural:NAME
    against: tuple[str, ...] = ()  # evaluation sets, named likewise, that it should share nothing with
    # How a file names question and answer; a directory needs none.
    format: FormatName = "plain"
    question: str = ""  # plain: the field with the question, instead of `question`
    answer: str = ""  # plain: the field with the gold answer, instead of `answer`
    split: str = "train"  # split of a directory
    max_characters: int = 20_000  # characters of a question, and of an answer, in a file
    model: str = ""  # directory, .gguf file or hub id whose tokenizer counts tokens
    examples: int = 3  # rows shown
    json: Path | None = None  # write the findings here too; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class Bench:
    """Time the compiled programs: `bench scores` the head alone, `bench update` a step, `bench sampler` generation."""


@dataclasses.dataclass(frozen=True)
class BenchScores:
    """Time and memory of the fused score head, forward and backward, beside full logits, over a grid of sizes.

    Figures are medians, ours and full logits' taken in turns. docs/performance.md says how to read them.
    """

    tokens: tuple[int, ...] = (1024,)  # scored tokens
    vocabulary: tuple[int, ...] = (49152, 151936)  # columns of the head
    width: tuple[int, ...] = (576, 896)  # rows of the head, one for each vocabulary
    dtype: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")  # of the products' operands
    repeats: int = 5  # timed calls of each side
    memory: float = 8.0  # GiB; full logits that need more are compiled but not run
    json: Path | None = None  # write the results here too; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class BenchUpdate:
    """Tokens a second and MFU of the compiled update, at fixed and at skewed lengths, and what replay saves.

    The model has random weights; only its shape matters. Figures are medians of calls taken in turns.
    """

    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"  # directory, .gguf file or hub id whose shape is used
    rows: int = 16  # trajectories of the fixed batch; the skewed one has four times as many
    tokens: int = 128  # tokens of the longest trajectory
    prompt_tokens: int = 16  # of them, the prompt's
    micro_batch_tokens: int = 1024  # tokens a device trains on at once
    dtype: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)  # of the products' operands
    remat: tuple[Literal["none", "dots", "attention", "full"], ...] = ("none", "full")  # what is recomputed
    repeats: int = 3  # timed calls of each side
    json: Path | None = None  # write the results here too; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class BenchSampler:
    """Tokens a second of generation at fixed and log-normal lengths, beside what this machine could do at best.

    The model has random weights; only its shape matters. Every response is cut at its own length. Figures are medians.
    """

    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"  # directory, .gguf file or hub id whose shape is used
    prompts: int = 8  # prompts a run; twice as many at log-normal lengths
    samples: int = 8  # responses a prompt
    prompt_tokens: int = 32  # tokens of a prompt
    response_tokens: int = 64  # tokens of a response; log-normal: their mean, a quarter of the longest
    slots: tuple[int, ...] = (64,)  # responses decoded at once
    window: int = 16  # tokens between two looks by the host
    lengths: tuple[Literal["fixed", "lognormal"], ...] = ("fixed", "lognormal")  # of responses
    dtype: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)  # of the products' operands
    kv_cache: tuple[Literal["compute", "int8"], ...] = ("compute",)  # what keys and values are kept in
    attention: tuple[Literal["auto", "batched", "per_row"], ...] = (
        "auto",
    )  # over the cache: all rows together, or each
    repeats: int = 3  # timed runs
    json: Path | None = None  # write the results here too; /dev/stdout allowed
