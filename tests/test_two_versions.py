"""benchmarks/two_versions.py: finds every difference of bits, ignores times, and uses the setting names of each checkout."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from benchmarks import two_versions
from reval_jax import config as config_lib

ROOT = Path(__file__).resolve().parent.parent


def fields_of(config: config_lib.Config) -> set[str]:
    return {f"{section}.{field}" for section, fields in config_lib.to_tree(config).items() for field in fields}


def test_every_setting_of_the_tiny_runs_is_known_by_its_current_name():
    known = fields_of(config_lib.Config())
    for settings in two_versions.TINY.values():
        assert settings.keys() <= known


def test_a_renamed_setting_is_passed_by_the_name_that_a_checkout_knows():
    settings = {"rollout.truncated": "mask", "update.beta": 0.5}
    options = ["--update.beta", "0.5"]
    assert two_versions.as_options(settings, {"rollout.overlong", "update.beta"}) == [
        *("--rollout.overlong", "mask"),
        *options,
    ]
    known = {"rollout.truncated", "rollout.overlong", "update.beta"}
    assert two_versions.as_options(settings, known) == ["--rollout.truncated", "mask", *options]
    with pytest.raises(ValueError, match=r"no setting rollout\.truncated"):
        two_versions.as_options(settings, {"update.beta"})


def test_a_checkout_names_its_settings():
    assert two_versions.known_settings(ROOT) == fields_of(config_lib.Config())


@pytest.mark.parametrize("words", [[".", "tests"], [".", ".", "--runs", "sac"], [".", ".", "--rounds", "0"]])
def test_wrong_arguments_exit_with_2_and_one_message(words, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert two_versions.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("two_versions: ")
    assert captured.err.count("\n") == 1


def test_the_checkouts_take_turns_and_swap_places_each_round():
    turns = []

    def bench(checkout, name):
        turns.append((checkout.name, name))
        seconds = {"a": 2.0, "b": 3.0}[checkout.name] + len(turns) / 1000
        return {"cases": [{"seconds": {"fixed": seconds, "decode_step": seconds}}]}

    speed = two_versions.compare_speed(Path("a"), Path("b"), 3, log=lambda _: None, bench=bench)
    assert [checkout for checkout, name in turns if name == "update"] == ["a", "b", "b", "a", "a", "b"]
    assert speed["update"]["medians"] == {"old": pytest.approx(2.007), "new": pytest.approx(3.005)}
    assert speed["update"]["ratio"] == pytest.approx(3.005 / 2.007)
    assert len(speed["decode step"]["seconds"]["new"]) == 3
    assert two_versions.speed_table(speed).row_count == 2


@pytest.mark.slow
def test_this_version_equals_itself_and_every_kind_of_difference_is_named(tmp_path, capsys):
    words = [str(ROOT), str(ROOT), "--parts", "bits", "--runs", "reval", "--directory", str(tmp_path)]
    assert two_versions.main([*words, "--json", str(tmp_path / "results.json")]) == 0
    (bits,) = json.loads((tmp_path / "results.json").read_text())["bits"]
    assert bits == {"run": "reval", "metrics": [], "rollouts": [], "arrays": [], "failure": "", "is_equal": True}
    assert "equal" in capsys.readouterr().out

    assert two_versions.main(words) == 2
    assert "exists" in capsys.readouterr().err

    old, new = tmp_path / "old" / "reval", tmp_path / "new" / "reval"
    lines = (new / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    changed = last | {"actor/loss": 7.0, "timing_s/round": 7.0}
    (new / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(changed)]) + "\n")
    rollouts = sorted((new / "rollouts").iterdir())
    rollouts[0].write_bytes(gzip.compress(gzip.decompress(rollouts[0].read_bytes()) + b"\n"))
    shutil.rmtree(new / "checkpoints" / "4")
    result = two_versions.compare_runs("reval", old, new)
    assert result.metrics == ["actor/loss"]
    assert result.rollouts == [rollouts[0].stem]
    assert any("params" in name for name in result.arrays)
    assert not result.is_equal
    assert "1 differ: actor/loss" in str(list(two_versions.bits_table([result]).columns[1].cells))


@pytest.mark.slow
def test_a_run_that_fails_is_reported_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setitem(two_versions.TINY, "reval", {"update.beta": -1})
    (bits,) = two_versions.compare_bits(ROOT, ROOT, tmp_path, ("reval",), log=lambda _: None)
    assert not bits.is_equal
    assert "old: " in bits.failure
    assert "update.beta=-1" in bits.failure
