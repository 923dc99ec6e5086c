"""Settings as frozen dataclasses: YAML in, command-line overrides on top, the resolved YAML out.

pydantic checks types and bounds, tyro (in `cli`) turns the same classes into `--section.field VALUE` flags whose help is
the comment behind each field; what concerns several fields at once is checked by `check`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml

PositiveInt = Annotated[int, pydantic.Field(gt=0, strict=True)]
Count = Annotated[int, pydantic.Field(ge=0, strict=True)]
PositiveFloat = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, pydantic.Field(gt=0, le=1)]
Decay = Annotated[float, pydantic.Field(ge=0, lt=1)]
FUNCTION_NAME = r"\w+(?:\.\w+)*:\w+(?:\.\w+)*"
BuiltIn = Literal["reval", "tbrm", "regression", "grpo"]
OBJECTIVES: tuple[str, ...] = typing.get_args(BuiltIn)
ENGINES = ("jax",)


def _choice(kind: str, built_in: tuple[str, ...]) -> pydantic.BeforeValidator:
    """A check that a value is the name of a built-in, or MODULE:FUNCTION."""

    def check(name: object) -> object:
        if name in built_in or (isinstance(name, str) and re.fullmatch(FUNCTION_NAME, name)):
            return name
        nearest = difflib.get_close_matches(str(name), built_in, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"no {kind} has this name. Did you mean '{nearest}'? Use one of {', '.join(built_in)}, or MODULE:FUNCTION of your own"
        )

    return pydantic.BeforeValidator(check)


Objective = Annotated[BuiltIn | str, _choice("objective", OBJECTIVES)]
Engine = Annotated[str, _choice("engine", ENGINES)]
AnswerFormat = Literal["boxed", "first_number", "last_number"]
STRICT = pydantic.ConfigDict(extra="forbid")


@dataclasses.dataclass(frozen=True)
class Model:
    """The model that is trained."""

    __pydantic_config__ = STRICT
    path: str = ""  # Hugging Face directory, hub id, or .gguf file
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # operands of matrix products; parameters stay float32
    # What the backward pass recomputes: norms and activations, all but products with weights, all but the attention, or all.
    remat: Literal["none", "dots", "attention", "full"] = "none"
    # Kernel: auto is splash on TPU, cudnn on GPU (bfloat16), xla elsewhere.
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"


@dataclasses.dataclass(frozen=True)
class Task:
    """The questions, and how answers are graded."""

    __pydantic_config__ = STRICT
    # .jsonl file with `question` and `answer`, a directory of `reval data prepare` (TFDS), or procedural:NAME,...
    dataset: str = ""
    split: str = "train"  # split of a TFDS directory
    template: Literal["raw", "chat", "r1_distill", "qwen2_5_math"] = "chat"  # how a question becomes a prompt
    # What follows every question, after a space, in raw and chat; the paper's templates have their own.
    instruction: str = ""
    max_prompt_tokens: PositiveInt = 1024  # tokens; a longer prompt is handled as `long_prompts` says
    long_prompts: Literal["error", "drop"] = "error"  # refuse a data set with longer prompts, or leave those rows out
    answer_format: AnswerFormat = "boxed"  # what of a response is graded


@dataclasses.dataclass(frozen=True)
class Verifier:
    """The processes that grade what exact comparison leaves open: each can be killed, and is kept from everything else."""

    __pydantic_config__ = STRICT
    workers: Count = 0  # processes; 0 is one for each CPU core, up to 16
    cpu_limit: PositiveFloat = 2.0  # seconds of CPU time for one answer; one that needs more is `limit`
    memory_limit: Annotated[int, pydantic.Field(ge=256, strict=True)] = 1024  # MiB of a process; more is `limit`
    # Seconds after which an answer is given up that neither ends nor computes: `timeout`.
    wall_limit: PositiveFloat = 30.0
    tasks_per_worker: PositiveInt = 100  # answers after which a process is replaced by a fresh one
    # Share of a round's verdicts that may be `limit`, `timeout` or `crash`; more stop the run.
    max_failed_share: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.25
    # Your own reward, MODULE:FUNCTION of (response, answer) with a number from 0 to 1; empty grades answers as ours does.
    function: str = ""
    function_path: str = ""  # directory that `function` is imported from; empty: where the run is started


@dataclasses.dataclass(frozen=True)
class Rollout:
    """How responses are sampled."""

    __pydantic_config__ = STRICT
    prompts_per_round: PositiveInt = 128  # prompts
    samples_per_prompt: PositiveInt = 8  # responses a prompt
    temperature: PositiveFloat = 1.0  # Q is logit / temperature, when sampling and in the loss
    top_k: Count = 0  # tokens kept before sampling; 0 keeps all
    top_p: Probability = 1.0  # probability mass kept before sampling; 1 keeps all
    max_response_tokens: PositiveInt = 8192  # tokens, the end-of-sequence token included
    # Dynamic sampling (DAPO): train on prompts whose samples are neither all right nor all wrong, sampling others instead.
    filter_groups: bool = False
    # With filter_groups: how often a round may sample prompts_per_round prompts; what is missing then is filled with the rest.
    max_waves: PositiveInt = 4
    # A response cut at the limit: its reward is kept, it is left out of the loss, or (DAPO) length near the limit costs reward.
    truncated: Literal["keep", "mask", "penalty"] = "keep"
    # With truncated=penalty: the last tokens before the limit, over which up to 1 is taken off the reward.
    penalty_tokens: Count = 0
    # Responses a process decodes at once, two or more a device; finished ones make room for the next.
    decode_slots: PositiveInt = 128
    decode_window: PositiveInt = 16  # tokens between two looks by the host: TPU 8-64, GPU and CPU 1-16
    # What samples: jax, this package's own sampler, or MODULE:FUNCTION of your own (docs/howto/sampler_engine.md).
    engine: Engine = "jax"
    # Keys and values of decoded tokens: as model.compute_dtype, or int8 with a scale a token and head: half of bfloat16's memory,
    # and log-probabilities a little off the learner's.
    kv_cache: Literal["compute", "int8"] = "compute"


@dataclasses.dataclass(frozen=True)
class Replay:
    """The buffer of trajectories."""

    __pydantic_config__ = STRICT
    capacity: PositiveInt = 5120  # trajectories kept; the oldest leave first


@dataclasses.dataclass(frozen=True)
class Update:
    """The loss and its schedule."""

    __pydantic_config__ = STRICT
    # The algorithm: a built-in, or your own, MODULE:FUNCTION of the config (see reval_jax/algorithms.py).
    objective: Objective = "reval"
    objective_path: str = ""  # directory that your own objective is imported from; empty: where the run is started
    beta: PositiveFloat = 0.002  # reward per nat; smaller weighs the reward more; not read by grpo
    # 0/1, -1/+1, or r minus the mean of the prompt's group.
    reward_design: Literal["binary", "signed", "group_normalized"] = "binary"
    updates_per_round: PositiveInt = 2  # optimizer steps a round; for grpo, mini-batches the fresh batch is split into
    fresh_first: bool = True  # the first update of a round trains on the fresh batch, the rest on replay draws
    batch_size: PositiveInt = 1024  # trajectories an update
    micro_batch_tokens: PositiveInt = 16384  # tokens a device trains on at once; at least one row
    reference_reset_every: Count = 0  # rounds; 0 never
    # Where the reference waits while no row is scored: in the host's memory, or on the devices.
    reference_memory: Literal["host", "device"] = "host"
    reset_optimizer: bool = False  # forget Adam's moments at a reference reset, and warm up again
    stop_value_gradient: bool = False  # leave out the gradient of V(s1), as Eq. 4 of the paper does
    clip_low: Decay = 0.2  # grpo: the ratio is clipped below at 1 - clip_low
    clip_high: NonNegativeFloat = 0.28  # grpo: the ratio is clipped above at 1 + clip_high
    # grpo: bound of the loss for a negative advantage, times -advantage.
    clip_dual: Annotated[float, pydantic.Field(gt=1)] = 3.0
    max_skipped: PositiveInt = 5  # non-finite updates in a row that stop the run


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW."""

    __pydantic_config__ = STRICT
    learning_rate: PositiveFloat = 1e-6  # AdamW
    warmup_updates: Count = 0  # updates over which the learning rate climbs linearly from 0
    weight_decay: NonNegativeFloat = 0.01  # decoupled, on every parameter
    b1: Decay = 0.9  # decay of Adam's first moment
    b2: Decay = 0.999  # decay of Adam's second moment
    max_grad_norm: PositiveFloat = 1.0  # global norm the gradient is clipped to


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How the learner's devices are split; the product of the axes is their number."""

    __pydantic_config__ = STRICT
    data: PositiveInt = 1  # devices that hold whole copies of the parameters
    # Devices the parameters are spread over; -1 takes all that are left.
    fsdp: Annotated[int, pydantic.Field(ge=-1)] = -1
    tensor: PositiveInt = 1  # devices that share each matrix product


@dataclasses.dataclass(frozen=True)
class Eval:
    """Measuring on held-out questions."""

    __pydantic_config__ = STRICT
    every: Count = 10  # rounds; 0 never
    # .jsonl files, directories of `reval data prepare` (TFDS) or procedural:NAME,...; a file's name is the benchmark's
    benchmarks: tuple[str, ...] = ()
    split: str = ""  # split of a benchmark that is a TFDS directory; empty: its only split, else task.split
    samples_per_prompt: PositiveInt = 16  # responses a problem
    max_prompts: PositiveInt = 100  # problems a benchmark, chosen by a fixed seed
    temperature: PositiveFloat = 1.0  # of the evaluation's samples
    top_p: Probability = 1.0  # of the evaluation's samples


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When the run is saved."""

    __pydantic_config__ = STRICT
    every: PositiveInt = 10  # rounds; the last round is always saved
    keep: PositiveInt = 2  # checkpoints kept; the oldest leave first


@dataclasses.dataclass(frozen=True)
class Run:
    """How long, and with what seed."""

    __pydantic_config__ = STRICT
    rounds: PositiveInt = 650  # rounds of Algorithm 1
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32)] = 0  # of every random draw
    # Mean score of a fresh round that ends the run early.
    stop_score: Annotated[float, pydantic.Field(ge=0, le=1)] | None = None
    stop_rounds: PositiveInt = 2  # rounds in a row that must reach stop_score
    # Where metrics go besides metrics.jsonl: tensorboard, or MODULE:FUNCTION of your own (docs/examples/own_sink.py).
    sinks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    __pydantic_config__ = STRICT
    model: Model = Model()
    task: Task = Task()
    verifier: Verifier = Verifier()
    rollout: Rollout = Rollout()
    replay: Replay = Replay()
    update: Update = Update()
    optimizer: Optimizer = Optimizer()
    mesh: Mesh = Mesh()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    run: Run = Run()

    @property
    def fresh_size(self) -> int:
        """Trajectories a round samples."""
        return self.rollout.prompts_per_round * self.rollout.samples_per_prompt

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest possible trajectory."""
        return self.task.max_prompt_tokens + self.rollout.max_response_tokens


RENAMED = {
    "task.overlong": "task.long_prompts",
    "rollout.overlong": "rollout.truncated",
    "rollout.overlong_buffer": "rollout.penalty_tokens",
    "update.reward": "update.reward_design",
    "verifier.reward": "verifier.function",
    "verifier.path": "verifier.function_path",
}
"""Settings by the name they had before: refused, with the name they have now."""
REMOVED = {
    "rollout.decode_layers": "the platform chooses now how the sampler holds and runs the layers",
}
"""Former settings: refused, with the reason."""

MAY_CHANGE = ("eval", "checkpoint")
"""Sections that a resumed run may change: no result of training depends on them."""
MAY_CHANGE_FIELDS = (
    ("run", "rounds"),
    ("run", "stop_score"),
    ("run", "stop_rounds"),
    ("run", "sinks"),
    ("rollout", "decode_window"),
    # A verdict depends on the answer and on the limits of CPU time and memory, not on these.
    ("verifier", "workers"),
    ("verifier", "wall_limit"),
    ("verifier", "tasks_per_worker"),
    ("verifier", "max_failed_share"),
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The sections of a YAML file, unchecked.

    Raises:
      ValueError: the file is missing, not YAML, or not a mapping.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"config {path} cannot be read: {error.strerror}. Name an existing YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config {path} is not YAML: {error}") from error
    if tree is not None and not isinstance(tree, dict):
        raise ValueError(f"config {path} holds a {type(tree).__name__}, not sections. Begin with for example 'model:'.")
    return tree or {}


def load(path: str | Path) -> Config:
    """The settings in a YAML file; fields it does not name keep their defaults.

    The section `about` of a run directory's config.yaml holds facts, not settings, and is ignored.

    Raises:
      ValueError: the file is missing, not YAML, or names an unknown key or a wrong type.
    """
    tree = read_yaml(path)
    tree.pop("about", None)
    return from_tree(tree, source=str(path))


def from_tree(tree: dict[str, Any], *, source: str = "config") -> Config:
    """The settings in a nested dict, checked for keys, types and bounds.

    Raises:
      ValueError: naming every offending key and, for an unknown one, the nearest that exists.
    """
    try:
        return pydantic.TypeAdapter(Config).validate_python(tree)
    except pydantic.ValidationError as error:
        raise ValueError(f"{source}: " + "; ".join(_explain(problem) for problem in error.errors())) from error


def to_tree(config: Config) -> dict[str, Any]:
    """The settings as nested dicts of plain values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def results_hash(config: Config) -> str:
    """16 hex digits that change exactly when a field that can alter results does."""
    return hashlib.sha256(json.dumps(_results_tree(config), sort_keys=True).encode()).hexdigest()[:16]


def changed_results(old: Config, new: Config) -> list[str]:
    """`section.field: old -> new` of every field that alters results and differs."""
    return _differences(_results_tree(old), _results_tree(new))


def changed(old: Config, new: Config) -> list[str]:
    """`section.field: old -> new` of every field that differs."""
    return _differences(to_tree(old), to_tree(new))


def _results_tree(config: Config) -> dict[str, Any]:
    tree = {section: fields for section, fields in to_tree(config).items() if section not in MAY_CHANGE}
    for section, field in MAY_CHANGE_FIELDS:
        del tree[section][field]
    return tree


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [
        f"{section}.{field}: {old[section].get(field)} -> {value}"
        for section, fields in new.items()
        for field, value in fields.items()
        if old[section].get(field) != value
    ]


def renamed(old: str) -> str:
    """The message for a setting's former name."""
    if old in REMOVED:
        return f"'{old}' is no setting any more: {REMOVED[old]}. Leave it out."
    return f"'{old}' is called '{RENAMED[old]}' now. Use that name."


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        if where in RENAMED or where in REMOVED:
            return renamed(where)
        sections = to_tree(Config())
        known = [*sections, *(f"{section}.{field}" for section, fields in sections.items() for field in fields)]
        nearest = difflib.get_close_matches(where, known, n=1, cutoff=0.0)[0]
        return f"unknown key '{where}'. Did you mean '{nearest}'?"
    if problem["type"] in ("dataclass_type", "dataclass_exact_type"):
        return f"{where} is a section with fields of its own, found {problem['input']!r}"
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{where}={problem['input']!r}: {reason[0].lower()}{reason[1:]}"
