"""Metric sinks: a user-defined sink gets every line, and no sink can fail, block or change a run."""

from __future__ import annotations

import contextlib
import sys
import threading
import time

import pytest
from support import tiny_runs

from reval_jax import config as config_lib
from reval_jax import metrics, signals, sinks

LINE = {"training/round": 3, "critic/score/mean": 0.5}
TOY_SINK = """
import json

def open_sink(config, run_dir):
    path = run_dir / "toy.jsonl"
    def write(round, values):
        with path.open("a") as file:
            file.write(json.dumps([round, config.run.seed, values]) + "\\n")
    return write
"""


def open_sinks(tmp_path, messages=None, **opens):
    log = (messages if messages is not None else []).append
    return sinks.Sinks(opens, config_lib.Config(), tmp_path, log=log)


@pytest.fixture
def toy_module(tmp_path, monkeypatch):
    """A sink in a file of the working directory, which no other test can import."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "toy_metric_sink.py").write_text(TOY_SINK)
    yield "toy_metric_sink:open_sink"
    sys.modules.pop("toy_metric_sink", None)


def test_a_sink_gets_every_line_in_order(tmp_path):
    received = []
    opened = open_sinks(tmp_path, own=lambda config, run_dir: lambda round, values: received.append((round, values)))
    lines = [{**LINE, "training/round": round} for round in range(5)]
    for line in lines:
        opened.write(line)
    opened.close()
    assert received == [(line["training/round"], line) for line in lines]


def test_a_sink_that_raises_is_reported_once_and_the_others_continue(tmp_path):
    messages, received = [], []

    def fail(round, values):
        raise ConnectionError("no network")

    opened = open_sinks(
        tmp_path,
        messages,
        bad=lambda config, run_dir: fail,
        good=lambda config, run_dir: lambda round, values: received.append(round),
    )
    for _ in range(3):
        opened.write(LINE)
    opened.close()
    assert received == [3, 3, 3]
    assert len(messages) == 1
    assert "run.sinks=bad failed: ConnectionError: no network" in messages[0]


def test_a_sink_that_cannot_open_is_named_and_dropped(tmp_path):
    messages = []
    opened = open_sinks(tmp_path, messages, bad=lambda config, run_dir: {}["missing"])
    opened.close()
    assert len(messages) == 1
    assert "run.sinks=bad failed: KeyError" in messages[0]


def test_a_sink_that_hangs_delays_neither_a_line_nor_the_end_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(sinks, "MAX_WAITING", 2)
    messages, forever = [], threading.Event()
    opened = open_sinks(tmp_path, messages, slow=lambda config, run_dir: lambda round, values: forever.wait())
    for _ in range(5):
        opened.write(LINE)
    opened.close()
    assert len(messages) == 1
    assert "run.sinks=slow is 2 rounds behind" in messages[0]
    other = open_sinks(tmp_path, messages, slow=lambda config, run_dir: lambda round, values: forever.wait())
    other.write(LINE)
    other.close()
    assert "run.sinks=slow did not finish within 0.05 s" in messages[1]
    forever.set()


class Closing:
    """A sink that is told the end."""

    def __init__(self, received):
        self.received = received

    def __call__(self, round, values):
        self.received.append(round)

    def close(self, outcome):
        self.received.append(outcome)


def test_a_sink_with_a_method_close_is_told_how_the_run_ended(tmp_path, monkeypatch):
    file, received = tiny_runs.write_files(tmp_path), []
    monkeypatch.setitem(sinks.SINKS, "own", lambda config, run_dir: Closing(received))

    def outcome(run_dir, **settings):
        received.clear()
        with contextlib.suppress(ArithmeticError, KeyboardInterrupt):
            tiny_runs.play(file, tmp_path / run_dir, run__sinks=["own"], run__rounds=1, eval__every=0, **settings)
        return received

    with tiny_runs.stopped_when(lambda count, first: True):
        assert outcome("run") == ["preempted"]
    assert outcome("run") == [1, "finished"]
    for error, expected in ((ArithmeticError, "failed"), (KeyboardInterrupt, "preempted")):

        def fail(*arguments, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(tiny_runs.train, "learn", fail)
            assert outcome(error.__name__) == [expected]


def test_a_signal_that_ends_the_process_soon_shortens_the_wait_for_sinks(tmp_path, monkeypatch):
    monkeypatch.setattr(signals.watch, "_deadline", time.monotonic() + 1.2)
    messages, forever = [], threading.Event()
    opened = open_sinks(tmp_path, messages, slow=lambda config, run_dir: lambda round, values: forever.wait())
    opened.write(LINE)
    start = time.monotonic()
    opened.close("preempted")
    assert time.monotonic() - start < 1.0
    assert len(messages) == 1
    forever.set()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "tensorbord",
            "no sink has the name 'tensorbord'. Use tensorboard, wandb, trackio, mlflow, or MODULE:FUNCTION",
        ),
        ("no_such_module:write", "run.sinks=no_such_module:write cannot be loaded"),
    ],
)
def test_a_sink_that_does_not_exist_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        sinks.choose([name])


@pytest.mark.parametrize(
    ("text", "reason"), [("import sys; sys.exit(3)", "SystemExit: 3"), ("f = 3", "TypeError: f is of type int")]
)
def test_a_module_that_exits_or_has_no_function_is_refused(text, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"odd_sink_{len(text)}"
    (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(ValueError, match=f"run.sinks={name}:f cannot be loaded: {reason}"):
        sinks.choose([f"{name}:f"])


def test_the_example_writes_a_table(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tiny_runs.TESTS.parent / "docs" / "examples")
    opened = open_sinks(tmp_path, **sinks.choose(["own_sink:table"]))
    for round in (0, 1):
        opened.write({"training/round": round, "timing_s/round": 2.5, **({"critic/score/mean": 0.5} if round else {})})
    opened.close()
    header, *rows = (tmp_path / "table.csv").read_text().splitlines()
    assert header == "round,critic/score/mean,actor/loss,response_length/mean,timing_s/round"
    assert rows == ["0,,,,2.5", "1,0.5,,,2.5"]


def test_a_user_defined_sink_needs_a_file_and_a_name(tmp_path, toy_module, monkeypatch):
    """A run uses MODULE:FUNCTION without further changes, and a built-in sink after adding an entry to SINKS."""
    monkeypatch.setitem(sinks.SINKS, "toy", sinks.choose([toy_module])[toy_module])
    file = tiny_runs.write_files(tmp_path)
    for name in (toy_module, "toy"):
        run_dir = tmp_path / name.partition(":")[0]
        tiny_runs.play(file, run_dir, run__sinks=[name], run__rounds=1)
        expected = [[line["training/round"], 0, line] for line in metrics.read(run_dir / "metrics.jsonl")]
        assert metrics.read(run_dir / "toy.jsonl") == expected
