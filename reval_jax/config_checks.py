"""Combinations of settings that cannot train, refused before anything is loaded.

`config` checks each setting alone; `algorithms.choose` checks what one algorithm requires.
"""

from __future__ import annotations

import re

from reval_jax import config as config_lib


def check(config: config_lib.Config) -> config_lib.Config:
    """The same settings, if they can train together.

    Raises:
      ValueError: naming the settings with their values, why they cannot train, and what to change.
    """
    update, rollout, fresh = config.update, config.rollout, config.fresh_size
    size = f"rollout.prompts_per_round x rollout.samples_per_prompt = {fresh}"
    if not config.model.path:
        raise ValueError("model.path is empty. Name a Hugging Face directory, a hub id or a .gguf file.")
    if config.mesh.fsdp == 0:
        raise ValueError("mesh.fsdp=0. Use -1 for all devices that data and tensor leave, or a count of at least 1.")
    if not config.task.dataset:
        raise ValueError(
            "task.dataset is empty. Name a .jsonl file, a directory of `reval data prepare`, or procedural:NAME."
        )
    if config.task.instruction and config.task.template not in ("raw", "chat"):
        raise ValueError(
            f"task.instruction with task.template={config.task.template}: that template has the paper's own instruction. Leave "
            "task.instruction empty, or use task.template=chat."
        )
    if update.reward_design == "group_normalized" and rollout.samples_per_prompt == 1:
        raise ValueError(
            "update.reward_design=group_normalized with rollout.samples_per_prompt=1: the reward minus the mean of a group of "
            "one is always 0, so nothing would be learned. Use at least 2 samples a prompt, or update.reward_design=binary."
        )
    # Mini-batches of the fresh batch need it first.
    otherwise = "" if update.draws == "fresh" else ", or update.fresh_first=false"
    if update.fresh_first and update.batch_size != fresh:
        raise ValueError(
            f"update.batch_size={update.batch_size} with update.fresh_first: the first update trains on the fresh batch, and "
            f"{size}. Set update.batch_size={fresh}{otherwise}."
        )
    if update.batch_size > fresh:
        raise ValueError(
            f"update.batch_size={update.batch_size} is larger than the buffer after the first round: {size}, and a batch is "
            f"drawn without replacement. Use at most {fresh}."
        )
    least = max(update.batch_size, config.largest_round)
    if rollout.pool:
        size += f"; with rollout.pool_samples={rollout.pool_samples} stored responses a prompt at most {config.largest_round}"
    if config.replay.capacity < least:
        raise ValueError(
            f"replay.capacity={config.replay.capacity} is smaller than a batch of {least} trajectories "
            f"(update.batch_size={update.batch_size}; {size}). Use at least {least}."
        )
    check_rollout(rollout)
    check_adaptation(config)
    if update.objective_path and update.objective in config_lib.OBJECTIVES:
        raise ValueError(
            f"update.objective_path={update.objective_path} with update.objective={update.objective}, which is built in. Set "
            "update.objective=MODULE:FUNCTION, or leave update.objective_path empty."
        )
    check_verifier(config.verifier)
    return config


def check_adaptation(config: config_lib.Config) -> None:
    """Refuse settings of resets and of the number of updates that contradict others.

    Raises:
      ValueError: as `check`.
    """
    update = config.update
    resets = update.reference_reset_every or update.reference_reset_pull
    for setting in ("reset_optimizer", "reset_replay"):
        if getattr(update, setting) and not resets:
            raise ValueError(
                f"update.{setting}=true with update.reference_reset_every=0 and update.reference_reset_pull=0: it happens "
                f"when the reference is reset, which is never. Set one of them, or leave update.{setting}=false."
            )
    if update.max_updates_per_round and update.max_updates_per_round <= update.updates_per_round:
        raise ValueError(
            f"update.max_updates_per_round={update.max_updates_per_round} is not above update.updates_per_round="
            f"{update.updates_per_round}, so the number of updates could not adapt. Use a larger one, or 0."
        )
    if update.max_updates_per_round and update.updates_per_round < 2:
        raise ValueError(
            f"update.max_updates_per_round={update.max_updates_per_round} with update.updates_per_round=1: the only update "
            "of the first round trains on the fresh batch, so that no replay draw could be compared with it. Set "
            "update.updates_per_round=2 or more."
        )
    for setting in ("max_updates_per_round", "reference_reset_pull"):
        if getattr(update, setting) and not update.fresh_first:
            raise ValueError(
                f"update.{setting}={getattr(update, setting)} with update.fresh_first=false: it reads the residuals of the "
                "fresh batch before a round's first update. Set update.fresh_first=true."
            )


def check_verifier(verifier: config_lib.Verifier) -> None:
    """Refuse limits that contradict each other, and a function that is not MODULE:FUNCTION.

    Raises:
      ValueError: as `check`.
    """
    if verifier.wall_limit < verifier.cpu_limit:
        raise ValueError(
            f"verifier.wall_limit={verifier.wall_limit:g} is less than verifier.cpu_limit={verifier.cpu_limit:g}: the wall "
            f"clock would decide verdicts, and not the CPU time. Use a wall_limit of at least {verifier.cpu_limit:g}, better "
            "ten times that."
        )
    if verifier.function and not re.fullmatch(config_lib.FUNCTION_NAME, verifier.function):
        raise ValueError(
            f"verifier.function={verifier.function!r} does not name a function. Write MODULE:FUNCTION, "
            "for example my_rewards:score."
        )


def check_rollout(rollout: config_lib.Rollout) -> None:
    """Refuse settings that would drop every prompt, or that nothing would read.

    Raises:
      ValueError: as `check`.
    """
    if rollout.filter_groups and rollout.samples_per_prompt == 1:
        raise ValueError(
            "rollout.filter_groups=true with rollout.samples_per_prompt=1: one sample is all right or all wrong, so every prompt "
            "would be dropped. Use at least 2 samples a prompt, or rollout.filter_groups=false."
        )
    if rollout.truncated == "penalty" and rollout.penalty_tokens > rollout.max_response_tokens:
        raise ValueError(
            f"rollout.truncated=penalty with rollout.penalty_tokens={rollout.penalty_tokens}: reward falls over that many "
            f"tokens before the limit. Use 1 to rollout.max_response_tokens={rollout.max_response_tokens}, or 0 for a fifth "
            f"of it."
        )
    if rollout.truncated != "penalty" and rollout.penalty_tokens:
        raise ValueError(
            f"rollout.penalty_tokens={rollout.penalty_tokens} with rollout.truncated={rollout.truncated}, which reads none. "
            "Set rollout.truncated=penalty, or rollout.penalty_tokens=0."
        )
