"""Runs the `reval` command and sends its own process a signal at a chosen point: `python train_until.py END COMMAND ...`.

END is `never` or SIGNAL:POINT:ROUND, for example KILL:update:3. A point is a phase of the loop (its first block is over, so
an update's gradients are applied and a second update is still to come) or one of
  claim    the run directory is about to be claimed
  journal  the round's first finished responses are in its journal, and the round before is committed
  grading  answers are given to the workers
  sampled  the round's responses are all sampled
  line     the round's metrics line is written and its checkpoint is not begun
  commit   the checkpoint's arrays are written and it is about to be committed, by a background thread
  saved    the checkpoint is committed
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from reval_jax import __main__, checkpoint, journal, metrics, train
from reval_jax.sampler import sampler as engine
from reval_jax.sandbox import pool


def arrange(end: str) -> None:
    """Patches the program so that it sends itself the signal."""
    name, point, at = end.split(":")
    number = signal.Signals[f"SIG{name}"]
    now = {"round": 0, "saving": False}

    def end_if(reached: str) -> None:
        if reached == point and now["round"] == int(at):
            os.kill(os.getpid(), number)

    play, phase, save, write = train.play_round, metrics.Clock.phase, checkpoint.Store.save, metrics.Writer.write
    add, generate, run = journal.Journal.add, engine.generate, pool.Pool.run

    def noted_round(components: Any, run: Any, *others: Any) -> Any:
        now["round"] = run.progress.round + 1
        return play(components, run, *others)

    def noted_add(finished: journal.Journal, responses: Any, first: int) -> None:
        add(finished, responses, first)
        end_if("journal")

    @contextlib.contextmanager
    def noted_phase(clock: metrics.Clock, name: str) -> Iterator[None]:
        with phase(clock, name):
            yield
            end_if(name)

    def noted_write(writer: metrics.Writer, values: Any) -> None:
        write(writer, values)
        end_if("line")

    def noted_save(store: checkpoint.Store, *arguments: Any) -> None:
        now["saving"] = True
        save(store, *arguments)
        if point in ("commit", "saved", "journal"):
            store.wait()
            end_if("saved")

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "os.rename":
            return
        if str(arguments[1]).endswith("config.yaml"):
            end_if("claim")
        elif now["saving"]:
            end_if("commit")

    def noted_generate(*arguments: Any, **options: Any) -> Any:
        responses = generate(*arguments, **options)
        end_if("sampled")
        return responses

    def noted_run(workers: pool.Pool, *arguments: Any, **options: Any) -> Any:
        # Late enough that the workers have begun, in most runs: a signal before that tests the same.
        threading.Timer(2.0, end_if, ("grading",)).start()
        return run(workers, *arguments, **options)

    patches: list[tuple[Any, str, Callable[..., Any]]] = [
        (train, "play_round", noted_round),
        (metrics.Clock, "phase", noted_phase),
        (metrics.Writer, "write", noted_write),
        (checkpoint.Store, "save", noted_save),
        (journal.Journal, "add", noted_add),
        (engine, "generate", noted_generate),
        (pool.Pool, "run", noted_run),
    ]
    for owner, attribute, patch in patches:
        setattr(owner, attribute, patch)
    # The only public view of what a library's background thread does to the file system.
    sys.addaudithook(watch)


if __name__ == "__main__":
    if sys.argv[1] != "never":
        arrange(sys.argv[1])
    sys.argv[1:] = sys.argv[2:]
    __main__.main()
