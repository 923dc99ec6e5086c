"""A resume notices what changed beside the settings: it refuses what decides results, and says what decides their last bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import pytest
import yaml
from support import tiny_runs

from reval_jax import machine, plugins, provenance

REWARD = "from helper import FACTOR\ndef score(response, answer):\n    return FACTOR\n"


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The config file of a run of one round with a reward of its own, and its directory."""
    directory = tmp_path_factory.mktemp("started")
    file = tiny_runs.write_files(directory)
    (directory / "own_reward.py").write_text(REWARD)
    (directory / "helper.py").write_text("FACTOR = 0.25\n")
    tiny_runs.play(file, directory / "run", run__rounds=1, **own(directory))
    return file, directory


def own(directory):
    return {"verifier__function": "own_reward:score", "verifier__function_path": str(directory)}


def edit_json(name, **changes):
    def edit(directory):
        path = directory / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def edit_text(name, old, new):
    def edit(directory):
        path = directory / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return edit


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("model/config.json", edit_json("model/config.json", rms_norm_eps=0.5), r"model\.norm_eps: 1e-0\d -> 0\.5"),
        (
            "model/config.json",
            edit_json("model/config.json", max_position_embeddings=96),
            r"model\.max_positions: \d+ -> 96",
        ),
        (
            "model/generation_config.json",
            edit_json("model/generation_config.json", eos_token_id=[2, 7]),
            r"end tokens: 2 -> 2, 7",
        ),
        (
            "model/tokenizer_config.json",
            edit_json("model/tokenizer_config.json", note=1),
            r"tokenizer file tokenizer_config\.json: \w{16} -> \w{16}",
        ),
        (
            "own_reward.py",
            edit_text("own_reward.py", "return FACTOR", "return 1.0"),
            r"verifier\.function own_reward\.py: \w{16} -> ",
        ),
        ("helper.py", edit_text("helper.py", "0.25", "0.5"), r"verifier\.function helper\.py: \w{16} -> \w{16}"),
    ],
)
def test_a_changed_input_is_refused_and_named(started, file, edit, message):
    config, directory = started
    before, run = (directory / file).read_bytes(), tiny_runs.tree_hash(directory / "run")
    edit(directory)
    try:
        with pytest.raises(ValueError, match=rf"began with other inputs \({message}"):
            tiny_runs.play(config, directory / "run", run__rounds=2, **own(directory))
    finally:
        (directory / file).write_bytes(before)
    assert tiny_runs.tree_hash(directory / "run") == run


def test_another_machine_and_benchmark_are_said_and_recorded(started, capsys, monkeypatch):
    config, directory = started
    facts = machine.facts()
    monkeypatch.setattr(machine, "facts", lambda: facts | {"kind of CPU": "Z80", "variable XLA_FLAGS": "--xla_new"})
    questions = directory / "held_out.jsonl"
    questions.write_text(questions.read_text().replace("0+3", "1+2"))
    tiny_runs.play(config, directory / "run", run__rounds=2, **own(directory))
    (line,) = map(json.loads, (directory / "run" / "config_changes.jsonl").read_text().splitlines())
    assert line["round"] == 1
    changes = "\n".join(line["changes"])
    assert f"kind of CPU: {facts['kind of CPU']} -> Z80" in changes
    assert "-> --xla_new" in changes
    assert "benchmark held_out: " in changes
    about = yaml.safe_load((directory / "run" / "config.yaml").read_text())["about"]
    assert about["surroundings"]["kind of CPU"] == "Z80"


def test_a_run_of_an_earlier_version_resumes():
    now = provenance.Provenance({"end tokens": "2"}, {"platform": "cpu"})
    (said,) = provenance.compare({"packages": {}}, now, run_dir="run")
    assert "did not record" in said
    assert not provenance.may_change_bits([said])
    assert provenance.compare({}, now, run_dir="run") == []


def test_fields_that_a_later_version_adds_are_no_change_but_files_are():
    old = {"inputs": {"model.width": "8"}, "surroundings": {}}
    assert (
        provenance.compare(old, provenance.Provenance({"model.width": "8", "model.new": "1"}, {}), run_dir="run") == []
    )
    now = {"model.width": "8", "tokenizer file chat_template.jinja": "ab"}
    with pytest.raises(ValueError, match=r"tokenizer file chat_template\.jinja: nothing -> ab"):
        provenance.compare(old, provenance.Provenance(now, {}), run_dir="run")


def test_sources_follow_imports_inside_the_directory(tmp_path):
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / "__init__.py").write_text("")
    (tmp_path / "kit" / "deep.py").write_text("from . import sibling\nimport numpy\n")
    (tmp_path / "kit" / "sibling.py").write_text("import kit.deep\n")
    (tmp_path / "main.py").write_text("def f():\n    from kit.deep import x\n")
    (tmp_path / "unused.py").write_text("")
    found = plugins.sources("main:f", directory=str(tmp_path))
    assert list(found) == ["kit/__init__.py", "kit/deep.py", "kit/sibling.py", "main.py"]
    (tmp_path / "kit" / "sibling.py").write_text("y = 1\n")
    again = plugins.sources("main:f", directory=str(tmp_path))
    assert [name for name in found if found[name] != again[name]] == ["kit/sibling.py"]


def test_sources_of_an_installed_module_stay_in_its_package():
    assert "yaml/__init__.py" in plugins.sources("yaml:safe_load")
    assert all(name.startswith("yaml/") for name in plugins.sources("yaml:safe_load"))
    assert plugins.sources("no_such_module:f") == {}


def program(text, **variables):
    environment = os.environ | {"PYTHONPATH": str(tiny_runs.TESTS.parent), "JAX_PLATFORMS": "cpu"} | variables
    return subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, check=False)


def test_variables_that_would_change_draws_are_not_used():
    """JAX_THREEFRY_PARTITIONABLE=0 gave other responses."""
    text = (
        "from reval_jax import distributed; distributed.start(); import jax\n"
        "print(jax.config.jax_threefry_partitionable, jax.config.jax_random_seed_offset, jax.config.jax_default_prng_impl)"
    )
    result = program(text, JAX_THREEFRY_PARTITIONABLE="0", JAX_RANDOM_SEED_OFFSET="7", JAX_DEFAULT_PRNG_IMPL="rbg")
    assert result.stdout == "True 0 threefry2x32\n"
    assert "JAX_THREEFRY_PARTITIONABLE=0 is not used" in result.stderr


def test_the_pinned_values_are_those_of_the_installed_jax():
    values = {name: jax.config.values[name] for name in machine.PINNED if name in jax.config.values}
    text = f"import jax; print([str(getattr(v, 'value', v)) for v in map(jax.config.values.get, {list(values)})])"
    result = program(text)
    assert result.stdout.strip() == str([str(machine.PINNED[name]) for name in values])


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_ENABLE_X64": "1"}, "JAX_ENABLE_X64 is on, but every array of a run is in 32 bits or fewer. Unset it."),
        ({"JAX_DISABLE_JIT": "1"}, "JAX_DISABLE_JIT is on, but a run compiles its programs. Unset it."),
        ({"JAX_DEBUG_NANS": "1"}, "JAX_DEBUG_NANS is on, but a run skips"),
        ({"JAX_PLATFORMS": "cuda"}, "JAX_PLATFORMS=cuda: jax cannot start its devices"),
    ],
)
def test_variables_under_which_no_run_works_are_one_message(tmp_path, variables, message):
    text = "import sys; from reval_jax import cli; sys.exit(cli.main(sys.argv[1:]))"
    file = tiny_runs.write_files(tmp_path)
    arguments = ["train", "--config", str(file), "--run-dir", str(tmp_path / "run")]
    result = program(text.replace("sys.argv[1:]", repr(arguments)), **variables)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
