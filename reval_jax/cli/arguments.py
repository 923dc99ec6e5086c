"""The arguments of every command: tyro turns fields into flags and their comments into help."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from reval_jax import config as config_lib

Settings = Annotated[config_lib.Config, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
ConfigFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
ConfigFiles = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE"), tyro.conf.UseAppendAction]
Prediction = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PREDICTION")]
Gold = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GOLD")]


@dataclasses.dataclass(frozen=True)
class Train:
    """Train with the settings of a YAML file, or resume the run that the same command started.

    Every setting below can be set by --section.field VALUE, which overrides the file.
    """

    settings: Settings
    # YAML with any of the settings below. Give it twice to change the algorithm of a config: --config TASK.yaml --config
    # configs/algorithms/NAME.yaml; settings of a later file replace those of an earlier one.
    config: ConfigFiles = ()
    run_dir: Path | None = None  # directory of the run; default runs/NAME, after the names of the config files


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluate models or checkpoints on eval.benchmarks: avg@k, pass@k and maj@k with confidence intervals.

    Several policies answer the same problems; each is compared with the first by paired intervals.
    """

    settings: Settings
    config: ConfigFiles = ()  # YAML with any of the settings below; of several, a later one replaces settings of an earlier one
    # Evaluate the last checkpoints of these runs; the first run's config gives the defaults.
    run_dir: tuple[Path, ...] = ()
    round: tuple[int, ...] = ()  # evaluate the checkpoints of these rounds instead; 0 is the model before training
    json: Path | None = None  # also write the results, with everything needed to repeat them; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class Sample:
    """Print responses of a model or a checkpoint to one question."""

    settings: Settings
    prompt: str = ""  # the question; task.template turns it into a prompt
    samples: int = 1  # number of responses
    config: ConfigFiles = ()  # YAML with any of the settings below; of several, a later one replaces settings of an earlier one
    run_dir: Path | None = None  # sample from the last checkpoint of this run; its config gives the defaults
    round: int | None = None  # sample from the checkpoint of this round instead of the last
    json: Path | None = None  # also write the responses to this file; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Score every token of rollouts with any model: its endogenous reward, and whether it tells right from wrong.

    A model's logits hold a reward, log pi(a|s) + V(s) - V(s'), with V the logsumexp (arXiv 2506.23235). Prints the AUC of
    scores of a response against its verdict, within each prompt: the reward's sum, mean and discounted sums, log pi(tau) and
    its mean. The model is the run's initial one, unless --checkpoint_round or --model.path names another. Tokens are those
    that were sampled; where the file has none, or the model has another tokenizer, the text is tokenized again, which may
    give others. Of a run it also scores responses of all rounds for `reval report`, which colours their tokens.
    """

    settings: Settings
    config: ConfigFile = None  # YAML with any of the settings below
    run_dir: Path | None = None  # run whose rollouts and initial model to inspect; its config gives the defaults
    round: tuple[int, ...] = ()  # rounds whose rollouts are scored; default: the last
    rollouts: tuple[Path, ...] = ()  # score these files, like RUN/rollouts/round_000001.jsonl.gz, instead of the run's
    checkpoint_round: int | None = None  # score with the run's checkpoint of this round; 0 is the model before training
    # Also score responses of about so many tokens, spread over the rounds (or --round), under the run's last checkpoint and its
    # initial model, and keep the numbers in RUN_DIR/token_scores.jsonl.gz for `reval report`; 0 for none. Not with --rollouts,
    # --json or another --model.path.
    report_tokens: int = 20_000
    output: Path | None = None  # also write each response, with its tokens and their rewards, to this .jsonl file
    json: Path | None = None  # write the results to this file, not RUN_DIR/inspect.json; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a checkpoint as a directory that `transformers` loads.

    A value head that the run trained is written apart, as OUTPUT/value_head/value_head.safetensors: `weight` and `bias` of
    V(s) = hidden · weight + bias, with the last hidden states after the final norm.
    """

    run_dir: Path  # directory of the run
    output: Path  # directory to write; must be new or empty
    round: int | None = None  # export the checkpoint of this round instead of the last
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the exported weights


@dataclasses.dataclass(frozen=True)
class Report:
    """Show what happened in a run as one HTML file, which any browser opens without a network; docs/report.md explains it.

    First and last score with 95% intervals and what to know first; curves of the metrics; a browser of rollouts by round,
    prompt, verdict, reward and length. Its tokens have colours once `reval inspect --run-dir RUN` has scored them.
    """

    run_dir: Path  # directory of the run, which may be training still
    # Show this run too, on the same axes, with the settings that differ; without the browser of rollouts.
    compare: Path | None = None
    output: Path | None = None  # file to write; default RUN_DIR/report.html, or RUN_DIR/comparison.html with --compare


@dataclasses.dataclass(frozen=True)
class Plan:
    """Check whether a run fits a TPU slice or hosts with NVIDIA GPUs, by compiling its programs; needs no TPU and no GPU.

    Compiling for TPUs needs jax's extra tpu (libtpu), for GPUs the extra plan-cuda (wheels, no driver). Memory is that
    of the compiled programs; times are estimates from published rates. Of a GPU's memory programs get jax's default of 75%, or
    XLA_PYTHON_CLIENT_MEM_FRACTION.
    """

    settings: Settings
    config: ConfigFiles = ()  # YAML with any of the settings below; of several, a later one replaces settings of an earlier one
    # TPU slice, for example v5e-16, v5p-128 (64 chips: v4 and v5p names count TensorCores) or v5e:4x4; or GPUs of a host: h100:8,
    # h200:8, a100-80gb:8, b200:8, or of several hosts of up to eight: 4xh100:8.
    topology: str = ""
    search: bool = False  # find the fastest remat, micro_batch_tokens, decode_slots and, if necessary, tensor that fit
    json: Path | None = None  # also write the plan to this file; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class Verify:
    """Explain how a response is graded.

    For example: reval verify --extracted 2/4 0.5

    PREDICTION and GOLD may begin with "-". After "--" no word is read as an option.
    """

    prediction: Prediction  # a response with its answer; with --extracted, the answer alone
    gold: Gold  # the correct answer; ' ||| ' separates alternative forms
    extracted: bool = False  # PREDICTION is an answer, not a whole response
    answer_format: config_lib.AnswerFormat = "boxed"  # which part of a response is its answer
    json: Path | None = None  # also write the verdict to this file; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Check this machine: versions, devices, memory, disk, and whether reval_jax computes correctly on it; or a run directory."""

    # Check instead what of this run is whole: config, checkpoints, metrics, rollouts, journal, and which process uses it.
    run_dir: Path | None = None
    json: Path | None = None  # also write the findings to this file; /dev/stdout allowed


def format_names() -> Any:
    """The type of `--format`, a key of `data.formats.FORMATS`; imported on demand, because that takes a second."""
    from reval_jax.data import formats

    return Literal[tuple(formats.FORMATS)]


# Without this hint tyro would put brackets around the name.
FormatName = Annotated[str, tyro.conf.arg(constructor_factory=format_names, help_behavior_hint="(default: plain)")]


@dataclasses.dataclass(frozen=True)
class Data:
    """Prepare and inspect data sets: `data prepare` writes one, `data inspect` describes one, `data pool` keeps right answers."""


@dataclasses.dataclass(frozen=True)
class DataPrepare:
    """Check every row of files and write them as a data set for task.dataset or eval.benchmarks.

    A bad row is reported by file and line, and refused unless quarantine_fraction allows it. docs/data.md lists the formats.
    """

    # .jsonl, .json, .parquet or .csv files; without any, the format's published file is downloaded from the hub.
    input: tuple[Path, ...] = ()
    output: Path | None = None  # directory to write; must be new or empty
    config: ConfigFile = None  # YAML with any of these options under the same names; the command line overrides it
    # Format of the files: the names of question and answer, and where the gold answer is.
    format: FormatName = "plain"
    question: str = ""  # with format plain: name of the question field, instead of `question`
    answer: str = ""  # with format plain: name of the gold answer field, instead of `answer`
    split: str = "train"  # name of the split that the rows form
    max_characters: int = 20_000  # maximum characters of a question, and of an answer
    max_tokens: int = 0  # maximum tokens of a question, without its template, by --model's tokenizer; 0 for no limit
    model: str = ""  # directory, .gguf file or hub id; a question with a special token of its tokenizer is a bad row
    quarantine_fraction: float = 0.0  # largest share of bad rows to leave out; they are listed in quarantine.jsonl
    seed: int = 0  # for the order of gpqa's options
    json: Path | None = None  # also write a summary, or every bad row, to this file; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class DataInspect:
    """Describe a data set: rows, lengths, duplicates, bad rows, examples, and overlap with evaluation sets."""

    dataset: tyro.conf.Positional[str]  # file, directory of `data prepare`, or procedural:NAME
    against: tuple[str, ...] = ()  # evaluation sets, named likewise, to compare with: report questions in both
    # Format of a file; a directory needs none.
    format: FormatName = "plain"
    question: str = ""  # with format plain: name of the question field, instead of `question`
    answer: str = ""  # with format plain: name of the gold answer field, instead of `answer`
    split: str = "train"  # split of a directory to read
    max_characters: int = 20_000  # maximum characters of a question, and of an answer, in a file
    model: str = ""  # directory, .gguf file or hub id whose tokenizer counts tokens
    examples: int = 3  # rows to show
    json: Path | None = None  # also write the findings to this file; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class DataPool:
    """Write a run's right responses as a file for rollout.pool, which mixes them into the groups of another run (RLEP).

    They are the responses with the verdict ok in the replay buffers of the run's checkpoints, with their exact tokens. So the
    run's replay.capacity bounds what a checkpoint holds, checkpoint.every and checkpoint.keep how many there are.
    """

    run_dir: Path  # directory of the run
    round: tuple[int, ...] = ()  # read the checkpoints of these rounds; default: all that are kept
    output: Path | None = None  # file to write, which must not exist; default RUN_DIR/pool.npz
    json: Path | None = None  # also write the counts to this file; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class Bench:
    """Time the compiled programs: `bench scores` the LM head, `bench update` an optimizer step, `bench sampler` generation."""


@dataclasses.dataclass(frozen=True)
class BenchScores:
    """Compare the fused LM head with full logits in time and memory, forward and backward, over a grid of sizes.

    Times are medians of interleaved calls. docs/performance.md explains the results.
    """

    tokens: tuple[int, ...] = (1024,)  # numbers of scored tokens
    vocabulary: tuple[int, ...] = (49152, 151936)  # vocabulary sizes
    width: tuple[int, ...] = (576, 896)  # model widths, one for each vocabulary
    dtype: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")  # of the operands of matrix products
    repeats: int = 5  # timed calls of each candidate
    memory: float = 8.0  # GiB; full logits that need more are compiled, but not run
    json: Path | None = None  # also write the results to this file; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class BenchUpdate:
    """Measure tokens per second and MFU of the update at fixed and skewed lengths, and the time that replay saves.

    The weights are random; only the architecture matters. Times are medians of interleaved calls.
    """

    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"  # directory, .gguf file or hub id of the architecture
    rows: int = 16  # trajectories of the fixed-length batch; the skewed batch has four times as many
    tokens: int = 128  # tokens of the longest trajectory
    prompt_tokens: int = 16  # tokens of the prompt, part of `tokens`
    micro_batch_tokens: int = 1024  # tokens per device and micro-batch
    dtype: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)  # of the operands of matrix products
    # What the backward pass recomputes.
    remat: tuple[Literal["none", "dots", "attention", "full"], ...] = ("none", "full")
    repeats: int = 3  # timed calls of each candidate
    json: Path | None = None  # also write the results to this file; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class BenchSampler:
    """Measure tokens per second of generation at fixed and log-normal lengths, and compare with this machine's roofline.

    The weights are random; only the architecture matters. Each response ends at a prescribed length. Times are medians.
    """

    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"  # directory, .gguf file or hub id of the architecture
    prompts: int = 8  # prompts per run; twice as many at log-normal lengths
    samples: int = 8  # responses per prompt
    prompt_tokens: int = 32  # tokens of a prompt
    response_tokens: int = 64  # tokens of a response; the mean at log-normal lengths, whose longest is four times that
    slots: tuple[int, ...] = (64,)  # responses decoded simultaneously
    window: int = 16  # decode steps per device call
    lengths: tuple[Literal["fixed", "lognormal"], ...] = ("fixed", "lognormal")  # of responses
    dtype: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)  # of the operands of matrix products
    kv_cache: tuple[Literal["compute", "int8"], ...] = ("compute",)  # dtype of cached keys and values
    # Decode attention over the cache; auto is the platform's choice. batched: all rows in one operation, block by block; per_row:
    # one row after another; whole: all positions at once; triton: one kernel, on GPUs.
    attention: tuple[Literal["auto", "batched", "per_row", "whole", "triton"], ...] = ("auto",)
    repeats: int = 3  # timed runs
    json: Path | None = None  # also write the results to this file; /dev/stdout allowed
