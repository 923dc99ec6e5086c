"""Experiment trackers, by the real libraries, offline: what they hold is read back from their own files, or by their own API."""

from __future__ import annotations

import collections
import json
import math
import os
import shutil
import socket
import struct
import subprocess
import sys
import time

import pytest
from support import tiny_runs

from reval_jax import cli, sinks, tracker_process, trackers
from reval_jax import config as config_lib

for package in ("wandb", "trackio", "mlflow"):
    try:
        trackers.check_installed(package)
    except ValueError as error:
        pytest.skip(str(error), allow_module_level=True)

RESTED = ("_runtime", "_timestamp", "_step")  # what wandb adds to a round
Tracked = collections.namedtuple("Tracked", "name rounds config outcome")


def printed(program, directory):
    """The JSON that a Python program prints last; a process of its own, because the libraries read variables at import."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=directory)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An empty database of MLflow, which takes its library seconds to make."""
    directory = tmp_path_factory.mktemp("mlflow")
    printed(f"import mlflow; mlflow.MlflowClient('sqlite:///{directory}/mlflow.db'); print(0)", directory)
    return directory / "mlflow.db"


@pytest.fixture
def offline(tmp_path, monkeypatch, database):
    """The libraries' stores in the test's directory, and no network."""
    shutil.copy(database, tmp_path)
    variables = {
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "NO_PROXY": "*",
    }
    for kind in ("CACHE", "CONFIG", "DATA"):
        variables[f"WANDB_{kind}_DIR"] = str(tmp_path / "wandb_home")
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def wandb_records(path):
    """The records of a .wandb file: LevelDB's log format behind 7 bytes, of protocol buffers that wandb defines."""
    from wandb.proto import wandb_internal_pb2

    data, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:  # the rest of a block
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def read_wandb(run_dir):
    """Every offline run of a run directory, as {id: …}; `wandb sync` joins those of one id."""
    found = {}
    for file in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb")):
        for record in wandb_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                name, config = (
                    record.run.display_name,
                    {each.key: json.loads(each.value_json) for each in record.run.config.update},
                )
                assert record.run.project == "reval_jax"
                tracked = found.setdefault(record.run.run_id, Tracked(name, [], config, []))
                tracked.config.update(config)
            elif kind == "history":
                values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                kept = {name: value for name, value in values.items() if name not in RESTED}
                tracked.rounds.append((record.history.step.num, kept))
            elif kind in ("exit", "preempting"):
                tracked.outcome.append(record.exit.exit_code if kind == "exit" else kind)
    return list(found.values())


READ_MLFLOW = """
import json, mlflow
client = mlflow.MlflowClient()
experiment = client.get_experiment_by_name("reval_jax")
print(json.dumps([
    [run.info.run_name, run.info.status, run.data.params, run.data.tags,
     [[m.step, m.key, m.value] for name in run.data.metrics for m in client.get_metric_history(run.info.run_id, name)]]
    for run in client.search_runs([experiment.experiment_id])
]))
"""


def read_mlflow(tmp_path):
    found = []
    for name, status, params, tags, metrics in printed(READ_MLFLOW, tmp_path):
        rounds = collections.defaultdict(dict)
        for step, key, value in metrics:
            assert key not in rounds[step], "doubled"
            rounds[step][key] = value
        config = {**params, **{tag: value for tag, value in tags.items() if tag.startswith("resumed.")}}
        found.append(Tracked(name, sorted(rounds.items()), config, status))
    return found


READ_TRACKIO = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage as storage
print(json.dumps([
    [run.name, storage.get_logs("reval_jax", run.name), storage.get_run_config("reval_jax", run.name)]
    for run in trackio.Api().runs("reval_jax")
]))
"""


def read_trackio(tmp_path):
    found = []
    for name, logs, config in printed(READ_TRACKIO, tmp_path):
        rounds = [(log["step"], {key: log[key] for key in log if key not in ("step", "timestamp")}) for log in logs]
        found.append(Tracked(name, rounds, config, None))
    return found


@pytest.mark.slow
def test_each_library_has_every_round_of_a_killed_and_resumed_run_once(offline):
    file, run_dir = tiny_runs.write_files(offline), offline / "a run"
    words = ("--run.sinks", "wandb", "trackio", "mlflow")
    code, text = tiny_runs.finish(tiny_runs.start(file, run_dir, *words, end="KILL:update:4"))
    assert code == -9, text
    first = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["training/round"] for line in first] == [0, 1, 2, 3]
    code, text = tiny_runs.finish(tiny_runs.start(file, run_dir, *words, "--run.rounds", "5"))
    assert code == 0, text
    assert "warning" not in text
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    lines[:4] = first  # the last of them were played again; the trackers keep what they got first
    expected = [(line["training/round"], line) for line in lines]
    assert [round for round, _ in expected] == [0, 1, 2, 3, 4, 5]
    last = {"run.sinks": ["wandb", "trackio", "mlflow"], "run.rounds": 5}
    settings = config_lib.to_tree(tiny_runs.with_overrides(file, last))

    (in_wandb,) = read_wandb(run_dir)
    assert_rounds(in_wandb.rounds, expected)
    assert (in_wandb.name, in_wandb.outcome) == ("a run", [1, 0])  # killed, then finished
    assert {name: in_wandb.config[name] for name in settings} == settings

    (in_trackio,) = read_trackio(offline)
    assert_rounds(in_trackio.rounds, expected)
    assert in_trackio.name.startswith("a run-")
    assert {name: in_trackio.config[name] for name in settings} == settings

    (in_mlflow,) = read_mlflow(offline)
    renamed = [(step, {key.replace("@", "_at_"): value for key, value in line.items()}) for step, line in expected]
    assert_rounds(in_mlflow.rounds, renamed)
    assert (in_mlflow.name, in_mlflow.outcome) == ("a run", "FINISHED")
    flat = {f"{section}.{name}" for section, fields in settings.items() for name in fields}
    assert in_mlflow.config.keys() == flat | {"resumed.run.rounds"}
    assert (in_mlflow.config["run.rounds"], in_mlflow.config["update.beta"]) == ("4", "0.5")
    assert not (offline / "mlruns").exists()


def assert_rounds(found, expected):
    assert [round for round, _ in found] == [round for round, _ in expected]
    for (_, values), (_, line) in zip(found, expected, strict=True):
        assert values.keys() == line.keys()
        for name, value in line.items():
            assert values[name] == pytest.approx(math.nan if value is None else value, nan_ok=True, rel=1e-12), name


@pytest.mark.slow
def test_a_tracker_is_told_how_the_run_ended_and_takes_what_is_not_finite(offline):
    for outcome in ("finished", "preempted", "failed"):
        for name in ("wandb", "mlflow"):
            sink = trackers.SINKS[name](config_lib.Config(), made(offline / outcome))
            sink(1, {"training/round": 1, "actor/loss": math.nan, "text": "left out"})
            sink.close(outcome)
    in_wandb = {
        each.name: each for outcome in ("finished", "preempted", "failed") for each in read_wandb(offline / outcome)
    }
    assert {name: each.outcome for name, each in in_wandb.items()} == {
        "finished": [0],
        "preempted": ["preempting", 1],
        "failed": [1],
    }
    in_mlflow = {each.name: each for each in read_mlflow(offline)}
    assert {name: each.outcome for name, each in in_mlflow.items()} == {
        "finished": "FINISHED",
        "preempted": "KILLED",
        "failed": "FAILED",
    }
    for each in (*in_wandb.values(), *in_mlflow.values()):
        ((round, values),) = each.rounds
        assert (round, values.keys()) == (1, {"training/round", "actor/loss"})
        assert math.isnan(values["actor/loss"])


def made(path):
    path.mkdir(exist_ok=True)
    return path


@pytest.mark.slow
def test_a_resumed_run_is_running_again_and_names_its_changed_settings_in_mlflow(offline):
    run_dir = made(offline / "run")
    for outcome, rounds in (("failed", 10), ("finished", 20)):
        sink = trackers.SINKS["mlflow"](config_lib.Config(run=config_lib.Run(rounds=rounds)), run_dir)
        sink(rounds, {"training/round": rounds})
        sink.close(outcome)
    (run,) = read_mlflow(offline)
    assert (run.outcome, run.config["run.rounds"], run.config["resumed.run.rounds"]) == ("FINISHED", "10", "20")
    assert [round for round, _ in run.rounds] == [10, 20]


@pytest.mark.slow
def test_a_tracker_that_cannot_work_is_named_once_and_the_run_goes_on(offline, monkeypatch):
    (offline / "file").touch()
    monkeypatch.setenv("TRACKIO_DIR", str(offline / "file" / "below"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no-such-scheme://there")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(offline))  # no credentials
    for name, reason in (
        ("wandb", "UsageError: No API key configured"),
        ("trackio", "below"),
        ("mlflow", "no-such-scheme"),
    ):
        messages = []
        opened = sinks.Sinks(sinks.choose([name]), config_lib.Config(), offline, log=messages.append)
        for round in (1, 2):
            opened.write({"training/round": round})
        opened.close()
        (message,) = messages
        assert message.startswith(f"warning: run.sinks={name} failed: TrackerError: ")
        assert reason in message, message


@pytest.fixture
def silent_server(monkeypatch):
    """A server that takes connections and never answers, as MLflow's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield server


def test_a_tracker_that_hangs_delays_nothing_and_is_killed_at_the_end(offline, silent_server, monkeypatch):
    monkeypatch.setattr(sinks, "CLOSE_SECONDS", 4.0)
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *words, **options: started.append(popen(*words, **options)) or started[-1]
    )
    messages = []
    opened = sinks.Sinks(sinks.choose(["mlflow"]), config_lib.Config(), offline, log=messages.append)
    start = time.monotonic()
    for round in range(500):
        opened.write({"training/round": round})
    assert time.monotonic() - start < 1.0
    opened.close("finished")
    assert 4.0 < time.monotonic() - start < 6.0
    assert messages == [
        "warning: run.sinks=mlflow did not finish within 4 s of the run's end. It gets no more metrics; "
        "metrics.jsonl has all of them."
    ]
    assert started[0].wait(5) == -9


def test_the_process_of_a_tracker_that_hangs_ends_soon_after_its_parent(offline, silent_server):
    program = (
        "from reval_jax import tracker_process; tracker_process.CLOSE_SECONDS = 0.5; tracker_process.main('mlflow', 1)"
    )
    start = {"project": "p", "name": "n", "directory": str(offline), "config": {}}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, start_new_session=True, text=True
    )
    process.stdin.write(json.dumps(start) + "\n")
    process.stdin.flush()
    assert process.wait(60) == -9
    process.stdin.close()


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(trackers.PACKAGES, "wandb", ("no-such-package",))
    file = tiny_runs.write_files(tmp_path)
    assert cli.main(["train", "--config", str(file), "--run-dir", str(tmp_path / "run"), "--run.sinks", "wandb"]) == 2
    (message,) = capsys.readouterr().err.strip().splitlines()
    assert "run.sinks=wandb needs the package no-such-package, which is not installed" in message
    assert "pip install 'reval-jax[wandb]'" in message
    assert not (tmp_path / "run").exists()


def test_mlflow_gets_only_characters_that_it_allows():
    assert tracker_process.mlflow_name("val-core/my set,1/acc/mean@4") == "val-core/my set_1/acc/mean_at_4"


def test_the_record_of_a_resume_survives_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "trackers" / "wandb.jsonl"
    record = tracker_process.Record(path)
    record.note(1)
    record._file.write(b'{"rou')
    record._file.close()
    again = tracker_process.Record(path)
    assert (again.id, again.last_round) == (record.id, 1)
    again.note(2)
    again._file.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"id": record.id},
        {"round": 1},
        {"round": 2},
    ]
