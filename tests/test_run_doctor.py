"""`reval doctor --run-dir`: every kind of damage to a run directory is named, and nothing is written."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
import yaml
from support import tiny_runs

from reval_jax import cli, owner


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    tiny_runs.play(
        tiny_runs.write_files(directory), directory / "run", run__rounds=3, eval__every=0, checkpoint__every=1
    )
    return directory / "run"


@pytest.fixture
def run_dir(played, tmp_path):
    return Path(shutil.copytree(played, tmp_path / "run"))


def findings(run_dir, capsys, code):
    """Name -> (result, is it fine), of `reval doctor --run-dir`, which leaves the directory as it was."""
    before = tiny_runs.tree_hash(run_dir)
    assert cli.main(["doctor", "--run-dir", str(run_dir), "--json", "/dev/stdout"]) == code
    assert tiny_runs.tree_hash(run_dir) == before
    found = json.loads(capsys.readouterr().out)
    return {each["name"]: (each["result"], each["is_fine"]) for each in found}


def test_a_whole_run_is_whole(run_dir, capsys):
    assert findings(run_dir, capsys, 0) == {
        "config.yaml": ("whole", True),
        "checkpoint of round 1": ("whole", True),
        "checkpoint of round 2": ("whole", True),
        "checkpoint of round 3": ("whole", True),
        "metrics.jsonl": ("3 lines", True),
        "rollouts": ("3 files, whole", True),
        "journal": ("whole", True),
        "owner": ("no process uses it", True),
    }


def flip(path, at=-20):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def swap_rollouts(run_dir):
    first, second = (run_dir / "rollouts" / f"round_00000{round}.jsonl.gz" for round in (1, 2))
    first.rename(run_dir / "x")
    second.rename(first)
    (run_dir / "x").rename(second)


def unseal(run_dir):
    """Deletes the last line, the checksum."""
    file = run_dir / "config.yaml"
    file.write_bytes(file.read_bytes().partition(b"# sha256")[0])


def cut(path, count):
    path.write_bytes(path.read_bytes()[:-count])


DAMAGES = {
    "config.yaml": (
        lambda run_dir: (run_dir / "config.yaml").write_text(""),
        lambda run_dir: flip(run_dir / "config.yaml", 40),
        lambda run_dir: (run_dir / "config.yaml").unlink(),
        unseal,
    ),
    "checkpoint of round 2": (
        lambda run_dir: flip(next((run_dir / "checkpoints" / "2" / "arrays").rglob("d/*"))),
        lambda run_dir: (run_dir / "checkpoints" / "2" / "checksums.json").unlink(),
    ),
    "checkpoints": (lambda run_dir: shutil.rmtree(run_dir / "checkpoints"),),
    "metrics.jsonl": (
        lambda run_dir: flip(run_dir / "metrics.jsonl", 40),
        lambda run_dir: (run_dir / "metrics.jsonl").unlink(),
        lambda run_dir: flip(run_dir / "metrics_checksums.jsonl", 40),
        lambda run_dir: cut(run_dir / "metrics.jsonl", 1),
    ),
    "rollouts": (
        lambda run_dir: flip(run_dir / "rollouts" / "round_000002.jsonl.gz"),
        lambda run_dir: (run_dir / "rollouts" / "round_000001.jsonl.gz").unlink(),
        lambda run_dir: (run_dir / "rollouts" / "round_000003.jsonl.gz").unlink(),
        swap_rollouts,
    ),
    "journal": (lambda run_dir: flip(tiny_runs.journals(run_dir)[0], 60),),
}


@pytest.mark.parametrize(("name", "index"), [(name, index) for name in DAMAGES for index in range(len(DAMAGES[name]))])
def test_each_damage_is_named_and_nothing_else(run_dir, capsys, name, index):
    DAMAGES[name][index](run_dir)
    found = findings(run_dir, capsys, 1)
    assert [each for each, (_, is_fine) in found.items() if not is_fine] == [name]


def test_an_earlier_versions_run_is_not_verified_but_no_damage(run_dir, capsys):
    for name in (
        "metrics_checksums.jsonl",
        "config_copy.yaml",
        "saved.json",
        *(f"checkpoints/{n}/checksums.json" for n in (1, 2, 3)),
    ):
        (run_dir / name).unlink()
    for file in (run_dir / "rollouts").iterdir():
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    found = findings(run_dir, capsys, 0)
    assert "not verified" in found["metrics.jsonl"][0]
    assert "has no checksums" in found["checkpoint of round 3"][0]


def test_a_run_killed_while_it_wrote_a_line_is_sound(run_dir, capsys):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"training/round": 4, "sco')
    found = findings(run_dir, capsys, 0)
    assert found["metrics.jsonl"][0] == "3 lines, and an incomplete one at the end, which the next start drops"
    assert found["rollouts"] == ("3 files, whole", True)


def test_a_run_that_kept_few_rollouts_once_is_sound(run_dir, capsys):
    (run_dir / "rollouts" / "round_000001.jsonl.gz").unlink()
    change = {"round": 2, "changes": ["run.max_rollouts_gib: 1.0 -> 0.0"]}
    (run_dir / "config_changes.jsonl").write_text(json.dumps(change) + "\n")
    assert findings(run_dir, capsys, 0)["rollouts"] == ("2 files, whole", True)


@pytest.mark.parametrize("command", ["eval", "sample", "inspect", "export", "data pool"])
def test_commands_read_the_copy_of_a_damaged_config_and_say_so(run_dir, capsys, tmp_path, command):
    file = run_dir / "config.yaml"
    content = file.read_text()
    path = yaml.safe_load(content)["model"]["path"]
    file.write_text(content.replace(path, "elsewhere"))
    words = {
        "eval": ["--eval.samples_per_prompt", "1", "--eval.max_prompts", "1"],
        "sample": ["--prompt", "1+1=", "--rollout.max_response_tokens", "2"],
        "inspect": ["--output", str(tmp_path / "tokens.jsonl")],
        "export": ["--output", str(tmp_path / "exported")],
    }.get(command, [])
    code = cli.main([*command.split(), "--run-dir", str(run_dir), *words])
    error = capsys.readouterr().err
    assert "are read from the copy of config.yaml, since that is damaged" in error
    assert "elsewhere" not in error
    assert code == 0 or "no right response" in error


def test_report_refuses_and_eval_names_damaged_metrics(run_dir, capsys):
    flip(run_dir / "metrics.jsonl", 40)
    assert cli.main(["report", "--run-dir", str(run_dir)]) == 2
    assert "does not have its checksum" in capsys.readouterr().err
    words = ("eval", "--run-dir", str(run_dir), "--eval.samples_per_prompt", "1", "--eval.max_prompts", "1")
    assert cli.main(list(words)) == 0
    assert "does not have its checksum" in "".join(capsys.readouterr())


def test_a_living_owner_is_named(run_dir, capsys):
    held = owner.acquire(run_dir, log=print)
    result, is_fine = findings(run_dir, capsys, 0)["owner"]
    held.release()
    assert is_fine
    assert "which runs" in result


def test_a_directory_that_is_no_run_is_refused(tmp_path, capsys):
    assert cli.main(["doctor", "--run-dir", str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err
