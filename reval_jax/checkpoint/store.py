"""The checkpoints of one run directory: saved in the background, whole or not at all, and never read unless whole."""

from __future__ import annotations

import dataclasses
import glob
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from reval_jax import adaptation, console, distributed, model, owner, replay, run_directory, types
from reval_jax import config as config_lib
from reval_jax.checkpoint import manifest, saving
from reval_jax.checkpoint.state import CheckpointState, Progress

FOREVER = 10**9  # seconds; Orbax measures its limits by a clock that may be set, so they are replaced by `Save.wait`'s
UNCHECKED = (
    "has no checksums: an earlier version saved it, or they were lost. It is used, but damage would not be noticed"
)


class Store:
    """The checkpoints of one run directory."""

    def __init__(
        self,
        directory: Path,
        settings: config_lib.Checkpoint | None,
        *,
        held: owner.Owner | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        """Open the checkpoints to write and read; without settings only to read, even while another process writes.

        Args:
          held: the run directory's owner, without whom nothing is committed or deleted any more.
          log: gets notes for a person; by default they are printed on standard error.
        """
        self._directory, self._settings, self._held = directory.resolve(), settings, held
        self._log = log or console.Console().log
        self._path, self._links = _literal(self._directory)
        # What fails is reported once, by SaveError.
        logging.getLogger("absl").addFilter(_is_not_orbax)
        # Directories are made at once: made in the background, one that fails leaves the save waiting for it.
        options = ocp.options.AsyncOptions(timeout_secs=FOREVER, create_directories_asynchronously=False)
        handler = ocp.CompositeCheckpointHandler(
            arrays=ocp.PyTreeCheckpointHandler(), notes=ocp.JsonCheckpointHandler()
        )
        self._checkpointer = ocp.AsyncCheckpointer(handler, async_options=options)
        self._save: saving.Save | None = None
        self._is_stuck = False
        self._latest: int | None = None  # restored, or saved, if only so far that a thread commits it

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
        """The round, if its checkpoint is whole; for None the last round whose checkpoint is. What was passed over is said.

        Raises:
          ValueError: the round was not saved, or is not whole; the message lists those that were saved.
        """
        saved = self.rounds()
        if not saved or (round is not None and round not in saved):
            wanted = "any" if round is None else f"round {round}"
            raise ValueError(f"no checkpoint of {wanted} exists; saved rounds: {saved or 'none'}. Name one of those.")
        if round is None:
            chosen, notes = self.newest_whole()
            for note in notes:
                self._log(f"note: {note}")
            return types.present(chosen)
        if (found := _problem(self._directory, round, saved)) and found != UNCHECKED:
            raise ValueError(
                f"the checkpoint of round {round} in {self._directory} is not whole: {found}. Name another saved round "
                f"({saved}), or restore the file from a copy."
            )
        return round

    def whole(self) -> list[int]:
        """The rounds whose checkpoints are whole, ascending. What was passed over is said.

        Raises:
          ValueError: no round was saved, or none is whole.
        """
        found = check(self._directory)
        for round, reason in found.items():
            if reason is not None:
                self._log(f"note: the checkpoint of round {round}: {reason}")
        whole = [round for round, reason in found.items() if reason in (None, UNCHECKED)]
        return whole or [self.choose(None)]

    def newest_whole(self) -> tuple[int | None, list[str]]:
        """The newest round whose checkpoint is whole (None if nothing was saved), and a note on each one that was passed over.

        Checked by one process for all: a collective call.

        Raises:
          ValueError: there are checkpoints, and none is whole; on every process alike.
        """
        found = None
        if jax.process_index() == 0:
            found = _newest_whole(self._directory, self.rounds())
        chosen, notes = json.loads(distributed.gather_bytes(json.dumps(found).encode())[0])
        if chosen is None and notes:
            raise ValueError(
                f"no checkpoint in {self._directory} is whole: {'; '.join(notes)}. Restore one of them from a copy, or start a "
                "new run with another --run-dir."
            )
        self._latest = chosen
        return chosen, notes

    def rounds(self) -> list[int]:
        """The saved rounds, ascending, whole or not."""
        return run_directory.saved_rounds(self._directory)

    def latest(self) -> int | None:
        """The round that was restored or saved last, or None."""
        return self._latest

    def begin(self) -> list[str]:
        """Make the directory, and clear it of what a killed process left; what was done, in sentences.

        Checkpoints newer than the one that was restored get another name: their rounds are played and saved again. Call once,
        in one process, by whom the run directory is owned.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        notes = []
        for entry in sorted(self._directory.iterdir()):
            if (entry.is_dir() and saving.SAVING in entry.name) or entry.name.endswith(saving.DELETING):
                saving.remove(entry)
        for round in self.rounds():
            if round > (self._latest or 0):
                aside = self._directory / f"{round}{saving.DAMAGED}"
                if aside.exists():
                    saving.remove(aside)
                (self._directory / str(round)).rename(aside)
                notes.append(f"the damaged checkpoint of round {round} is now {aside}; delete it when you want")
        self._retire()
        return notes

    def save(self, round: int, state: CheckpointState, config: config_lib.Config) -> None:
        """Begin to save; returns once the arrays are copied to the host, so that the caller may donate them.

        Raises:
          SaveError: this save does not fit or cannot begin, or the one before failed; on every process alike.
        """
        arrays = _arrays(state)
        notes = {
            "progress": dataclasses.asdict(state.progress),
            "config": config_lib.to_tree(config),
            "config_hash": config_lib.results_hash(config),
        }
        self.wait()
        self._check_space(round, arrays)
        tag = ""
        if self._held is not None:
            self._held.check()
            tag = self._held.nonce  # another owner's unfinished save has another name
        begun = self._path / f"{round}{saving.SAVING}{tag}"
        error: Exception | None = None
        try:
            self._checkpointer.save(
                begun, args=ocp.args.Composite(arrays=ocp.args.PyTreeSave(arrays), notes=ocp.args.JsonSave(notes))
            )
        except Exception as raised:
            error = raised
        self._refuse(round, error)
        begun_here, final = self._directory / begun.name, self._directory / str(round)
        is_committer = jax.process_index() == 0
        self._save = saving.Save(
            self._checkpointer,
            begun_here,
            final,
            before=self._held.check if self._held is not None else None,
            after=self._retire if is_committer else None,
        )
        self._latest = round

    def check_space(self, state: CheckpointState) -> None:
        """Refuses a state whose checkpoint does not fit, before anything is written: a collective call.

        Raises:
          SaveError: on every process alike.
        """
        self._check_space(state.progress.round + 1, _arrays(state))

    def _check_space(self, round: int, arrays: types.PyTree) -> None:
        error: saving.SaveError | None = None
        if jax.process_index() == 0:
            try:
                saving.check_space(self._directory, round, saving.num_bytes(arrays), self.rounds())
            except saving.SaveError as raised:
                error = raised
        if message := b"".join(distributed.gather_bytes(str(error or "").encode())):
            raise saving.SaveError(message.decode())

    def restore(self, round: int, like: CheckpointState) -> CheckpointState:
        """The state saved after a round.

        Args:
          round: of a whole checkpoint.
          like: arrays or ShapeDtypeStructs with shardings for params, optimizer and reference; other fields are ignored.

        Raises:
          ValueError: its notes are of another round.
        """
        target = {
            "params": _abstract(like.params),
            "optimizer": _abstract(_flat(like.optimizer)),
            "replay": self._replay_like(round),
        }
        if like.reference is not None:
            target["reference"] = _abstract(like.reference)
        restored = self._checkpointer.restore(
            self._path / str(round), args=ocp.args.Composite(arrays=_restore(target), notes=ocp.args.JsonRestore())
        )
        arrays, progress = restored.arrays, _progress(restored.notes["progress"])
        if progress.round != round:
            raise ValueError(
                f"{self._directory / str(round)} holds the notes of round {progress.round}, so it is not whole. Restore it from "
                "a copy, or delete it: the run then resumes from an earlier round."
            )
        structure = jax.tree.structure(like.optimizer)
        return CheckpointState(
            params=arrays["params"],
            optimizer=jax.tree.unflatten(structure, [arrays["optimizer"][name] for name in _flat(like.optimizer)]),
            reference=arrays.get("reference"),
            replay=replay.completed(arrays["replay"]),
            progress=progress,
        )

    def restore_params(self, round: int, like: model.Params) -> model.Params:
        """The policy's parameters, without the rest.

        Args:
          like: arrays or ShapeDtypeStructs with shardings.
        """
        arrays = _restore({"params": _abstract(like)}, is_partial=True)
        restored = self._checkpointer.restore(self._path / str(round), args=ocp.args.Composite(arrays=arrays))
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
        restored = self._checkpointer.restore(self._path / str(round), args=ocp.args.Composite(arrays=arrays))
        return replay.completed(restored.arrays["replay"])

    def has_value_head(self, round: int) -> bool:
        """Whether the saved parameters hold a value head."""
        return "value_head" in self._saved_tree(round)["params"]

    def check(self) -> None:
        """Report the save in the background if it has failed by now: a collective call.

        Raises:
          SaveError: on every process alike.
        """
        if self._save is not None:
            self._refuse(self._save.round, self._save.poll())

    def wait(self) -> None:
        """Block until the last save is committed: a collective call.

        Raises:
          SaveError: it failed, or nothing was written for `checkpoint.stall_seconds`; on every process alike.
        """
        if self._save is not None:
            self._refuse(self._save.round, self._save.wait(types.present(self._settings).stall_seconds))
            self._save = None

    def close(self) -> None:
        """Stop the background threads, after the save that they commit, if the run directory is still this run's."""
        if self._held is not None:
            try:
                self._held.check()
            except owner.LostError:
                self._is_stuck = True  # nothing more is committed, so there is nothing to wait for
        if self._save is not None and self._settings is not None and not self._is_stuck:
            self._save.wait(self._settings.stall_seconds)
        # Orbax would wait for a save that hangs.
        if self._save is None or not self._save.is_running:
            self._checkpointer.close()
        if self._links is not None:
            self._links.cleanup()

    def _refuse(self, round: int, error: BaseException | None) -> None:
        """Raises SaveError, or owner.LostError, if the save of this round failed on any process: a collective call."""
        reasons = distributed.gather_bytes(saving.cause(error).encode() if error else b"")
        if any(reasons):
            self._is_stuck = True
            if isinstance(error, owner.LostError):
                raise error
            if jax.process_index() == 0:
                _remove_begun(self._directory)
            reason = next(each for each in reasons if each).decode()
            raise saving.failure(self._directory, round, reason, self.rounds()) from error

    def _retire(self) -> None:
        """Deletes the oldest checkpoints, but for the last `checkpoint.keep`; one that cannot be deleted is said."""
        for round in self.rounds()[: -types.present(self._settings).keep]:
            try:
                saving.remove(self._directory / str(round))
            except OSError as error:
                self._log(f"note: the old checkpoint of round {round} was not deleted: {saving.cause(error)}")

    def _replay_like(self, round: int) -> dict[str, np.ndarray]:
        """NumPy arrays of the saved shapes; as jax arrays, 64-bit ones would be narrowed."""
        saved = self._saved_tree(round)["replay"]
        return {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in saved.items()}

    def _saved_tree(self, round: int) -> types.PyTree:
        """Orbax's description of each saved array."""
        return self._checkpointer.metadata(self._path / str(round)).item_metadata["arrays"].tree


def check(directory: Path) -> dict[int, str | None]:
    """Of every checkpoint in the directory, by round ascending: why it is not whole, or None. Writes nothing."""
    saved = run_directory.saved_rounds(directory)
    return {round: _problem(directory, round, saved) for round in saved}


def _problem(directory: Path, round: int, saved: list[int]) -> str | None:
    """As `manifest.problem`; where none up to this one has checksums, an earlier version may have saved it."""
    path = directory / str(round)
    if (
        any(manifest.is_present(directory / str(each)) for each in saved if each <= round)
        or not (path / "_CHECKPOINT_METADATA").exists()
    ):
        return manifest.problem(path, round)
    return UNCHECKED


def _newest_whole(directory: Path, saved: list[int]) -> tuple[int | None, list[str]]:
    """The newest whole round, and a note on it or on those after it."""
    notes: list[str] = []
    for round in reversed(saved):
        found = _problem(directory, round, saved)
        if found is None:
            return round, notes
        notes.append(f"the checkpoint of round {round}: {found}")
        if found == UNCHECKED:
            return round, notes
    return None, notes


def _remove_begun(directory: Path) -> None:
    """Frees the space that a failed save takes."""
    for entry in directory.iterdir():
        if saving.SAVING in entry.name:
            saving.remove(entry)


def _literal(directory: Path) -> tuple[Path, tempfile.TemporaryDirectory[str] | None]:
    """A path of the directory that Orbax, which takes paths for patterns, reads as it stands.

    Where the directory's own path would not do, that is a link, in a directory to be cleaned up.

    Raises:
      ValueError: there is no such path.
    """
    if _is_literal(directory):
        return directory, None
    links = tempfile.TemporaryDirectory(prefix="reval_")
    link = Path(links.name) / "checkpoints"
    if not _is_literal(link):
        raise ValueError(
            f"neither the run directory {directory.parent} nor the directory for temporary files {link.parent.parent} has a "
            "path without the characters [ ] * ? and \\. Rename one of them (TMPDIR names the latter)."
        )
    link.symlink_to(directory, target_is_directory=True)
    return link, links


def _is_literal(path: Path) -> bool:
    return glob.escape(str(path)) == str(path) and "\\" not in str(path)


def _is_not_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _arrays(state: CheckpointState) -> types.PyTree:
    """The arrays that a checkpoint of the state holds."""
    arrays = {
        "params": state.params,
        "optimizer": _flat(state.optimizer),
        # Orbax does not store arrays without elements.
        "replay": {name: np.asarray(value) for name, value in state.replay._asdict().items() if value.size},
    }
    if state.reference is not None:
        arrays["reference"] = state.reference
    return arrays


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
