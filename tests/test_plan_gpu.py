"""`reval plan` for hosts with GPUs: their names, plans, and programs compiled for GPUs that are absent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from support import fake_pods, hf_checkpoints, tiny_programs

from reval_jax import batch, cli
from reval_jax import config as config_lib
from reval_jax.tools import plan
from reval_jax.tools.plan import advice, compilation, estimate, gpu_topology, memory


@pytest.mark.parametrize(
    ("name", "full", "gpus", "of_host"),
    [
        ("h100:8", "h100:8", 8, 8),
        ("H200:8", "h200:8", 8, 8),
        ("a100-80gb:8", "a100-80gb:8", 8, 8),
        ("b200:4", "b200:4", 4, 4),
        ("h100:1", "h100:1", 1, 1),
        ("4x h100:8", "4x h100:8", 32, 8),
        ("4xh100:8", "4x h100:8", 32, 8),
        (" 2 x h200:4 ", "2x h200:4", 8, 4),
        ("1x h100:8", "h100:8", 8, 8),
    ],
)
def test_a_host_is_named_by_its_gpus(name, full, gpus, of_host):
    hosts = gpu_topology.named(name)
    assert (hosts.name, hosts.num_chips, hosts.host.num_chips) == (full, gpus, of_host)
    assert gpu_topology.named(hosts.name) == hosts
    assert gpu_topology.is_gpu_name(name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("h100", "h100:8"),
        ("a100:8", "a100-80gb:8"),
        ("h100:3", "h100:8"),
        ("h100:0", "h100:8"),
        ("0x h100:8", "h100:8"),
        ("h100:16", "16 GPUs are '2x h100:8'"),
        ("2x h100:16", "32 GPUs are '4x h100:8'"),
        ("gb200:4", "b200:8"),
        ("", ":8"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"is not known.*Nearest: .*{re.escape(nearest)}"):
        gpu_topology.named(name)


@pytest.mark.parametrize("name", ["v5e-256", "v5litepod-8", "v5p:2x2x1", "v4-32", "v6e-8", "", "tpu"])
def test_names_of_tpu_slices_are_not_taken_for_gpus(name):
    assert not gpu_topology.is_gpu_name(name)


def test_missing_wheels_are_named_with_the_version_that_fits(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    command = f"pip install --no-deps jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__} 'nvidia-cuda-nvcc"
    with pytest.raises(ValueError, match=re.escape(command)):
        gpu_topology.devices(gpu_topology.named("h100:8"))


@pytest.mark.parametrize("has_toolkit", [True, False])
def test_the_plugin_alone_is_not_the_compiler(monkeypatch, tmp_path, has_toolkit):
    """XLA looks for the assembler and the device library beside the plugin, and in CUDA's usual folder."""
    monkeypatch.setattr(gpu_topology, "_TOOLKIT", tmp_path / "no toolkit")
    plugin = tmp_path / "jax_plugins" / "xla_cuda13" / "__init__.py"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(origin=str(plugin)))
    if has_toolkit:
        for name in ("bin/ptxas", "nvvm/libdevice/libdevice.10.bc"):
            file = tmp_path / "nvidia" / "cu13" / name
            file.parent.mkdir(parents=True)
            file.touch()
        gpu_topology.require_compiler()
    else:
        with pytest.raises(ValueError, match=r"'nvidia-cuda-nvcc>=13,<14' 'nvidia-nvvm>=13,<14'"):
            gpu_topology.require_compiler()


# --- plans -----------------------------------------------------------------------------------------------------------


def test_programs_may_use_the_share_of_memory_that_jax_takes(monkeypatch):
    host = gpu_topology.named("h100:8")
    for name in ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    assert gpu_topology.memory_bytes(host) == int(0.75 * host.chip.memory)
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", ".5")
    assert gpu_topology.memory_bytes(host) == int(0.5 * host.chip.memory)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert gpu_topology.memory_bytes(host) == int(0.9 * host.chip.memory)
    for wrong in ("90", "0", "most"):
        monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", wrong)
        with pytest.raises(ValueError, match=f"XLA_PYTHON_CLIENT_MEM_FRACTION='{wrong}' is not a share"):
            gpu_topology.memory_bytes(host)


def test_larger_machines_have_more_of_the_same_gpus():
    assert [hosts.common_name for hosts in gpu_topology.named("h100:2").larger()][:4] == [
        *("h100:4", "h100:8", "2xh100:8", "4xh100:8")
    ]
    assert next(gpu_topology.named("3x b200:8").larger()).common_name == "4xb200:8"
    for hosts in gpu_topology.named("h200:1").larger():
        assert gpu_topology.named(hosts.common_name) == hosts


def test_between_hosts_weights_are_gathered_over_their_adapters_and_sums_stay_in_a_host():
    architecture = fake_pods.BIG
    host, hosts = gpu_topology.named("h100:8"), gpu_topology.named("2x h100:4")
    assert host.network_bandwidth == host.chip.link_bandwidth
    assert hosts.network_bandwidth == 4 * gpu_topology.ADAPTER_BANDWIDTH < hosts.chip.link_bandwidth
    assert gpu_topology.named("2x h100:8").network_bandwidth < host.chip.link_bandwidth

    def link_seconds(machine, **mesh):
        return estimate.update_cost(architecture, machine, 8, fake_pods.search_settings(mesh=mesh)).link_seconds

    slower = hosts.chip.link_bandwidth / hosts.network_bandwidth
    assert link_seconds(hosts) == pytest.approx(slower * link_seconds(host))
    assert link_seconds(hosts, data=2, tensor=4) == link_seconds(host, data=2, tensor=4)


def test_what_cudnn_adds_is_a_statistic_for_each_query_of_each_segment_or_a_mask():
    pod = fake_pods.fake_pod()._replace(topology=gpu_topology.named("h100:8"))

    def added(**model):
        settings = {"compute_dtype": "bfloat16", "deterministic": False} | model
        return memory.cudnn_bytes(fake_pods.BIG, pod, fake_pods.search_settings(model=settings, mesh={"tensor": 2}))

    # One row of 512 columns a device, 64 segments and padding, the heads of one device.
    of_layer = (64 + 1) * (8 // 2) * 512 * 4
    mask = 2 * 512 * 512 * 2 + 4 * 512 * 4
    assert added(remat="full") == max(of_layer, mask)
    assert added(remat="dots") == fake_pods.BIG.num_layers * of_layer
    # The workspace that a run allows a gradient that repeats.
    assert added(remat="dots", deterministic=True) == fake_pods.BIG.num_layers * of_layer + pod.capacity // 8
    assert added(attention="xla", deterministic=True) == added(compute_dtype="float32") == 0


def test_advice_for_gpus_begins_with_the_share_of_memory_and_ends_with_more_gpus(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    host = gpu_topology.named("h100:8")
    pod = fake_pods.fake_pod(gpu_topology.memory_bytes(host))._replace(topology=host)
    config = fake_pods.search_settings(model={"remat": "full"})
    bound = {phase.name: phase for phase in memory.lower_bounds(fake_pods.BIG, pod, config)}["update"]

    def advise(**kinds):
        phase = memory.Phase("update", bound.kinds | kinds, is_compiled=True)
        return advice.advise(fake_pods.BIG, pod, config, [phase])

    assert advise(temporaries=65 * fake_pods.GIB) == (
        "update: let programs use more of the memory: set XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 for the run and its plan"
    )
    assert "try --topology 2xh100:8 (16 GPUs)" in advise(params=100 * fake_pods.GIB)
    assert "use GPUs with more memory" in advise(temporaries=100 * fake_pods.GIB)


@pytest.fixture
def config_file(tmp_path):
    directory = Path(hf_checkpoints.tiny_checkpoint(tmp_path / "tiny", "llama"))
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config_lib.to_tree(tiny_programs.settings(model={"path": str(directory)}))))
    return path


@pytest.fixture
def no_gpu(monkeypatch):
    """Fake devices for GPUs, and a compiler that reports 3 GiB for every program."""
    three = compilation.ProgramMemory(0, 0, 0, 3 * fake_pods.GIB, code=0, seconds=0.0, collectives={"all-gather": 2})
    monkeypatch.setattr(gpu_topology, "require_compiler", lambda: None)
    monkeypatch.setattr(
        compilation,
        "open_pod",
        lambda host: fake_pods.fake_pod(gpu_topology.memory_bytes(host))._replace(topology=host),
    )
    monkeypatch.setattr(compilation, "compiler", lambda *_: lambda program, config: three)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)


def test_the_plan_of_a_host_is_in_gpus_and_says_what_is_not_compiled(config_file, no_gpu, capsys, tmp_path):
    arguments = ["plan", "--config", str(config_file), "--topology", "h100:8", "--json", str(tmp_path / "plan.json")]
    arguments += ["--model.compute_dtype", "bfloat16"]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "h100:8: 8 GPUs, 8 a host, 59.33 GiB each for programs" in text
    assert "(75% of 79.11: XLA_PYTHON_CLIENT_MEM_FRACTION, jax's default)" in text
    assert "GiB per GPU" in text
    assert "not compiled: attention by cuDNN" in text
    assert "chip" not in text
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["fits"] is True
    assert plan["bytes_per_device"]["capacity"] == int(0.75 * 84_942_979_072)
    assert (plan["topology"], plan["chips"], plan["chips_per_host"]) == ("h100:8", 8, 8)
    assert (plan["device_kind"], plan["memory_fraction"]) == ("NVIDIA H100 80GB HBM3", 0.75)
    assert plan["not_compiled"]["cudnn_bytes_at_most"] > 0
    assert plan["settings"]["model"]["attention"] == "auto"
    assert cli.main([*arguments, "--model.attention", "xla", "--search"]) == 0
    assert "cuDNN" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("h100:9", "--topology 'h100:9' is not known"),
        ("a100:8", "Nearest: a100-80gb:8"),
        ("gpu", "is not known. Name a kind of GPU"),
        ("3xh100:8", "prompts_per_round"),
    ],
)
def test_a_wrong_machine_is_refused_with_one_message(config_file, no_gpu, capsys, topology, message):
    assert cli.main(["plan", "--config", str(config_file), "--topology", topology]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_the_wheels_the_command_names_them(config_file, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["plan", "--config", str(config_file), "--topology", "h100:8"]) == 2
    assert "pip install --no-deps jax-cuda13-plugin==" in capsys.readouterr().err


# --- a real compiler for GPUs ----------------------------------------------------------------------------------------

SMALL = hf_checkpoints.tiny_architecture(
    width=256, num_heads=4, num_kv_heads=2, head_size=128, mlp_width=512, vocab_size=1024, tied_head=False
)


@pytest.mark.gpu_compile
@pytest.mark.slow
def test_a_small_run_fits_eight_gpus_and_its_bytes_are_those_by_hand(h100_8):
    host = gpu_topology.named("h100:8")
    pod = compilation.open_pod(host)
    config = tiny_programs.settings(
        mesh={"fsdp": 4, "tensor": 2},
        model={"compute_dtype": "bfloat16", "remat": "full"},
        rollout={"decode_slots": 8, "max_response_tokens": 100},
        task={"max_prompt_tokens": 28},
    )
    with jax.numpy_dtype_promotion("standard"):  # as a user's process runs: optax's adamw promotes an integer
        result = plan.examine(SMALL, "small", pod, config, compilation.compiler(SMALL, pod, lambda _: None))
    assert result.fits
    matrices = 2 * 1024 * 256 + 2 * (2 * 256 * 512 + 2 * 256 * 256 + 3 * 256 * 512)
    params = 4 * (matrices // 8 + 2 * 2 * 256 + 256)
    for phase in result.phases:
        assert phase.is_compiled
        assert phase.kinds["params"] == params
        assert phase.kinds["temporaries"] > 0
    compiled = result.update
    assert isinstance(compiled, compilation.ProgramMemory)
    kinds = {phase.name: phase.kinds for phase in result.phases}["update"]
    arguments = kinds["params"] + kinds["optimizer"] + kinds["batch"]
    # The batch's importance weights are on the device, and no argument of a program whose loss does not read them.
    shape = batch.shape_of(batch.row_length(128), 4, limits=tiny_programs.limits(config))
    weights = 4 * shape.micro_batches * shape.rows // 4 * shape.slots
    assert arguments - weights <= compiled.arguments < 1.01 * arguments  # GPUs have no tiles to pad to
    assert compiled.aliased >= params * 3
    assert compiled.collectives["all-gather"] > 0
    assert "reduce-scatter" in compiled.collectives
    assert "GiB per GPU" in plan.summary(result)


def test_a_reference_on_the_host_is_compiled(h100_8):
    """`update.reference_memory: host`: the copy to the devices that a score begins with."""
    mesh = Mesh(np.array(h100_8), ("fsdp",))
    on_host = NamedSharding(mesh, PartitionSpec("fsdp"), memory_kind="pinned_host")
    array = jax.ShapeDtypeStruct((1024, 256), jnp.bfloat16, sharding=on_host)
    with gpu_topology.lowering_for(h100_8):
        copy = jax.jit(lambda array: jax.device_put(array, on_host.with_memory_kind("device")) + 1)
        compiled = copy.lower(array).compile()
    analysis = compiled.memory_analysis()
    assert analysis.host_argument_size_in_bytes + analysis.argument_size_in_bytes == 1024 * 256 * 2 // 8


@pytest.mark.gpu_compile
@pytest.mark.parametrize("name", ["a100-80gb:8", "h100:8", "h200:8", "b200:8", "2x h100:8"])
def test_a_product_is_compiled_for_every_kind(name, h100_8):
    hosts = gpu_topology.named(name)
    devices = gpu_topology.devices(hosts)
    assert len(devices) == hosts.num_chips
    assert {device.process_index for device in devices} == set(range(hosts.hosts))
    assert devices[0].device_kind == hosts.chip.device_kind
    assert devices[0].compute_capability == ".".join(map(str, hosts.chip.capability))
    rows = NamedSharding(Mesh(np.array(devices), ("rows",)), PartitionSpec("rows"))
    array = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=rows)
    with gpu_topology.lowering_for(devices):
        compiled = jax.jit(lambda array: (array @ array.T).sum()).lower(array).compile()
    assert "all-reduce" in compiled.as_text()
    assert compiled.memory_analysis().argument_size_in_bytes == 1024 * 1024 * 2 // hosts.num_chips


def double(array):
    """A Pallas kernel of the Triton backend."""

    def kernel(rows, doubled):
        doubled[...] = rows[...] * 2

    rows = pl.BlockSpec((1, array.shape[1]), lambda row: (row, 0))
    shape = jax.ShapeDtypeStruct(array.shape, array.dtype)
    parameters = triton.CompilerParams(num_warps=1, num_stages=1)
    return pl.pallas_call(
        kernel, grid=array.shape[:1], in_specs=[rows], out_specs=rows, out_shape=shape, compiler_params=parameters
    )(array)


@pytest.mark.parametrize("is_split", [False, True])
def test_a_pallas_kernel_is_compiled_split_over_a_mesh_or_for_one_gpu(h100_8, is_split):
    mesh = Mesh(np.array(h100_8 if is_split else h100_8[:1]), ("rows",))
    rows = PartitionSpec("rows")
    program = jax.shard_map(double, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False) if is_split else double
    array = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=NamedSharding(mesh, rows))
    with gpu_topology.lowering_for(h100_8):
        compiled = jax.jit(program).lower(array).compile()
    assert "__gpu$xla.gpu.triton" in compiled.as_text()
