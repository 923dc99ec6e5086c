"""docs/ is correct: its code runs, the names in it exist, and docs/metrics.md lists exactly the metrics of a run."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import transformers
import yaml
from support import hf_checkpoints, pages, tiny_programs, tiny_runs
from test_dynamic_sampling import graded_by_chance

from reval_jax import algorithms, plugins, pool, sampler, types, verifier, weights
from reval_jax import config as config_lib
from reval_jax.weights import families

GUIDES = [page for page in pages.PAGES if page == "tutorial.md" or page.startswith("howto/")]
PYTHON = [page for page in pages.PAGES if any(block.language == "python" for block in pages.blocks(page))]


# --- What the pages name ---


@pytest.mark.parametrize("page", pages.PAGES)
def test_every_link_leads_to_a_file(page):
    wrong = [target for target in pages.links(page) if not (pages.DOCS / page).parent.joinpath(target).exists()]
    assert not wrong


@pytest.mark.parametrize("page", pages.PAGES)
def test_every_path_exists(page):
    assert not sorted(path for path in pages.paths(page) if not (pages.ROOT / path).exists())


@pytest.mark.parametrize("page", pages.PAGES)
def test_every_name_of_a_module_and_every_setting_exists(page):
    assert not pages.unknown_names(page)
    wrong = {name for name in pages.settings(page) if name[1] not in pages.SECTIONS.get(name[0], ())}
    assert not wrong


@pytest.mark.parametrize("page", pages.PAGES)
def test_every_command_and_flag_exists(page):
    for command, flags in pages.commands(page):
        known = pages.known_flags(command)
        assert known, f"`reval {command}` is no command"
        assert not {flag for flag in flags if flag.replace("_", "-") not in known}, (
            f"`reval {command}` has no such flag"
        )


def test_the_checks_find_what_does_not_exist(tmp_path, monkeypatch):
    text = "`objective.no_such` `update.no_such` `reval_jax/no_such.py` `reval trian` `--update.betta` [a](no_such.md)"
    (tmp_path / "page.md").write_text(text)
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    assert pages.unknown_names("page.md") == {"objective.no_such", "update.no_such"}
    assert pages.paths("page.md") == {"reval_jax/no_such.py"}
    assert ("update", "betta") in pages.settings("page.md")
    assert pages.links("page.md") == ["no_such.md"]
    assert pages.commands("page.md") == [("trian", [])]
    assert not pages.known_flags("trian")


def test_every_page_is_in_the_site_and_the_site_needs_no_network():
    # The file has none of MkDocs' tags for Python objects, so a plain YAML reader can load it.
    site = yaml.safe_load((pages.ROOT / "mkdocs.yml").read_text())
    named = set(re.findall(r"[\w/]+\.md", json.dumps(site["nav"])))
    assert named == set(pages.PAGES)
    assert site["strict"] is True
    assert site["theme"]["font"] is False


# --- The code of the pages ---


@pytest.mark.parametrize("page", PYTHON)
def test_python_compiles_and_prints_what_follows_it(page):
    blocks = [*pages.blocks(page), pages.Block("", "", "")]
    for block, following in itertools.pairwise(blocks):
        if block.language != "python":
            continue
        compile(block.text, page, "exec")
        if following.language == "text" and not block.title:
            result = subprocess.run([sys.executable, "-c", block.text], capture_output=True, text=True, check=True)
            assert result.stdout == following.text


@pytest.mark.parametrize("page", GUIDES)
def test_yaml_is_a_config(page):
    for block in pages.blocks(page):
        if block.language == "yaml":
            config_lib.from_tree(yaml.safe_load(block.text))


@pytest.fixture
def guide(tmp_path, monkeypatch):
    """A function that writes the titled blocks of a page into a directory on the path; unloads their modules afterwards."""
    written = []

    def write(page):
        for block in pages.blocks(page):
            if block.title:
                (tmp_path / block.title).write_text(block.text)
                written.append(Path(block.title).stem)
        return tmp_path

    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_the_objective_of_the_how_to_is_an_algorithm(guide):
    directory = guide("howto/objective.md")
    own = {"objective": "my_objectives:per_token", "objective_path": str(directory)}
    assert algorithms.choose(tiny_programs.settings(update=own)).has_reference


def test_the_policy_gradient_of_the_how_to_is_an_algorithm_without_a_reference(guide):
    directory = guide("howto/objective.md")
    own = {"objective": "my_reinforce:reinforce", "objective_path": str(directory), "reference_reset_every": 0}
    algorithm = algorithms.choose(tiny_programs.settings(update=own))
    assert not algorithm.has_reference
    shaped = algorithm.shape_reward(tiny_programs.graded(np.array([1, 0, 1, 1]), np.array([0, 0, 1, 1])))
    np.testing.assert_array_equal(shaped, [0.5, -0.5, 0, 0])


def test_the_reward_of_the_how_to_grades(guide):
    directory = guide("howto/reward.md")
    own = config_lib.Verifier(function="my_rewards:close", function_path=str(directory), workers=1)
    with verifier.Grader(config_lib.Config(verifier=own)) as grader:
        verdicts = grader.score(["= 37", "about 36", "none"], ["37"] * 3, prompt_opens_think=False)
    np.testing.assert_allclose(verdicts.reward, [1, 0.9, 0], rtol=1e-6)


def test_the_engine_of_the_how_to_samples(guide):
    guide("howto/sampler_engine.md")
    engine = plugins.load("rollout.engine", "my_engine:listed")(None, None, config_lib.Config(), 1)
    taken = types.Prompts(
        np.arange(2), np.arange(2), ("a", "b"), (np.array([1], np.int32), np.array([2], np.int32)), ("", "")
    )
    finished = []
    responses = engine.generate(
        engine.sync_weights({}),
        taken,
        None,
        samples_per_prompt=3,
        sampling=sampler.Sampling(stop_ids=(0,)),
        hooks=sampler.Hooks(on_finished=finished.extend),
    )
    assert [(each.prompt, each.sample) for each in responses] == [(p, s) for p in range(2) for s in range(3)]
    assert len(finished) == 6


def test_the_published_tensors_of_the_how_to_are_those_of_a_checkpoint(guide, tmp_path):
    guide("howto/sampler_engine.md")
    directory = hf_checkpoints.tiny_checkpoint(tmp_path / "model", "qwen2")
    loaded = weights.load(directory)
    published = dict(importlib.import_module("my_weights").published(loaded.architecture, loaded.params))
    stored = safetensors.numpy.load_file(Path(directory) / "model.safetensors")
    assert published.keys() == stored.keys()
    for name, tensor in stored.items():
        np.testing.assert_array_equal(published[name], tensor)


def test_the_sink_of_the_how_to_writes(guide, tmp_path):
    guide("howto/metric_sink.md")
    write = plugins.load("run.sinks", "my_sinks:scores")(config_lib.Config(), tmp_path)
    write(1, {"critic/score/mean": 0.5})
    write(2, {})
    assert (tmp_path / "scores.txt").read_text() == "1 0.5\n2 None\n"


def test_the_family_of_the_how_to_is_exported_and_loaded(guide, tmp_path, monkeypatch):
    guide("howto/model_family.md")
    record = importlib.import_module("mistral").MISTRAL
    monkeypatch.setattr(families, "FAMILIES", {**families.FAMILIES, record.name: record})
    directory = hf_checkpoints.tiny_checkpoint(tmp_path / "model", "mistral")
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (written["model_type"], written["architectures"]) == ("mistral", ["MistralForCausalLM"])
    assert transformers.AutoConfig.from_pretrained(directory).sliding_window is None
    loaded = weights.load(directory)
    assert loaded.architecture.family == "mistral"
    expected = hf_checkpoints.tiny_params(loaded.architecture)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
    (tmp_path / "model" / "config.json").write_text(json.dumps(written | {"sliding_window": 4}))
    with pytest.raises(ValueError, match="sliding_window=4"):
        weights.load(directory)


SMALLER = {
    "rounds: 10": "rounds: 2",
    "--round 0 10": "--round 0 2",
    "prompts_per_round: 8": "prompts_per_round: 2",
    "batch_size: 64": "batch_size: 16",
    '"test": rows[:64]': '"test": rows[:16]',
}
"""The tutorial's text → what the test runs instead: every command, on less data."""


@pytest.mark.slow
@pytest.mark.real_model
def test_the_tutorial_runs(tmp_path, smollm2):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "SmolLM2-135M-Instruct.gguf").symlink_to(smollm2.resolve())
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(pages.ROOT),
    }
    blocks = [*pages.blocks("tutorial.md"), pages.Block("", "", "")]
    for whole, less in SMALLER.items():
        assert any(whole in block.text for block in blocks), whole
        blocks = [block._replace(text=block.text.replace(whole, less)) for block in blocks]
    for block, following in itertools.pairwise(blocks):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
        if block.language != "bash" or ("load.py" in block.text and not importlib.util.find_spec("torch")):
            continue
        script = f'set -e; reval() {{ python -m reval_jax "$@"; }}\n{block.text}'
        result = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{block.text}\n{result.stdout}{result.stderr}"
        assert _words(following.text) <= _words(result.stdout + result.stderr), block.text


def _words(output: str) -> set[str]:
    """Words of an output that do not depend on the machine or on the number of rounds."""
    fixed = (
        "rows in prompts/differences, fingerprint f598cbac0b4ebbe4|rows in prompts/differences_test|duplicates: 0 exact|"
        "bad rows: 0|-> 66|verdict ok|score|kl_ref|done:|policy 0|minus policy 0|--- 3 of 3|report.html|"
        "model.safetensors|SmolLM2-135M-Instruct.gguf"
    )
    return set(re.findall(fixed, output))


# --- docs/metrics.md ---


def listed_metrics() -> set[str]:
    """The names in the first column of the tables."""
    return set(re.findall(r"^\| `([^`]+)` \|", pages.read("metrics.md"), flags=re.MULTILINE))


@pytest.mark.slow
def test_the_page_lists_exactly_the_metrics_of_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(verifier.Grader, "score", graded_by_chance)
    file = tiny_runs.write_files(tmp_path)
    most = tiny_runs.play(file, tmp_path / "most", rollout__filter_groups=True, rollout__truncated="mask")
    penalty = {"rollout__truncated": "penalty", "rollout__penalty_tokens": 4, "run__rounds": 1, "eval__every": 0}
    rest = tiny_runs.play(file, tmp_path / "rest", **penalty)
    once = {"run__rounds": 1, "eval__every": 0, "update__reference_reset_every": 0}
    adaptive = {"update__max_updates_per_round": 3, "update__reference_reset_pull": 1.0}
    pool.save(pool.collect(tmp_path / "most"), tmp_path / "pool.npz")
    clipped = {"update__objective": "policy_gradient", "update__correction": "token_mask"}
    clipped |= {"rollout__pool": str(tmp_path / "pool.npz")}
    second_moment = {"update__objective": "policy_gradient", "update__surrogate": "second_moment"}
    value_head = {"update__objective": "ppo", "update__updates_per_round": 1}
    one_update = {"update__updates_per_round": 1}
    runs = [adaptive, clipped | one_update, second_moment | one_update, value_head]
    others = [tiny_runs.play(file, tmp_path / str(index), **once, **each) for index, each in enumerate(runs)]
    written = {name for run in (most, rest, *others) for line in run.lines for name in line}
    written = {re.sub("/(low|high)$", "", name.replace("held_out", "{benchmark}")) for name in written}
    written = {re.sub(r"/(pass|maj)@\d+$", r"/\1@{k}", name).replace("mean@4", "mean@{n}") for name in written}
    written = {re.sub(r"/age/\d+/", "/age/{a}/", name) for name in written}
    assert written == listed_metrics()
