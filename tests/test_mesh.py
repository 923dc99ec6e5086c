"""Device meshes, the table from logical axes to mesh axes, and placement of arrays on devices."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from support import hf_checkpoints, tiny_programs

from reval_jax import config as config_lib
from reval_jax import distributed, mesh, model


def test_minus_one_takes_the_devices_that_are_left():
    assert dict(mesh.make(config_lib.Mesh(data=2, fsdp=-1, tensor=2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


def test_axes_that_do_not_make_the_devices_are_refused_with_their_number():
    with pytest.raises(ValueError, match="does not make 8"):
        mesh.make(config_lib.Mesh(data=3, fsdp=1))


@pytest.mark.parametrize("table", [mesh.LEARNER_AXES, mesh.SAMPLER_AXES])
def test_every_weight_is_placed_and_comes_back_as_it_was(table):
    tiny = tiny_programs.tiny(data=2, fsdp=2, tensor=2)
    host = hf_checkpoints.tiny_params(tiny.architecture)
    placement = mesh.shardings(tiny.mesh, model.logical_axes(tiny.architecture), host, table)
    jax.tree.map(np.testing.assert_array_equal, distributed.fetch(mesh.put(host, placement)), host)


def test_the_learner_holds_a_part_of_the_large_weights_on_each_device():
    tiny = tiny_programs.tiny(fsdp=4, tensor=2)
    for name in ("query", "gate", "up"):
        leaf = tiny.params["layers"][name]
        assert leaf.addressable_shards[0].data.size * 8 == leaf.size, name


def test_heads_that_tensor_does_not_divide_stay_whole():
    architecture = hf_checkpoints.tiny_architecture(num_heads=9, num_kv_heads=3)
    tiny = tiny_programs.tiny(tensor=4, architecture=architecture)
    key = tiny.params["layers"]["key"]
    assert key.addressable_shards[0].data.shape == key.shape


def test_axes_that_are_kept_whole_are_named():
    architecture = hf_checkpoints.tiny_architecture(num_heads=9, num_kv_heads=3)
    tiny = tiny_programs.tiny(tensor=4, architecture=architecture)
    shapes = model.abstract_params(architecture)
    notes = mesh.kept_whole(tiny.mesh, model.logical_axes(architecture), shapes, mesh.LEARNER_AXES)
    assert [note.split(" is kept")[0] for note in notes] == ["heads (9)", "kv_heads (3)"]
    assert "mesh.tensor=4 does not divide it" in notes[0]
