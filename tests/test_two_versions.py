"""The comparison of two checkouts sees what differs, and nothing else."""

from __future__ import annotations

import json
import shutil

import pytest
from support import tiny_runs

from benchmarks import two_versions
from reval_jax import config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two_versions")
    file = tiny_runs.write_files(directory)
    tiny_runs.play(file, directory / "run", run__rounds=2, eval__every=0)
    return directory / "run"


@pytest.mark.slow
def test_times_are_no_difference_and_every_other_change_is_named(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    lines = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    lines[1]["timing_s/round"] += 1
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert two_versions.differences(run, other) == []

    lines[1]["actor/loss"] += 1
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with (other / "rollouts" / "round_000002.jsonl").open("a") as file:
        file.write(" ")
    assert two_versions.differences(run, other) == ["actor/loss", "round_000002.jsonl"]


@pytest.mark.slow
def test_one_changed_bit_of_an_array_is_named(run, monkeypatch):
    arrays = two_versions.arrays_of(run)
    name = next(name for name in arrays if "params" in name and "gate" in name)
    dtype, shape, data = arrays[name]
    changed = arrays | {name: (dtype, shape, bytes([data[0] ^ 1]) + data[1:])}
    reads = iter([arrays, changed])
    monkeypatch.setattr(two_versions, "arrays_of", lambda _: next(reads))
    assert two_versions.differences(run, run) == [name]


@pytest.mark.slow
def test_a_checkout_beside_itself_is_the_same_bits(tmp_path, capsys):
    root = str(tiny_runs.TESTS.parent)
    result = tmp_path / "result.json"
    argv = [
        root,
        root,
        "--parts",
        "bits",
        "--variants",
        "penalty",
        "--no-demo",
        "--out",
        str(tmp_path),
        "--json",
        str(result),
    ]
    assert two_versions.main(argv) == 0
    assert json.loads(result.read_text()) == {"bits": {"penalty": []}}
    assert "the same bits" in capsys.readouterr().out


def test_a_setting_goes_by_the_name_that_a_checkout_knows():
    new, old = {"rollout.truncated"}, {"rollout.overlong"}
    overrides = {"rollout.truncated": "mask"}
    assert two_versions.named(overrides, new) == ["--rollout.truncated", "mask"]
    assert two_versions.named(overrides, old) == ["--rollout.overlong", "mask"]


def test_every_variant_names_settings_that_there_are():
    known = {f"{section}.{field}" for section, fields in config.to_tree(config.Config()).items() for field in fields}
    assert {name for overrides in two_versions.VARIANTS.values() for name in overrides} <= known


def test_a_wrong_variant_or_checkout_is_one_message(tmp_path, capsys):
    root = str(tiny_runs.TESTS.parent)
    assert two_versions.main([root, root, "--variants", "nonsense"]) == 2
    assert "no variant nonsense; there are reval" in capsys.readouterr().err
    assert two_versions.main([root, str(tmp_path)]) == 2
    assert f"no checkout in {tmp_path}" in capsys.readouterr().err
