"""Orbax save and restore of everything that resume needs, in one commit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from reval_jax import adaptation, model, replay, types
from reval_jax import config as config_lib


class CheckpointState(NamedTuple):
    """Everything that a run needs to resume."""

    params: model.Params  # f32, on the learner's mesh
    optimizer: types.PyTree  # optax's state and the update counters; the containers depend on the settings
    reference: model.Params | None  # None where the algorithm has no reference
    replay: types.Trajectories
    progress: Progress


_START = adaptation.Adaptation()


@dataclasses.dataclass(frozen=True)
class Progress:
    """Counters of a run between two rounds; plain numbers."""

    round: int = 0  # rounds finished
    cursor: int = 0  # of the next prompt
    reference_version: int = 0  # resets of the reference so far
    rounds_at_stop_score: int = 0  # in a row, up to the last
    metrics_bytes: int = 0  # length of metrics.jsonl after the last finished round
    adaptation: adaptation.Adaptation = _START  # of the number of updates and of the resets


class Store:
    """The checkpoints of one run directory."""

    def __init__(self, directory: Path, settings: config_lib.Checkpoint | None) -> None:
        """Open the checkpoints to write and read; without settings only to read, even while another process writes."""
        if settings is None:
            options = ocp.CheckpointManagerOptions(create=False, enable_async_checkpointing=False)
        else:
            # A killed process leaves its unfinished save in a temporary directory as large as a checkpoint.
            options = ocp.CheckpointManagerOptions(
                max_to_keep=settings.keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
            )
        # Named handlers let a manager that has not saved yet restore what an earlier process saved.
        handlers = {"arrays": ocp.PyTreeCheckpointHandler(), "notes": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(directory.resolve(), options=options, item_handlers=handlers)

    @classmethod
    def open(cls, directory: Path) -> Store:
        """The checkpoints of an existing run, to read.

        Raises:
          ValueError: the run has none.
        """
        if not directory.is_dir():
            raise ValueError(f"{directory.parent} has no checkpoints. Name the directory of a run that has saved one.")
        return cls(directory, None)

    def choose(self, round: int | None) -> int:
        """The round, if it was saved; for None the last saved round.

        Raises:
          ValueError: the round was not saved; the message lists those that were.
        """
        saved = self.rounds()
        if not saved or (round is not None and round not in saved):
            wanted = "any" if round is None else f"round {round}"
            raise ValueError(f"no checkpoint of {wanted} exists; saved rounds: {saved or 'none'}. Name one of those.")
        return saved[-1] if round is None else round

    def rounds(self) -> list[int]:
        """The saved rounds, ascending."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The last saved round, or None."""
        return self._manager.latest_step()

    def save(self, round: int, state: CheckpointState, config: config_lib.Config) -> None:
        """Begin to save; returns once the arrays are copied to the host, so that the caller may donate them."""
        arrays = {
            "params": state.params,
            "optimizer": _flat(state.optimizer),
            # Orbax does not store arrays without elements.
            "replay": {name: np.asarray(value) for name, value in state.replay._asdict().items() if value.size},
        }
        if state.reference is not None:
            arrays["reference"] = state.reference
        notes = {
            "progress": dataclasses.asdict(state.progress),
            "config": config_lib.to_tree(config),
            "config_hash": config_lib.results_hash(config),
        }
        self._manager.save(
            round, args=ocp.args.Composite(arrays=ocp.args.PyTreeSave(arrays), notes=ocp.args.JsonSave(notes))
        )

    def restore(self, round: int, like: CheckpointState) -> CheckpointState:
        """The state saved after a round.

        Args:
          round: a saved round.
          like: arrays or ShapeDtypeStructs with shardings for params, optimizer and reference; other fields are ignored.
        """
        target = {
            "params": _abstract(like.params),
            "optimizer": _abstract(_flat(like.optimizer)),
            "replay": self._replay_like(round),
        }
        if like.reference is not None:
            target["reference"] = _abstract(like.reference)
        restored = self._manager.restore(
            round, args=ocp.args.Composite(arrays=_restore(target), notes=ocp.args.JsonRestore())
        )
        arrays = restored.arrays
        structure = jax.tree.structure(like.optimizer)
        return CheckpointState(
            params=arrays["params"],
            optimizer=jax.tree.unflatten(structure, [arrays["optimizer"][name] for name in _flat(like.optimizer)]),
            reference=arrays.get("reference"),
            replay=replay.completed(arrays["replay"]),
            progress=_progress(restored.notes["progress"]),
        )

    def restore_params(self, round: int, like: model.Params) -> model.Params:
        """The policy's parameters, without the rest.

        Args:
          like: arrays or ShapeDtypeStructs with shardings.
        """
        arrays = _restore({"params": _abstract(like)}, is_partial=True)
        restored = self._manager.restore(round, args=ocp.args.Composite(arrays=arrays))
        return restored.arrays["params"]

    def restore_replay(self, round: int) -> types.Trajectories:
        """The replay buffer's trajectories, without the rest.

        Raises:
          ValueError: an earlier version saved it, without the rows of the data set.
        """
        like = self._replay_like(round)
        if not like:
            return replay.empty()
        if "row" not in like:
            raise ValueError(
                f"the checkpoint of round {round} was saved by an earlier version, whose trajectories do not name their "
                "questions. Use a run of this version."
            )
        arrays = _restore({"replay": like}, is_partial=True)
        restored = self._manager.restore(round, args=ocp.args.Composite(arrays=arrays))
        return replay.completed(restored.arrays["replay"])

    def has_value_head(self, round: int) -> bool:
        """Whether the saved parameters hold a value head."""
        return "value_head" in self._manager.item_metadata(round)["arrays"].tree["params"]

    def wait(self) -> None:
        """Block until the last save is committed; raises its error if it failed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last save and stop the background threads."""
        self._manager.close()

    def _replay_like(self, round: int) -> dict[str, np.ndarray]:
        """NumPy arrays of the saved shapes; as jax arrays, 64-bit ones would be narrowed."""
        saved = self._manager.item_metadata(round)["arrays"].tree["replay"]
        return {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in saved.items()}


def _progress(notes: types.Json) -> Progress:
    known = adaptation.Adaptation(**notes.get("adaptation", {}))
    return Progress(**notes | {"adaptation": known})


def _restore(target: types.PyTree, *, is_partial: bool = False) -> ocp.args.PyTreeRestore:
    placement = ocp.checkpoint_utils.construct_restore_args(target)
    return ocp.args.PyTreeRestore(target, restore_args=placement, partial_restore=is_partial)


def _flat(tree: types.PyTree) -> dict[str, jax.Array]:
    """Leaves by path: a checkpoint then holds no class of optax."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _abstract(tree: types.PyTree) -> types.PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)
