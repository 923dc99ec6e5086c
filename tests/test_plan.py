"""`reval plan`: names, bytes against hand sums, the search, and the real programs compiled for a TPU that is not there."""

from __future__ import annotations

import json
import types

import checkpoints
import jax
import numpy as np
import programs as tiny_programs
import pytest

from reval_jax import cli, plan, weights
from reval_jax.plan import estimate, memory, programs, search, topology

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "shape", "chips"),
    [
        ("v5e-256", "v5e:16x16", 256),
        ("v5litepod-16", "v5e:4x4", 16),
        ("v5e:2x4", "v5e:2x4", 8),
        ("v5p-128", "v5p:4x4x4", 64),
        ("v4-8", "v4:2x2x1", 4),
        ("V6E-64", "v6e:8x8", 64),
    ],
)
def test_common_names_and_topology_names_mean_the_same_slices(name, shape, chips):
    found = topology.named(name)
    assert (found.name, found.num_chips) == (shape, chips)


@pytest.mark.parametrize("name", ["v5e-7", "v5p:4x4", "h100", "", "v5e:0x4"])
def test_an_unknown_slice_is_refused_with_names_that_exist(name):
    with pytest.raises(ValueError, match=r"is not known: .* Nearest: v\d"):
        topology.named(name)


def settings(**sections):
    return tiny_programs.settings(**({"model": {"path": "x", "remat": "full"}} | sections))


def pod(chips=8, capacity=16 * GIB):
    """A slice of fake CPU devices."""
    devices = jax.devices()[:chips]
    return programs.Pod(topology.Topology("v5e", (2, chips // 2)), devices, devices[:4], capacity)


def phases_of(config, **kinds):
    architecture = checkpoints.tiny_architecture(width=64, vocab_size=512)
    return architecture, {phase.name: phase.kinds for phase in memory.at_least(architecture, pod(), config)}


def test_bytes_by_shapes_alone_equal_hand_sums():
    architecture, phases = phases_of(settings())
    replicated = (2 * architecture.num_layers + 1) * architecture.width  # the norms
    params = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(plan.model.abstract_params(architecture)))
    split = 4 * ((params - replicated) // 8 + replicated)
    assert {kinds["params"] for kinds in phases.values()} == {split}
    assert phases["update"]["gradients"] == split
    # Two moments and Adam's count and the schedule's.
    assert 2 * split <= phases["update"]["optimizer"] <= 2 * split + 16
    assert phases["score"]["reference"] == split, "compute_dtype is float32 here"
    assert phases["generate"]["reference"] == 0
    assert phases["generate"]["sampler_copy"] == 4 * params
    # Two slots a device, each with its prompt's 16 columns and 8 of a response, and one prefilled prompt beside them.
    of_token = 2 * architecture.num_layers * architecture.num_kv_heads * architecture.head_size * 4
    assert phases["generate"]["kv_cache"] == of_token * (2 * (16 + 8) + 16)


def test_a_reference_kept_on_the_devices_counts_in_every_phase_and_grpo_has_none():
    _, phases = phases_of(settings(update={"reference_memory": "device"}))
    assert all(kinds["reference"] > 0 for kinds in phases.values())
    _, phases = phases_of(settings(update={"objective": "grpo"}))
    assert set(phases) == {"update", "hand_over", "generate"}


def test_a_measured_phase_is_the_program_and_what_lies_beside_it():
    known = memory.Phase("update", dict.fromkeys(memory.KINDS, 0) | {"params": 10, "optimizer": 20, "batch": 1}, False)
    beside = known._replace(kinds=known.kinds | {"reference": 7})
    result = programs.Measured(
        arguments=31, outputs=30, aliased=30, temporaries=50, code=3, seconds=0.0, collectives={}
    )
    found = memory.measured(beside, {"update": result})
    assert found.total == 31 + 50 + 3 + 7
    assert found.kinds["temporaries"] == 50
    assert found.fits(91)
    assert not found.fits(90)
    refused = memory.measured(beside, {"update": programs.TooLarge(99, "too large", 0.0)})
    assert refused.refusal == "too large"
    assert not refused.fits(10**9)


def test_the_search_takes_the_fastest_that_fits_and_compiles_no_hopeless_ones():
    config, asked = settings(update={"micro_batch_tokens": 32}), []

    def fits(candidate, phase):
        asked.append((phase, candidate.model.remat, candidate.update.micro_batch_tokens))
        return phase != "update" or candidate.model.remat in ("attention", "full")

    architecture = checkpoints.tiny_architecture(width=64, vocab_size=512)
    found = search.find(architecture, pod(), config, fits, lambda line: None)
    candidates = [each.config for each in search.learner_candidates(architecture, pod(), found)]
    fitting = [each for each in candidates if each.model.remat in ("attention", "full")]
    assert found.model.remat == fitting[0].model.remat
    assert found.update.micro_batch_tokens == fitting[0].update.micro_batch_tokens
    of_update = [ask for ask in asked if ask[0] == "update"]
    assert len(of_update) == len(set(of_update)) < len(candidates)


def test_nothing_that_fits_is_none():
    architecture = checkpoints.tiny_architecture(width=64, vocab_size=512)
    assert search.find(architecture, pod(capacity=1), settings(), lambda *_: True, lambda line: None) is None


def test_flops_are_six_times_weights_times_tokens_and_the_attention():
    architecture = checkpoints.tiny_architecture()
    config = settings()
    found = estimate.of_update(architecture, topology.named("v5e-8"), 8, config)
    weights_of_layers = estimate.layer_weights(architecture)
    head = architecture.width * architecture.vocab_size
    attention = 2 * architecture.num_layers * 24**2 * architecture.num_heads * architecture.head_size
    assert found.flops == 8 * (6 * weights_of_layers * 24 + 3 * attention + 6 * head * 8)
    assert found.executed_flops > found.flops, "remat full computes again"


@pytest.mark.parametrize("name", sorted(weights.published.ARCHITECTURES))
def test_published_shapes_are_found_without_a_network(name):
    architecture, source = weights.find_architecture(name)
    assert architecture == weights.published.ARCHITECTURES[name]
    assert name in source


def test_a_small_model_fits_and_a_large_one_says_why_not(v5e):
    assert len(v5e) == 8
    config = settings(
        model={"path": "HuggingFaceTB/SmolLM2-135M-Instruct", "compute_dtype": "bfloat16", "remat": "full"}
    )
    architecture = checkpoints.tiny_architecture(head_size=64)
    slice_ = programs.open_pod(topology.named("v5e:2x4"))
    assert slice_.capacity == pytest.approx(15.75 * GIB, rel=0.01)
    compile_program = programs.compiler(architecture, slice_, lambda line: None)
    with jax.numpy_dtype_promotion("standard"):
        found = plan.examine(architecture, "tiny", slice_, config, compile_program)
    assert found.fits, plan.sentences(found)
    assert found.update.collectives["all-gather"] > 0
    known = {phase.name: phase for phase in memory.at_least(architecture, slice_, config)}
    for phase in found.phases:
        assert phase.kinds["params"] == known[phase.name].kinds["params"]
        assert phase.total >= known[phase.name].kinds["params"]
    written = json.loads(json.dumps(plan.as_json(found)))
    assert written["fits"] is True
    assert set(written["bytes_per_device"]) == {"score", "update", "hand_over", "generate", "capacity"}
    assert written["settings"]["model"]["remat"] == "full"

    large, _ = weights.find_architecture("Qwen/Qwen2.5-Math-7B")
    refused = plan.examine(large, "7B", slice_, config, lambda *_: pytest.fail("nothing has to be compiled for this"))
    assert not refused.fits
    assert "does not fit" in plan.sentences(refused)
    assert "set --" in refused.advice or "--topology" in refused.advice


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--topology is missing"),
        (["--topology", "v5e-7"], "Nearest: v5e-"),
        (["--topology", "v5e-8", "--model.path", "no/such/model"], "no/such/model"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(arguments, says, capsys, monkeypatch):
    monkeypatch.setattr(topology, "require_compiler", lambda: None)
    monkeypatch.setattr(programs, "open_pod", lambda named: pod())
    assert cli.main(["plan", "--config", "configs/one_shot_medium.yaml", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_missing_compiler_is_named_with_its_version(capsys, monkeypatch):
    gone = types.SimpleNamespace(find_spec=lambda name: None)
    monkeypatch.setattr(topology.importlib, "util", gone)
    assert cli.main(["plan", "--config", "configs/one_shot_medium.yaml", "--topology", "v5e-8"]) == 2
    assert "pip install 'libtpu==" in capsys.readouterr().err
