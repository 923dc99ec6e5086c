"""Processes meet before jax starts, and none outlives another that is lost: meetings in threads, real processes over loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from support import tiny_runs

from reval_jax import peers
from reval_jax.peers import lines

FACTS = {"jax": "1"}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def variables(address=None, count=None, index=None):
    given = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": count, "JAX_PROCESS_ID": index}
    return {name: value for name, value in given.items() if value is not None}


def test_without_variables_a_process_is_alone():
    assert peers.from_environment({"PATH": "/bin"}) is None


@pytest.mark.parametrize(
    ("address", "host"), [("10.0.0.1:1234", "10.0.0.1"), ("node-0:1234", "node-0"), ("[::1]:1234", "::1")]
)
def test_variables_name_the_place_of_a_process(address, host):
    place = peers.from_environment(variables(address, "4", "3"))
    assert (place.host, place.port, place.count, place.index, place.address) == (host, 1234, 4, 3, address)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (variables(count="2"), "JAX_COORDINATOR_ADDRESS is not set, JAX_NUM_PROCESSES=2"),
        (variables(index="0"), "JAX_COORDINATOR_ADDRESS is not set"),
        (variables(count="2", index="1"), "JAX_COORDINATOR_ADDRESS is not set"),
        (variables("a:1", count="2"), "JAX_PROCESS_ID is not set"),
        (variables("a:1", index="2"), "JAX_NUM_PROCESSES is not set"),
        (variables("", "2", "0"), "JAX_COORDINATOR_ADDRESS is not set"),
        (variables("a:1", "two", "0"), "JAX_NUM_PROCESSES is a number from 1 up"),
        (variables("a:1", "2", "-1"), "JAX_PROCESS_ID one from 0"),
        (variables("a:1", "2", "2"), "JAX_PROCESS_ID one from 0"),
        (variables("a:1", "0", "0"), "JAX_NUM_PROCESSES is a number from 1 up"),
        (variables("a", "2", "0"), "JAX_COORDINATOR_ADDRESS=a has no port. Write HOST:PORT"),
        (variables("a:", "2", "0"), "has no port"),
        (variables(":80", "2", "0"), "has no port"),
        (variables("::1", "2", "0"), "has no port"),
        (variables("a:0", "2", "0"), "from 1 to 65535"),
        (variables("a:65536", "2", "0"), "from 1 to 65535"),
    ],
)
def test_variables_that_are_half_set_or_wrong_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        peers.from_environment(given)


def meet(indices, *, count=2, seconds=2.0, facts=None, counts=None, port=None):
    """The circles, or the messages, of processes with these indices that meet in threads."""
    port, results = port or free_port(), [None] * len(indices)

    def run(position, index):
        place = peers.Place("127.0.0.1", port, (counts or {}).get(position, count), index)
        try:
            met = peers.meet(
                place, (facts or {}).get(position, FACTS), bind_address=f"127.0.0.1:{port}", seconds=seconds
            )
            results[position] = (met.hosts, sorted(met.connections))
            for connection in met.connections.values():
                connection.close()
        except ValueError as error:
            results[position] = str(error)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(indices)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_processes_meet_and_the_port_is_free_again():
    host, port = socket.gethostname(), free_port()
    assert meet([2, 0, 1], count=3, port=port) == [([host] * 3, [0]), ([host] * 3, [1, 2]), ([host] * 3, [0])]
    socket.create_server(("127.0.0.1", port)).close()


def connected():
    """The two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        end = socket.create_connection(server.getsockname())
        return end, server.accept()[0]


def test_messages_that_come_together_are_all_received():
    one, other = map(lines.Connection, connected())
    one.link.sendall(b'{"a": 1}\n{"a": 2}\n{"a": 3}\n')
    assert other.first(time.monotonic() + 5) == {"a": 1}
    assert other.receive() == [{"a": 2}, {"a": 3}]
    one.send({"a": 4})
    assert other.receive() == [{"a": 4}]
    one.close()
    other.close()


def test_a_foreign_caller_does_not_disturb_a_meeting():
    port = free_port()

    def call():
        for _ in range(40):
            try:
                with socket.create_connection(("127.0.0.1", port)) as link:
                    link.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    return
            except OSError:
                time.sleep(0.05)

    caller = threading.Thread(target=call)
    caller.start()
    results = meet([0, 1], port=port, seconds=10.0)
    caller.join()
    assert results == [([socket.gethostname()] * 2, [1]), ([socket.gethostname()] * 2, [0])]


def test_two_processes_with_one_index_are_named_on_all():
    results = meet([0, 1, 1], count=3, seconds=20.0)
    assert len(set(results)) == 1
    assert "two processes have JAX_PROCESS_ID=1" in results[0]


def test_two_counts_of_processes_are_named_on_all():
    first, second = meet([0, 1], counts={1: 3})
    assert first == second
    assert "has JAX_NUM_PROCESSES=2, but one on" in first


def test_a_process_that_never_comes_is_named_on_all():
    first, second = meet([0, 2], count=3, seconds=1.0)
    assert first == second
    assert "of 3 processes (JAX_NUM_PROCESSES) 1 did not come" in first


def test_a_process_0_that_never_comes_is_one_message():
    (message,) = meet([1], seconds=1.0)
    assert "process 1 of 2 could not reach process 0 within 1 s (Connection refused)" in message


def test_versions_that_differ_are_named_on_all():
    first, second = meet([0, 1], facts={1: {"jax": "2"}})
    assert first == second
    assert "jax is 1 on process 0" in first
    assert "2 on process 1" in first


def test_a_port_in_use_is_one_message():
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        (message,) = meet([0], port=port)
    assert f"port {port} of this machine" in message
    assert "is in use" in message


def joined(count, exchanges=10_000, **environment):
    """Processes that exchange bytes through jax, each past its first exchanges."""
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, str(tiny_runs.SUPPORT / "joined.py"), str(exchanges)],
            env=os.environ
            | {"PYTHONPATH": str(tiny_runs.TESTS.parent), "JAX_NUM_CPU_DEVICES": "1"}
            | variables(f"127.0.0.1:{port}", str(count), str(index))
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    for process in started:
        for _ in range(4):
            process.stdout.readline()
    return started


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_whose_peer_is_killed_ends_at_once_with_one_message(victim):
    """jax and gloo say 126 lines in C++, up to 66 s later."""
    started = joined(3)
    os.kill(started[victim].pid, signal.SIGKILL)
    killed, others = time.monotonic(), [process for process in started if process is not started[victim]]
    for process in others:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 1
        assert [line.partition(" (host")[0] for line in error.splitlines()] == [f"reval: process {victim} of 3"]
        assert "is gone: it was killed, or ended without a word. The last saved round is 3." in error
    assert time.monotonic() - killed < 20
    started[victim].communicate()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_whose_peer_is_stopped_ends_within_the_heartbeat(victim):
    started = joined(2)
    os.kill(started[victim].pid, signal.SIGSTOP)
    stopped = time.monotonic()
    _, error = started[1 - victim].communicate(timeout=90)
    assert started[1 - victim].returncode == 1
    assert time.monotonic() - stopped < peers.watching.LOST_SECONDS + 5
    assert error.startswith(f"reval: process {victim} of 2 (host ")
    assert "no sign of life for 25 s" in error
    assert len(error.splitlines()) == 1
    os.kill(started[victim].pid, signal.SIGCONT)
    _, error = started[victim].communicate(timeout=60)
    assert started[victim].returncode == 1
    assert error.startswith(f"reval: process {1 - victim} of 2 (host ")


def test_processes_that_end_say_nothing():
    for process in joined(2, exchanges=5):
        _, error = process.communicate(timeout=60)
        assert (process.returncode, error) == (0, "")
