"""A round's rollout: prompts, sampled responses, verdicts, trajectories; equal on every process.

The loop asks an `Actor` for a round's trajectories. `synchronous` samples them while the learner waits, with this
process's sampler. Another actor (on devices of its own, one round behind, behind a server) is another function that
returns an `Actor`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from reval_jax import (
    checkpoint,
    distributed,
    journal,
    keys,
    model,
    prompts,
    reference,
    replay,
    rollout_files,
    sampler,
    trajectories,
    types,
    verifier,
)
from reval_jax import config as config_lib
from reval_jax.setup import Components, RunState

_Result = TypeVar("_Result")


class RoundRollout(NamedTuple):
    """A round's trajectories, equal on every process."""

    prompts: types.Prompts  # with consecutive cursors
    all: types.Trajectories  # every trajectory, in (prompt, sample) order
    trained_on: types.Trajectories  # `all` without the groups that rollout.filter_groups leaves out
    cursor: int  # after the round's prompts
    greedy_verdict: np.ndarray  # i8[prompts], of their greedy responses; empty where none were sampled


class Actor(NamedTuple):
    """Samples trajectories with the policy; the loop calls `start`, then `collect`, once a round."""

    start: Callable[[RunState], Any]  # begins a round with this run's policy → a handle
    collect: Callable[[Any], RoundRollout]  # handle → the round's trajectories; may raise sampler.Interrupted


def synchronous(components: Components, preemption: distributed.Preemption) -> Actor:
    """Samples when `collect` is called, in this process, with the parameters that `start` was given."""

    def start(run: RunState) -> RunState:
        return run

    def collect(run: RunState) -> RoundRollout:
        with components.clock.phase("generate"):
            params = components.sampler.sync_weights(_sampling_params(components.config, run))
        # The copy is freed when this returns: the update needs the memory.
        return _Round(components, params, run.progress, int(run.state.num_updates), preemption).play()

    return Actor(start, collect)


def _sampling_params(config: config_lib.Config, run: RunState) -> model.Params:
    """The parameters of the policy that `rollout.policy` names."""
    if config.rollout.policy == "learner" or run.reference is None:
        return run.state.params
    return reference.load(run.reference)


def write(components: Components, sampled: RoundRollout, round: int) -> None:
    """The round's rollouts file, on one process: every trajectory, trained on or not.

    The files are a log: where one cannot be written, the run goes on without it.
    """
    if jax.process_index() != 0:
        return
    components.owner.check()
    config, directory, log_once = components.config, components.directory, components.console.log_once
    try:
        rollout_files.write(directory.rollout(round + 1), sampled.prompts, sampled.all, components.tokenizer)
        if gib := config.run.max_rollouts_gib:
            deleted = rollout_files.delete_oldest(directory.rollout_files(), max_bytes=gib * 2**30)
            if deleted:
                log_once(
                    "deleted rollouts",
                    f"the rollouts have more than run.max_rollouts_gib={gib:g}: the oldest files are deleted from now on, "
                    f"the first that of round {deleted[0]}",
                )
    except OSError as error:
        # Every round that is lost is named.
        components.console.log(
            f"the rollouts of round {round + 1} cannot be written ({error}); the run goes on without"
        )


class _Round(NamedTuple):
    """One round of the synchronous actor."""

    components: Components
    params: types.PyTree  # the sampler's
    progress: checkpoint.Progress
    policy_version: int  # updates the policy has seen
    preemption: distributed.Preemption

    def play(self) -> RoundRollout:
        """Samples the round's prompts; with `rollout.filter_groups` in waves, until enough groups have mixed rewards.

        Raises:
          sampler.Interrupted: as `sample`.
        """
        config, data, cursor = self.components.config, self.components.data, self.progress.cursor
        settings = config.rollout
        waves: list[tuple[types.Prompts, types.Trajectories, np.ndarray]] = []
        num_mixed = 0
        for wave in range(settings.max_waves if settings.filter_groups else 1):
            taken, cursor = prompts.take(data, cursor, settings.prompts_per_round, seed=config.run.seed)
            sampled, greedy_verdict = self.sample(taken, wave)
            waves.append((taken, sampled, greedy_verdict))
            num_mixed += int(trajectories.is_mixed(sampled).sum()) // settings.samples_per_prompt
            if num_mixed >= settings.prompts_per_round:
                break
        all_prompts = trajectories.join_prompts([taken for taken, _, _ in waves])
        every = replay.concatenate([sampled for _, sampled, _ in waves])
        greedy = np.concatenate([verdict for _, _, verdict in waves])
        if not settings.filter_groups:
            return RoundRollout(all_prompts, every, every, cursor, greedy)
        rows = trajectories.choose_groups(every, settings.prompts_per_round)
        return RoundRollout(all_prompts, every, replay.gather(every, rows), cursor, greedy)

    def sample(self, taken: types.Prompts, wave: int) -> tuple[types.Trajectories, np.ndarray]:
        """The graded trajectories of these prompts, and the verdicts of their greedy responses (empty where none are sampled).

        Each process samples and grades its share of the prompts.

        Raises:
          sampler.Interrupted: any process was asked to stop; finished responses are in the processes' journals.
        """
        components, config, round = self.components, self.components.config, self.progress.round
        local = trajectories.share(taken, jax.process_index(), jax.process_count())
        greedy_reward, greedy_verdict = None, np.empty(0, np.int8)
        if "greedy_reward" in components.algorithm.reads:
            greedy_reward, greedy_verdict = self._greedy_rewards(local, wave)
        responses = self._whole(self._responses(local, wave))
        verdicts = self._whole(self._grade(local, responses))
        joined = trajectories.join(
            local,
            responses,
            verdicts,
            round=round,
            policy_version=self.policy_version,
            config=config,
            greedy_reward=greedy_reward,
            token_values=self._recorded(responses),
        )
        return trajectories.gather(joined), greedy_verdict

    def _greedy_rewards(self, local: types.Prompts, wave: int) -> tuple[np.ndarray, np.ndarray]:
        """The rewards f32 of the most probable response to each local prompt, and the verdicts i8 of all processes.

        The rules are those of the sampled responses.
        """
        responses = self._whole(self._responses(local, wave, is_greedy=True))
        verdicts = self._whole(self._grade(local, responses, is_greedy=True))
        lengths = np.array([len(response.tokens) for response in responses], np.int32)
        payloads = distributed.gather_bytes(verdicts.kind.tobytes())  # a collective call, as sampling them is
        everywhere = np.concatenate([np.frombuffer(payload, np.int8) for payload in payloads])
        return trajectories.rewards(lengths, verdicts.reward, self.components.config), everywhere

    def _recorded(self, responses: list[types.Response]) -> np.ndarray | None:
        """f32[sum of n, 1]: the mean log-probabilities over the vocabulary, where the algorithm reads them."""
        if not self.components.sampling.records_mean_log_prob:
            return None
        config = self.components.config
        recorded = sampler.joined_mean_log_prob(
            responses, objective=config.update.objective, engine=config.rollout.engine
        )
        return recorded[:, None]

    def _whole(self, result: _Result | None) -> _Result:
        """A process's result, None where it was asked to stop, once all have theirs; raises sampler.Interrupted as `sample`."""
        # A process that was interrupted reaches this early; the others learn of it here and do not wait for its trajectories.
        if self.preemption.agree() or result is None:
            raise sampler.Interrupted
        return result

    def _grade(
        self, local: types.Prompts, responses: list[types.Response], *, is_greedy: bool = False
    ) -> types.Verdicts | None:
        """The verdicts, those that its journal holds among them; None if this process was asked to stop."""
        components, kept = self.components, self._journal(is_greedy=is_greedy).verdicts()
        with (
            components.clock.phase("verify"),
            contextlib.suppress(verifier.StoppedError),
            contextlib.closing(kept),
        ):
            tokens = [response.tokens for response in responses]
            texts = prompts.decode(components.tokenizer, tokens, components.sampling.stop_ids)
            answers = [local.answers[response.prompt] for response in responses]
            return components.grader.score(
                texts,
                answers,
                prompt_opens_think=components.data.prompt_opens_think,
                should_stop=lambda: self.preemption.is_requested,
                memory=verifier.Memory(kept.known, kept.keep),
            )
        return None

    def _journal(self, *, is_greedy: bool) -> journal.Journal:
        """This process's journal of the round."""
        components, round = self.components, self.progress.round
        identity = f"{config_lib.results_hash(components.config)}_round_{round:06d}_policy_{self.policy_version}"
        of_process = f"process_{jax.process_index()}_of_{jax.process_count()}" + ("_greedy" if is_greedy else "")
        components.owner.check()
        directory = components.directory.journal / of_process
        # Each kind once, so that damage that a resume finds doesn't hide that nothing can be written.
        return journal.Journal(
            directory, identity, log=lambda kind, text: components.console.log_once(f"journal: {kind}", text)
        )

    def _responses(self, local: types.Prompts, wave: int, *, is_greedy: bool = False) -> list[types.Response] | None:
        """This process's responses, those that its journal holds among them; None if it was interrupted.

        Args:
          is_greedy: one response a prompt, each token the most probable one, instead of `rollout.samples_per_prompt`.
        """
        components, config, round = self.components, self.components.config, self.progress.round
        # One journal serves all waves of the round: a wave's prompts are numbered after those of the waves before it.
        finished, first = self._journal(is_greedy=is_greedy), wave * len(local.texts)

        def keep(responses: list[types.Response]) -> None:
            components.owner.check()
            try:
                finished.add(responses, first)
            except OSError as error:
                text = f"the journal cannot be written ({error}); a resume will sample this round anew"
                components.console.log_once("journal: write", text)

        sampling, what = components.sampling, "sampling"
        if is_greedy:
            sampling, what = sampling._replace(top_k=1, records_mean_log_prob=False), "sampling greedily"
        with (
            components.clock.phase("generate"),
            components.console.working(f"round {round + 1}: {what}") as report,
            contextlib.suppress(sampler.Interrupted),
        ):
            return components.sampler.generate(
                self.params,
                local,
                keys.named_key(config.run.seed, "rollout_greedy" if is_greedy else "rollout", round),
                samples_per_prompt=1 if is_greedy else config.rollout.samples_per_prompt,
                sampling=sampling,
                finished=finished.read(first, len(local.texts), needs_mean_log_prob=sampling.records_mean_log_prob),
                hooks=sampler.Hooks(
                    on_finished=keep,
                    on_progress=report,
                    should_stop=lambda: self.preemption.is_requested,
                ),
            )
        return None
