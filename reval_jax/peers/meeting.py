"""The processes of a program meet at the coordinator's address, before jax listens there."""

from __future__ import annotations

import dataclasses
import errno
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from reval_jax.peers import lines

JOIN_SECONDS = 50.0
"""How long processes wait for each other."""

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_REMEDY = f"Set all three of {_ADDRESS}=HOST:PORT, {_COUNT} and {_INDEX}, or none to run one process."


@dataclasses.dataclass(frozen=True)
class Place:
    """One process among several."""

    host: str  # of process 0
    port: int
    count: int  # processes
    index: int  # of this one

    @property
    def address(self) -> str:
        """HOST:PORT of process 0."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def from_environment(variables: Mapping[str, str]) -> Place | None:
    """The place that JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID name; None if none of them is set.

    Raises:
      ValueError: only some are set, the address has no port, or the numbers contradict each other.
    """
    address, count, index = (variables.get(name, "") for name in (_ADDRESS, _COUNT, _INDEX))
    if not (address or count or index):
        return None
    given = ", ".join(
        f"{name}={value}" if value else f"{name} is not set"
        for name, value in ((_ADDRESS, address), (_COUNT, count), (_INDEX, index))
    )
    if not (address and count and index):
        raise ValueError(f"{given}: one of several processes needs all three. {_REMEDY}")
    host, _, port = address.rpartition(":")
    if not host or (":" in host and not host.startswith("[")) or not port.isascii() or not port.isdigit():
        raise ValueError(f"{_ADDRESS}={address} has no port. Write HOST:PORT, for example {address}:8476.")
    if not 0 < int(port) < 65536:
        raise ValueError(f"{_ADDRESS}={address}: a port is a number from 1 to 65535.")
    numbers = [int(text) if text.isascii() and text.isdigit() else None for text in (count, index)]
    if numbers[0] is None or numbers[1] is None or numbers[1] >= numbers[0]:
        raise ValueError(f"{given}: {_COUNT} is a number from 1 up, and {_INDEX} one from 0 to {_COUNT} - 1. {_REMEDY}")
    return Place(host.strip("[]"), int(port), numbers[0], numbers[1])


class Circle(NamedTuple):
    """Processes that have met."""

    place: Place
    hosts: list[str]  # by index
    connections: dict[int, lines.Connection]  # by index: of process 0 to all others, of another to process 0


def meet(place: Place, facts: Mapping[str, str], *, bind_address: str = "", seconds: float = JOIN_SECONDS) -> Circle:
    """Meets the other processes at the coordinator's address, which is free again afterwards.

    Args:
      facts: what must be the same everywhere before jax starts, by name.
      bind_address: HOST:PORT at which process 0 listens; empty for its port on every interface.
      seconds: for how long.

    Raises:
      ValueError: the port is in use, a process is missing, two have one index, or the facts differ; where others are
        connected they raise the same.
    """
    deadline = time.monotonic() + seconds
    hello = {"reval": "process", "index": place.index, "count": place.count, "host": socket.gethostname()}
    if place.index:
        return _join(place, {**hello, "facts": dict(facts)}, deadline, seconds)
    with _listen(place, bind_address) as listener:
        joined, problem = _gather(place, listener, {**hello, "facts": dict(facts)}, deadline, seconds)
    hosts = [joined[index][0]["host"] for index in sorted(joined)]
    connections = {index: connection for index, (_, connection) in joined.items() if connection is not None}
    for connection in connections.values():
        connection.send({"problem": problem, "hosts": hosts})
        if problem:
            connection.close()
    if problem:
        raise ValueError(problem)
    return Circle(place, hosts, connections)


def _listen(place: Place, bind_address: str) -> socket.socket:
    """A socket at which the others arrive.

    Raises:
      ValueError: the port is in use, or the address is not this machine's.
    """
    host, _, port = bind_address.rpartition(":")
    target = (host.strip("[]"), int(port) if port.isdigit() else place.port)
    is_dual = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if is_dual or ":" in host else socket.AF_INET
    # An attempt of another process to connect takes a port for an instant, which may be this one.
    for attempt in range(4):
        try:
            return socket.create_server(target, family=family, backlog=max(128, place.count), dualstack_ipv6=is_dual)
        except OSError as error:
            failure = error
            if error.errno != errno.EADDRINUSE:
                break
            time.sleep(0.3 * attempt)
    is_taken = failure.errno == errno.EADDRINUSE
    reason = "is in use, by another run or program" if is_taken else f"cannot be used ({failure})"
    raise ValueError(
        f"{_ADDRESS}={place.address}: port {target[1]} of this machine, {socket.gethostname()}, {reason}. Choose another port "
        f"for all processes, end the other program, or check that only one process has {_INDEX}=0."
    ) from failure


_Joined = dict[int, tuple[dict[str, Any], lines.Connection | None]]


def _gather(
    place: Place, listener: socket.socket, own: dict[str, Any], deadline: float, seconds: float
) -> tuple[_Joined, str]:
    """Every process that arrived, with its greeting and connection, and what is wrong with them; empty if nothing is."""
    joined: _Joined = {0: (own, None)}
    while len(joined) < place.count:
        arrived = _arrival(listener, deadline)
        if arrived is not None:
            greeting, connection = arrived
            index, host = greeting["index"], greeting["host"]
            problem = ""
            if greeting["count"] != place.count:
                problem = (
                    f"process 0 ({own['host']}) has {_COUNT}={place.count}, but one on {host} has {greeting['count']}"
                )
            elif index in joined:
                problem = f"two processes have {_INDEX}={index}, on {joined[index][0]['host']} and {host}"
            if problem:
                problem += f". Start {place.count} processes, numbered from 0."
                connection.send({"problem": problem, "hosts": []})
                connection.close()
                return joined, problem
            joined[index] = (greeting, connection)
        elif time.monotonic() >= deadline:
            missing = ", ".join(str(index) for index in range(place.count) if index not in joined)
            return joined, (
                f"of {place.count} processes ({_COUNT}) {missing} did not come to {place.address} within {seconds:g} s. Start "
                "the same command on every host, and see that each can connect to that address."
            )
    return joined, _difference({index: greeting for index, (greeting, _) in joined.items()})


def _arrival(listener: socket.socket, deadline: float) -> tuple[dict[str, Any], lines.Connection] | None:
    """The greeting of the next process of ours, and its connection; None if nobody came, or someone else."""
    listener.settimeout(max(0.1, deadline - time.monotonic()))
    try:
        link, _ = listener.accept()
    except OSError:
        return None
    connection = lines.Connection(link)
    try:
        greeting = connection.first(min(deadline, time.monotonic() + 5.0))
        if greeting.get("reval") == "process":
            return greeting, connection
    except (TimeoutError, lines.ClosedError, ValueError):
        pass
    connection.close()
    return None


def _difference(greetings: dict[int, dict[str, Any]]) -> str:
    """The facts that differ between processes as a message; empty if none does."""
    per_process = {f"process {index} ({each['host']})": each["facts"] for index, each in sorted(greetings.items())}
    listed = differing(per_process)
    return f"the processes differ: {listed}. Install the same versions on every host." if listed else ""


def differing(facts: Mapping[str, Mapping[str, str]]) -> str:
    """The facts that are not equal for all, each with its values and who has them; empty if none is.

    Args:
      facts: of each process: name → value.
    """
    names = dict.fromkeys(name for each in facts.values() for name in each)
    parts = []
    for name in names:
        owners: dict[str, list[str]] = {}
        for process, each in facts.items():
            owners.setdefault(each.get(name, "nothing"), []).append(process)
        if len(owners) > 1:
            parts.append(f"{name} is " + ", ".join(f"{value} on {' and '.join(who)}" for value, who in owners.items()))
    return "; ".join(parts)


def _join(place: Place, hello: dict[str, Any], deadline: float, seconds: float) -> Circle:
    """The circle, as process 0 tells it."""
    answer = "nothing listened there"
    while time.monotonic() < deadline:
        try:
            link = socket.create_connection((place.host, place.port), timeout=max(0.1, deadline - time.monotonic()))
        except OSError as error:
            answer = error.strerror or str(error)
            time.sleep(0.25)
            continue
        connection = lines.Connection(link)
        connection.send(hello)
        # Process 0 waits as long itself before it answers that another is missing.
        reply = _reply(connection, deadline + 5.0)
        if reply is not None and not reply["problem"]:
            return Circle(place, reply["hosts"], {0: connection})
        connection.close()
        if reply is not None:
            raise ValueError(reply["problem"])
        answer = "what listens there is not process 0 of this program, or it ended"
        time.sleep(0.25)
    raise ValueError(
        f"{_ADDRESS}={place.address}: process {place.index} of {place.count} could not reach process 0 within {seconds:g} s "
        f"({answer}). Start the same command on every host, with {_INDEX}=0 on {place.host}, and see that each can connect there."
    )


def _reply(connection: lines.Connection, deadline: float) -> dict[str, Any] | None:
    """What process 0 answers; None from anyone else, also from this process: a free port may connect to itself."""
    try:
        reply = connection.first(deadline)
    except (lines.ClosedError, TimeoutError, ValueError):
        return None
    return reply if "problem" in reply and "hosts" in reply else None
