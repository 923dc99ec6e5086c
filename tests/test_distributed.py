"""Exchange between processes and preemption, tested in one process; test_processes starts two."""

from __future__ import annotations

import os
import signal

import pytest

from reval_jax import distributed


def test_the_payload_of_one_process_is_its_own():
    assert distributed.gather_bytes(b"abc") == [b"abc"]


def test_one_process_agrees_with_itself():
    distributed.check_agreement({"update.beta": "0.5"})


def test_processes_that_disagree_are_listed(monkeypatch):
    other = b'{"update.beta": "0.25", "run.seed": "0"}'
    monkeypatch.setattr(distributed, "gather_bytes", lambda payload: [payload, other, payload])
    message = r"the processes differ: update\.beta is 0\.5 on process 0 and process 2, 0\.25 on process 1\. Start"
    with pytest.raises(ValueError, match=message):
        distributed.check_agreement({"update.beta": "0.5", "run.seed": "0"})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_agreed_on_at_the_next_agree_and_its_handler_is_restored(number):
    before = signal.getsignal(number)
    with distributed.Preemption() as preemption:
        os.kill(os.getpid(), number)
        assert preemption.is_requested
        assert not preemption.is_agreed
        preemption.agree()
        assert preemption.is_agreed
    assert signal.getsignal(number) is before


def test_a_signal_to_another_process_stops_this_one_too(monkeypatch):
    preemption = distributed.Preemption()
    monkeypatch.setattr(distributed, "gather_bytes", lambda payload: [payload, b"1"])
    assert preemption.agree()
    assert preemption.is_agreed
    assert not preemption.is_requested
