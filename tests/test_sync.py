"""The sampler's copy of the parameters has the same values, on the learner's devices or on others."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from support import responses, tiny_programs

from reval_jax import keys, mesh, sampler

PROMPTS = tiny_programs.prompts((5, 6, 7), (8, 9, 10, 11))


def engine_on(tiny, devices):
    """An engine whose mesh has two rows of these devices, split in two over tensor."""
    own = jax.sharding.Mesh(np.array(devices).reshape(2, 2), ("rows", "tensor"))
    return sampler.make(
        tiny.architecture,
        own,
        compute_dtype="float32",
        max_prompt_tokens=16,
        max_response_tokens=8,
        decode_slots=8,
        decode_window=3,
    )


def generated(engine, params):
    sampled = sampler.generate(
        engine,
        params,
        PROMPTS,
        keys.named_key(0, "test"),
        samples_per_prompt=3,
        sampling=sampler.Sampling(stop_ids=(2,)),
    )
    return responses.flat(sampled)


@pytest.mark.slow
@pytest.mark.parametrize("first", [4, 2], ids=["devices of its own", "some devices of the learner's"])
def test_a_sampler_on_other_devices_gets_the_same_parameters_and_samples_the_same_responses(first):
    tiny = tiny_programs.tiny(fsdp=2, tensor=2)  # on devices 0 to 3
    shared, other = (engine_on(tiny, jax.devices()[start : start + 4]) for start in (0, first))
    here, there = (sampler.sync_weights(tiny.params, engine) for engine in (shared, other))
    for one, two in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        assert two.sharding.device_set == set(other.mesh.devices.flat)
        assert one.sharding.spec == two.sharding.spec
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
    for name, one, two in zip(responses.Flat._fields, generated(shared, here), generated(other, there), strict=True):
        np.testing.assert_array_equal(one, two, err_msg=name)


def test_several_processes_with_separate_sampler_devices_are_refused(monkeypatch):
    tiny = tiny_programs.tiny(fsdp=2, tensor=2)
    engine = engine_on(tiny, jax.devices()[4:])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="not this process's part of the learner's 4"):
        sampler.sync_weights(tiny.params, engine)


def test_the_two_meshes_are_made_in_one_place_of_the_same_devices():
    from reval_jax import config

    meshes = mesh.make_meshes(config.Mesh(fsdp=-1, tensor=2))
    assert meshes.learner.axis_names == ("data", "fsdp", "tensor")
    assert meshes.sampler.axis_names == ("rows", "tensor")
    assert meshes.sampler.devices.flatten().tolist() == meshes.learner.devices.flatten().tolist()
