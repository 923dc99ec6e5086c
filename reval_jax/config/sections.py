"""Every setting: one frozen dataclass per section, with units and bounds.

pydantic checks types and bounds; tyro (in `cli`) turns the same classes into `--section.field VALUE` flags, with the comment of
each field as its help.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from typing import Annotated, Literal

import pydantic

PositiveInt = Annotated[int, pydantic.Field(gt=0, strict=True)]
Count = Annotated[int, pydantic.Field(ge=0, strict=True)]
# Strict: a truth value is no number, and a text neither.
Switch = Annotated[bool, pydantic.Field(strict=True)]
PositiveFloat = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False, strict=True)]
NonNegativeFloat = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False, strict=True)]
# Logits are divided by it in float32: beyond these bounds they overflow, or all become equal.
Temperature = Annotated[float, pydantic.Field(ge=1e-6, le=1e6, allow_inf_nan=False, strict=True)]
Probability = Annotated[float, pydantic.Field(gt=0, le=1, strict=True)]
Decay = Annotated[float, pydantic.Field(ge=0, lt=1, strict=True)]
Fraction = Annotated[float, pydantic.Field(ge=0, le=1, strict=True)]
FUNCTION_NAME = r"\w+(?:\.\w+)*:\w+(?:\.\w+)*"
BuiltIn = Literal["reval", "tbrm", "regression", "policy_gradient", "grpo", "rover", "ppo"]
OBJECTIVES: tuple[str, ...] = typing.get_args(BuiltIn)
IN_WORDS: dict[str, str] = {
    "reval": "ReVal (squared Bellman residuals of whole responses)",
    "tbrm": "TBRM (squared Bellman residuals without the reference's V)",
    "regression": "regression of the log-ratio on the reward (Eq. 8 of the ReVal paper)",
    "policy_gradient": "a policy gradient",
    "grpo": "GRPO (a policy gradient)",
    "rover": "ROVER (token-level Bellman residuals)",
    "ppo": "PPO (a policy gradient with a value head)",
}
"""What each is to a reader of a run."""
PRESETS = ("cispo", "dapo", "dr_grpo", "gspo", "m2po", "nsr", "oapl", "psr", "remax", "rlep", "rloo")
"""Published names that are settings of an objective, in configs/algorithms; the names of objectives have a file there too."""
ENGINES = ("jax",)


def _choice(kind: str, built_in: tuple[str, ...]) -> pydantic.BeforeValidator:
    """A check that a value is the name of a built-in, or MODULE:FUNCTION."""

    def check(name: object) -> object:
        if name in built_in or (isinstance(name, str) and re.fullmatch(FUNCTION_NAME, name)):
            return name
        if kind == "objective" and name in PRESETS:
            raise ValueError(
                f"this name is a file of settings. Add --config configs/algorithms/{name}.yaml after your own --config"
            )
        nearest = difflib.get_close_matches(str(name), built_in, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"no {kind} has this name. Did you mean '{nearest}'? Use one of {', '.join(built_in)}, or MODULE:FUNCTION of your own"
        )

    return pydantic.BeforeValidator(check)


Objective = Annotated[BuiltIn | str, _choice("objective", OBJECTIVES)]
Engine = Annotated[str, _choice("engine", ENGINES)]
AnswerFormat = Literal["boxed", "first_number", "last_number", "free"]
STRICT = pydantic.ConfigDict(extra="forbid")


@dataclasses.dataclass(frozen=True)
class Model:
    """The model that is trained."""

    __pydantic_config__ = STRICT
    path: str = ""  # Hugging Face directory, hub id, or .gguf file
    # Data type of the operands of matrix products; parameters stay float32.
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    # What the backward pass recomputes: none = norms and activations only; dots = all but matrix products and the attention;
    # attention = all but the attention; full = the whole layer. From most memory to least.
    remat: Literal["none", "dots", "attention", "full"] = "none"
    # Attention kernel; auto is splash on TPU, cudnn on GPU (bfloat16) and xla elsewhere.
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"
    # GPU: kernels that add in a fixed order and are not chosen by timing them. With false, which may be faster, two runs from one
    # seed differ in the last bits, and a resumed run from one that never stopped. CPU and TPU programs always repeat.
    deterministic: Switch = True


@dataclasses.dataclass(frozen=True)
class Task:
    """The questions, their prompts, and which part of a response is its answer."""

    __pydantic_config__ = STRICT
    # A .jsonl file with `question` and `answer`, a directory of `reval data prepare` (TFDS), or procedural:NAME,...
    dataset: str = ""
    split: str = "train"  # split of a TFDS directory to read
    template: Literal["raw", "chat", "r1_distill", "qwen2_5_math"] = "chat"  # turns a question into a prompt
    # Text appended to every question, after a space, in the templates raw and chat; the others have the paper's own.
    instruction: str = ""
    max_prompt_tokens: PositiveInt = 1024  # tokens; `long_prompts` decides about longer prompts
    long_prompts: Literal["error", "drop"] = "error"  # refuse a data set with longer prompts, or drop those rows
    # Which part of a response is its answer: the last \boxed{}, the first or last number, or (free) its last statement of one.
    answer_format: AnswerFormat = "boxed"


@dataclasses.dataclass(frozen=True)
class Verifier:
    """The sandboxed processes that grade answers which exact comparison cannot decide."""

    __pydantic_config__ = STRICT
    workers: Count = 0  # processes; 0 means one per CPU core, at most 16
    cpu_limit: PositiveFloat = 2.0  # seconds of CPU time per answer; more gives the verdict `limit`
    # MiB per process; more gives the verdict `limit`.
    memory_limit: Annotated[int, pydantic.Field(ge=256, strict=True)] = 1024
    # Seconds until an answer that waits without using CPU time gets the verdict `timeout`.
    wall_limit: PositiveFloat = 30.0
    tasks_per_worker: PositiveInt = 100  # answers graded by a process before a fresh one replaces it
    # Largest share of verdicts `timeout`, `crash` and, with `function`, `limit` in a round; a larger share stops the run.
    max_failed_share: Annotated[float, pydantic.Field(ge=0, le=1, strict=True)] = 0.25
    # Your own reward: MODULE:FUNCTION of (response, answer) that returns a number from 0 to 1; empty uses the built-in grader.
    function: str = ""
    function_path: str = ""  # directory to import `function` from; empty means the current directory


@dataclasses.dataclass(frozen=True)
class Rollout:
    """How a round samples responses."""

    __pydantic_config__ = STRICT
    prompts_per_round: PositiveInt = 128  # prompts per round
    samples_per_prompt: PositiveInt = 8  # responses per prompt
    temperature: Temperature = 1.0  # Q = logit / temperature, in sampling and in the loss
    top_k: Count = 0  # sample from the k most likely tokens; 0 keeps all
    top_p: Probability = 1.0  # sample from the smallest set of tokens with this probability mass; 1 keeps all
    max_response_tokens: PositiveInt = 8192  # tokens, including the end-of-sequence token
    # Dynamic sampling (DAPO): replace prompts whose samples are all right or all wrong by other prompts.
    filter_groups: Switch = False
    # With filter_groups: largest number of times that a round samples prompts_per_round prompts. If mixed prompts are still
    # missing then, others fill the round.
    max_waves: PositiveInt = 4
    # Responses cut at the limit: keep them, mask them out of the loss, or (DAPO) penalise length near the limit.
    truncated: Literal["keep", "mask", "penalty"] = "keep"
    # With truncated=penalty: tokens before the limit over which the penalty rises linearly from 0 to 1; 0 takes a fifth of the
    # limit, as in DAPO's paper.
    penalty_tokens: Count = 0
    # Policy that samples: the learner, or the reference, which update.reference_reset_every then makes the learner of some rounds
    # ago (OAPL).
    policy: Literal["learner", "reference"] = "learner"
    # File of verified responses from `reval data pool`, mixed into the groups of the same questions (RLEP); empty uses none.
    pool: str = ""
    pool_samples: PositiveInt = 2  # with `pool`: stored responses per prompt; prompts without any get none
    # Responses that a process decodes simultaneously, at least two per device; a finished one frees its slot for the next.
    decode_slots: PositiveInt = 128
    # Decode steps per device call; the host refills slots in between. TPU 8-64, GPU and CPU 1-16.
    decode_window: PositiveInt = 16
    # Sampler: jax, this package's own, or MODULE:FUNCTION of your own (docs/howto/sampler_engine.md).
    engine: Engine = "jax"
    # dtype of cached keys and values: model.compute_dtype, or int8 with one scale per token and head. int8 takes half of
    # bfloat16's memory; its log-probabilities differ slightly from the learner's.
    kv_cache: Literal["compute", "int8"] = "compute"


@dataclasses.dataclass(frozen=True)
class Replay:
    """The replay buffer of trajectories."""

    __pydantic_config__ = STRICT
    capacity: PositiveInt = 5120  # trajectories; when full, the oldest leave first
    # Replay draws: every row alike, or in proportion to priority ^ priority_exponent. The priority is the size of the residual in
    # the last update that read the row (centred: less its mean over the prompt's rows in that update), success_priority for right
    # answers and 1 for others, or exp(-age / recency_rounds).
    priority: Literal["uniform", "residual", "centred_residual", "success", "recency"] = "uniform"
    priority_exponent: NonNegativeFloat = 0.6  # 0 draws uniformly
    success_priority: PositiveFloat = 2.0  # with priority=success
    recency_rounds: PositiveFloat = 5.0  # rounds, with priority=recency
    # Importance weights (1 / inclusion probability) ^ weight_exponent of drawn rows in the loss; 0 gives no weights, 1 an
    # unbiased mean over the buffer.
    weight_exponent: Fraction = 0.4
    weight_rounds: Count = 0  # rounds over which weight_exponent rises linearly to 1; 0 leaves it constant


@dataclasses.dataclass(frozen=True)
class Update:
    """The loss, and the updates of a round."""

    __pydantic_config__ = STRICT
    # The algorithm: a built-in, or your own, MODULE:FUNCTION of the config (docs/howto/objective.md). grpo is another
    # name of policy_gradient, whose defaults are GRPO. configs/algorithms has the published names as settings.
    objective: Objective = "reval"
    objective_path: str = ""  # directory to import your own objective from; empty means the current directory
    beta: PositiveFloat = 0.002  # reward per nat; smaller values weigh the reward more; policy gradients do not use it
    # Reward r in the loss, from the verifier's v in 0 ... 1: v, 2v - 1, or v minus the mean of the prompt's group.
    reward_design: Literal["binary", "signed", "group_normalized"] = "binary"
    # What a reward is compared with when its round is collected: nothing; the mean of its group, also in standard deviations, or
    # without itself (RLOO); the prompt's greedy response (ReMax); OAPL's optimal value; one_sided weighs right and wrong
    # responses apart (PSR, NSR). auto is group_standardized for policy gradients and rover, else what reward_design says.
    baseline: Literal[
        "auto", "none", "group_mean", "group_standardized", "leave_one_out", "greedy", "optimal_value", "one_sided"
    ] = "auto"
    optimal_value_beta: PositiveFloat = 1.0  # with baseline=optimal_value: reward per nat of the optimal value
    # With baseline=one_sided: of right and of wrong responses; 0 leaves them out of the loss.
    positive_weight: NonNegativeFloat = 1.0
    negative_weight: NonNegativeFloat = 1.0
    # Weight of the endogenous reward log pi_ref + V_ref(s1), less its group's mean, that is added to the reward.
    endogenous_weight: NonNegativeFloat = 0.0
    # policy_gradient, loss of a token: clipped ratio (PPO, GRPO), clipped ratio of the trajectory (GSPO), clipped ratio as a
    # constant weight (CISPO), no ratio, a quadratic penalty instead of a clip (DRO), or a clip chosen by the second moment of the
    # step's log-ratios (M2PO).
    surrogate: Literal["clipped", "sequence_clipped", "reweighted", "reinforce", "quadratic", "second_moment"] = (
        "clipped"
    )
    clip_low: Fraction = 0.2  # lower bound of the ratio is 1 - clip_low
    clip_high: NonNegativeFloat = 0.28  # upper bound of the ratio is 1 + clip_high
    # Dual clip of surrogate=clipped: with a negative advantage A the loss is at most -A times this; .inf turns it off.
    clip_dual: Annotated[float, pydantic.Field(gt=1, strict=True)] = 3.0
    quadratic_strength: PositiveFloat = 0.05  # with surrogate=quadratic: of the penalty, reward per nat
    second_moment_budget: PositiveFloat = 0.04  # with surrogate=second_moment: nats squared per harmful token
    # policy_gradient, average: over all tokens, over each trajectory and then over trajectories, or sums per trajectory divided
    # by rollout.max_response_tokens (Dr. GRPO).
    mean: Literal["token", "trajectory", "constant"] = "token"
    # policy_gradient, detached weights of the ratio to the sampling policy: truncated at correction_high by token or of the
    # trajectory; or 0 where the token's ratio, or the trajectory's geometric mean, is outside correction_low ... correction_high.
    correction: Literal["none", "token", "sequence", "token_mask", "sequence_mask"] = "none"
    correction_low: NonNegativeFloat = 0.5
    correction_high: PositiveFloat = 2.0
    bellman_scale: PositiveFloat = 1.0  # rover: rho, advantage per nat
    gae_discount: Probability = 1.0  # ppo: gamma, per token
    gae_decay: Fraction = 1.0  # ppo: lambda of the generalized advantage
    value_clip: PositiveFloat = 0.5  # ppo: how far a value may move from that of the sampling policy, units of reward
    value_coefficient: PositiveFloat = 0.1  # ppo: weight of the value loss
    # Rows of a round's updates: mini-batches of the fresh batch, or the fresh batch and then draws from replay. auto is replay
    # for value-based objectives and fresh for the others.
    draws: Literal["auto", "fresh", "replay"] = "auto"
    # Optimizer steps per round; with draws=fresh, the number of mini-batches of the fresh batch in a pass.
    updates_per_round: PositiveInt = 2
    passes: PositiveInt = 1  # with draws=fresh: passes over the fresh batch
    # With draws=replay: the number of updates adapts between updates_per_round and this; 0 keeps it constant. A round with a
    # smaller share of unexplained reward in replayed than reuse_threshold times that in fresh rows lowers it, any other raises
    # it.
    max_updates_per_round: Count = 0
    reuse_threshold: PositiveFloat = 0.8
    fresh_first: Switch = True  # the first update of a round uses the fresh batch, the others sample from replay
    batch_size: PositiveInt = 1024  # trajectories per update; with draws=fresh per pass, divided into its mini-batches
    micro_batch_tokens: PositiveInt = 16384  # tokens per device and micro-batch; at least one row
    reference_reset_every: Count = 0  # rounds between resets of the reference to the policy; 0 means never
    # Also reset once the policy has absorbed this share of the reward (moving average over rounds of the fresh batch's pull
    # ratio, docs/objectives.md); 0 means never.
    reference_reset_pull: NonNegativeFloat = 0.0
    reference_reset_wait: PositiveInt = 10  # rounds between resets at least, with reference_reset_pull
    # Where the reference is kept while it is not scoring: in host memory, or on the devices.
    reference_memory: Literal["host", "device"] = "host"
    reset_optimizer: Switch = False  # reset Adam's moments and the warm-up with the reference
    reset_replay: Switch = False  # empty the replay buffer when the reference is reset (OAPL)
    stop_value_gradient: Switch = False  # no gradient through V(s1), as in Eq. 4 of the paper
    max_skipped: PositiveInt = 5  # consecutive non-finite updates that stop the run


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW."""

    __pydantic_config__ = STRICT
    learning_rate: PositiveFloat = 1e-6  # after warm-up
    value_learning_rate: PositiveFloat = 1e-5  # of the value head, where the objective has one (ppo); after warm-up
    warmup_updates: Count = 0  # updates over which the learning rate rises linearly from 0
    weight_decay: NonNegativeFloat = 0.01  # decoupled, applied to every parameter
    b1: Decay = 0.9  # decay rate of Adam's first moment
    b2: Decay = 0.999  # decay rate of Adam's second moment
    max_grad_norm: PositiveFloat = 1.0  # the gradient is clipped to this global norm


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Axes of the learner's device mesh; their product is the number of devices."""

    __pydantic_config__ = STRICT
    data: PositiveInt = 1  # data parallelism: replicas of the parameters
    # Devices over which parameters are sharded; -1 takes all that the other axes leave.
    fsdp: Annotated[int, pydantic.Field(ge=-1, strict=True)] = -1
    tensor: PositiveInt = 1  # tensor parallelism: devices that share each matrix product


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluation on held-out questions."""

    __pydantic_config__ = STRICT
    every: Count = 10  # rounds between evaluations; 0 means never
    # Benchmarks: .jsonl files, directories of `reval data prepare` (TFDS) or procedural:NAME,...; each is named by its file name.
    benchmarks: tuple[str, ...] = ()
    split: str = ""  # split of TFDS benchmarks; empty means the only split, or else task.split
    samples_per_prompt: PositiveInt = 16  # responses per problem
    max_prompts: PositiveInt = 100  # problems per benchmark, chosen with a fixed seed
    temperature: Temperature = 1.0  # of evaluation responses
    top_p: Probability = 1.0  # of evaluation responses


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When the run is saved."""

    __pydantic_config__ = STRICT
    every: PositiveInt = 10  # rounds between checkpoints; the last round is always saved
    keep: PositiveInt = 2  # number of checkpoints to keep; the oldest are deleted first
    stall_seconds: PositiveFloat = 300.0  # a save that writes nothing for so long has failed; the run ends


@dataclasses.dataclass(frozen=True)
class Run:
    """Length, seed and metric sinks of the run."""

    __pydantic_config__ = STRICT
    rounds: PositiveInt = 650  # rounds of Algorithm 1 of the paper
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32, strict=True)] = 0  # of all random numbers
    # Stop early when fresh rounds reach this mean score.
    stop_score: Annotated[float, pydantic.Field(ge=0, le=1, strict=True)] | None = None
    stop_rounds: PositiveInt = 2  # consecutive rounds that must reach stop_score
    # Bound of the rollouts files, the oldest of which are deleted beyond it, in GiB; 0 keeps all of them.
    max_rollouts_gib: NonNegativeFloat = 0.0
    # Seconds from SIGTERM or SIGHUP to the end of the process: what the platform gives (GKE 15 or more, Slurm's --signal).
    grace_seconds: Annotated[float, pydantic.Field(ge=5, allow_inf_nan=False, strict=True)] = 15.0
    # Where to copy metrics besides metrics.jsonl: tensorboard, wandb, trackio, mlflow, or MODULE:FUNCTION of your own.
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
        """Trajectories in the fresh batch of a round."""
        return self.rollout.prompts_per_round * self.rollout.samples_per_prompt

    @property
    def largest_round(self) -> int:
        """Trajectories that a round adds to the buffer at most: the fresh batch, and those from `rollout.pool`."""
        stored = self.rollout.prompts_per_round * self.rollout.pool_samples if self.rollout.pool else 0
        return self.fresh_size + stored

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest possible trajectory."""
        return self.task.max_prompt_tokens + self.rollout.max_response_tokens
