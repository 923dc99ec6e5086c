"""One run, one owner: the file `owner.json` keeps other processes out of a run directory while its owner lives.

It names the process, and exists from before anything else is written until the run has ended. A process that was killed leaves it
behind: the next one takes it over if the owner is provably gone. On the same boot of the same host that is so if no process has
its number, or one that started at another time; after a reboot it is so at once. Of another host only the file itself tells: an
owner changes its last field every ten seconds, so a newcomer watches it for a minute by its own clock. An owner that was stopped
for longer and comes back finds another's name in the file, and ends before it writes anything.

Every step works on network file systems: the file appears by link(2) and goes by rename(2), both atomic.
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from reval_jax import durable

FILE = "owner.json"

WATCH_S = 60.0
"""Seconds without a change after which an owner on another host counts as gone."""
BEAT_S = 10.0
"""Seconds between two changes of the file by its owner."""

_BEAT_DIGITS = 12
_ABANDONED_S = 60.0  # a file beside it lives for milliseconds
_SETTLE_S = 0.2  # after a takeover, until it is certain that no other newcomer's has crossed it
_PATIENCE_S = 2.0  # a newcomer that moved the file away by mistake puts it back within milliseconds

State = Literal["alive", "gone", "unknown"]


class LostError(RuntimeError):
    """Another process has taken the run directory over."""


class Identity(NamedTuple):
    """Facts that name a process, as the file has them; text that is unknown here is empty."""

    host: str
    machine: str  # of /etc/machine-id: hosts in different networks may have one name
    boot: str  # another one after each start of the system
    namespace: str  # of process numbers: containers on one host have their own
    pid: int
    started: str  # clock ticks from the start of the system to that of the process
    user: str
    since: str  # UTC
    nonce: str

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host} since {self.since} (user {self.user})"


class Owner:
    """A run directory that this run holds."""

    def __init__(
        self, directory: Path, nonce: str, *, descriptor: int | None = None, created: tuple[Path, ...] = ()
    ) -> None:
        """Called by `acquire`; without a descriptor in a process beside the one that holds the file (`follow`).

        Args:
          descriptor: of the file, to write heartbeats; closed by `release`.
          created: directories to remove with the file where the run has left them empty, innermost first.
        """
        self.nonce = nonce
        self._directory, self._descriptor, self._created = directory, descriptor, created
        self._is_over, self._lock = threading.Event(), threading.Lock()

    def check(self) -> None:
        """Raises LostError unless the file still is this run's; a file system out of reach proves nothing."""
        found = self._patiently_read()
        if isinstance(found, bytes) and _nonce(found) != self.nonce:
            raise LostError(
                f"{self._directory} belongs to another run now: {_named(found)} has taken it over, since this process was "
                "stopped or out of reach of its files for too long. This process ends and writes nothing more; the other goes on."
            )
        if found is None:
            raise LostError(
                f"{self._directory / FILE} is gone: it, or the run directory, was deleted or moved while the run used it. This "
                "process ends; the same command resumes from the last checkpoint that is still there."
            )

    def is_seen(self, *, patience_s: float = 10.0) -> bool:
        """Whether this process sees the run's file; a network file system may show it late."""
        deadline = time.monotonic() + patience_s
        while True:
            found = _read(self._directory / FILE)
            if found is not None and _nonce(found) == self.nonce:
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)

    def release(self) -> None:
        """Removes the file, unless it is another's by now; in other processes than the holder's it does nothing."""
        self._is_over.set()
        with self._lock:
            if self._descriptor is None:
                return
            os.close(self._descriptor)
            self._descriptor = None
        with contextlib.suppress(OSError):
            _remove(self._directory / FILE, self.nonce)
            for created in self._created:
                created.rmdir()

    def beat(self, every_s: float) -> None:
        """Starts a thread that changes the file until `release`."""
        threading.Thread(target=self._beat, args=(every_s,), name="owner of the run directory", daemon=True).start()

    def _beat(self, every_s: float) -> None:
        count = 0
        while not self._is_over.wait(every_s):
            count += 1
            # Written into the file that this run made, so that another's is never replaced.
            with self._lock, contextlib.suppress(OSError):
                if self._descriptor is not None:
                    size = os.fstat(self._descriptor).st_size
                    os.pwrite(self._descriptor, f"{count:0{_BEAT_DIGITS}d}".encode(), size - _BEAT_DIGITS - len('"}'))
                    os.fsync(self._descriptor)

    def _patiently_read(self) -> bytes | OSError | None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                found = _read(self._directory / FILE)
            except OSError as error:
                return error
            if found is not None or time.monotonic() > deadline:
                return found
            time.sleep(0.05)


def acquire(
    directory: Path,
    *,
    log: Callable[[str], None],
    on_wait: Callable[[], object] = lambda: None,
    watch_s: float = WATCH_S,
    beat_s: float = BEAT_S,
) -> Owner:
    """Makes this process the owner of the run directory, which is created if need be.

    Args:
      log: receives one line if it has to watch another host's file, and one if a file is taken over.
      on_wait: called about once a second while it watches.
      watch_s: seconds after which an unchanged file of another host is taken over.
      beat_s: seconds between two heartbeats of this owner.

    Raises:
      ValueError: another process owns it.
      OSError: the file cannot be written.
    """
    created = tuple(path for path in (directory, *directory.parents) if not path.exists())
    directory.mkdir(parents=True, exist_ok=True)
    try:
        own = _this_process()
        is_contested = False
        while (descriptor := _settled(directory, own, is_contested=is_contested)) is None:
            is_contested = True
            _clear(directory, log=log, on_wait=on_wait, watch_s=watch_s)
    except BaseException:
        with contextlib.suppress(OSError):
            for path in created:
                path.rmdir()
        raise
    _sweep(directory, os.fstat(descriptor).st_ctime)
    held = Owner(directory, own.nonce, descriptor=descriptor, created=created)
    held.beat(beat_s)
    return held


def follow(directory: Path, nonce: str) -> Owner:
    """The same run's owner for another of its processes, which checks the file and leaves it alone."""
    return Owner(directory, nonce)


def examine(directory: Path) -> tuple[State | None, str]:
    """Whether the directory has a living owner (None: no owner), and a sentence for a person; changes nothing."""
    found = _read(directory / FILE)
    if found is None:
        return None, "no process uses it"
    state = _state(found)
    meaning = {
        "alive": "which runs",
        "gone": "which has ended; the next start takes over",
        "unknown": f"which cannot be seen from here; the next start watches it for {WATCH_S:.0f} seconds",
    }[state]
    return state, f"{_named(found)}, {meaning}"


def _clear(directory: Path, *, log: Callable[[str], None], on_wait: Callable[[], object], watch_s: float) -> None:
    """Removes the file of an owner that is gone.

    Raises:
      ValueError: the owner is alive.
    """
    path = directory / FILE
    first = _read(path)
    if first is None:
        return
    state, found, began = _state(first), first, time.monotonic()
    if state == "unknown":
        log(
            f"{directory} is held by {_named(first)}; watching {watch_s:.0f} s for a sign of life before it is taken over"
        )
    while state == "unknown" and found == first and time.monotonic() - began < watch_s:
        time.sleep(min(1.0, watch_s / 10))
        on_wait()
        again = _read(path)
        if again is None:
            return
        found = again
    if state == "alive" or found != first:
        raise ValueError(
            f"--run-dir {directory} is in use by {_named(found)}. Wait until it has ended, stop it, or use another --run-dir."
        )
    if _remove(path, _nonce(first)):
        log(f"{directory} is taken over from {_named(first)}, which has ended without releasing it")


def _settled(directory: Path, own: Identity, *, is_contested: bool) -> int | None:
    """As `_create`; where others may be taking over too, only if the file is still this process's a moment later.

    Another newcomer may have moved it away by mistake, and a third have made its own before it was put back.
    """
    descriptor = _create(directory, own)
    if descriptor is not None and is_contested:
        time.sleep(_SETTLE_S)
        found = _read(directory / FILE)
        if found is None or _nonce(found) != own.nonce:
            os.close(descriptor)
            return None
    return descriptor


def _create(directory: Path, own: Identity) -> int | None:
    """An open descriptor of the directory's new file; None if there is one already, which stays as it is."""
    path, temporary = directory / FILE, directory / f"{FILE}.{own.nonce}"
    content = json.dumps({**own._asdict(), "beat": "0" * _BEAT_DIGITS}).encode()
    descriptor = _write_new(temporary, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        # On a network file system an answer may be lost, and the request that is sent again finds its own work done.
        is_ours = os.fstat(descriptor).st_nlink > 1
    except OSError:
        # A file system without hard links.
        os.close(descriptor)
        try:
            descriptor, is_ours = _write_new(path, content), True
        except FileExistsError:
            return None
    else:
        is_ours = True
    finally:
        temporary.unlink(missing_ok=True)
    if not is_ours:
        os.close(descriptor)
        return None
    durable.sync_directory(directory)
    return descriptor


def _sweep(directory: Path, now: float) -> None:
    """Removes what newcomers that were killed have left beside the file.

    Args:
      now: by the file system's clock.
    """
    with contextlib.suppress(OSError):
        for path in directory.glob(f"{FILE}.*"):
            if now - path.stat().st_ctime > _ABANDONED_S:
                path.unlink(missing_ok=True)


def _write_new(path: Path, content: bytes) -> int:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    except BaseException:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor


def _remove(path: Path, nonce: str) -> bool:
    """Removes the file if it has this nonce; moved first, since a newer one may have come since it was read."""
    moved = path.with_name(f"{FILE}.{uuid.uuid4().hex}")
    found = _read(path)
    if found is None or _nonce(found) != nonce:
        return False
    try:
        path.rename(moved)
    except FileNotFoundError:
        return False
    is_it = _nonce(moved.read_bytes()) == nonce
    if not is_it:
        try:
            os.link(moved, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            moved.rename(path)
            return False
    moved.unlink(missing_ok=True)
    return is_it


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _parse(content: bytes) -> Identity | None:
    """The owner that a file names; None if the file is damaged."""
    try:
        fields = json.loads(content)
        del fields["beat"]
        identity = Identity(**fields)
        return identity if isinstance(identity.pid, int) and identity.pid > 0 else None
    except (ValueError, TypeError, KeyError):
        return None


def _nonce(content: bytes) -> str:
    """The nonce in a file; of a damaged one, its content."""
    identity = _parse(content)
    return identity.nonce if identity else content.decode("latin-1")


def _named(content: bytes) -> str:
    return str(_parse(content) or "a process that its damaged owner.json does not name")


def _state(content: bytes) -> State:
    """What can be said about an owner from here."""
    owner, here = _parse(content), _this_process()
    if owner is None or (owner.host, owner.machine) != (here.host, here.machine):
        return "unknown"
    if not (owner.boot and here.boot):
        return "unknown"
    if owner.boot != here.boot:
        return "gone"
    if owner.namespace != here.namespace:
        return "unknown"
    started = _started(owner.pid)
    if started is None:
        return "gone"
    if not (started and owner.started):
        return "unknown"
    return "alive" if started == owner.started else "gone"


def _this_process() -> Identity:
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return Identity(
        host=socket.gethostname(),
        machine=_text("/etc/machine-id"),
        boot=_text("/proc/sys/kernel/random/boot_id"),
        namespace=namespace,
        pid=os.getpid(),
        started=_started(os.getpid()) or "",
        user=user,
        since=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        nonce=uuid.uuid4().hex,
    )


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _started(pid: int) -> str | None:
    """When the process started, "" where the system does not say; None if there is no such process, or only its exit status."""
    if facts := _text(f"/proc/{pid}/stat").rpartition(")")[2].split():
        state, started = facts[0], facts[19]  # fields 3 and 22 of proc(5)
        return None if state in "ZXx" else started
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        return ""
    return ""
