"""`reval plan`: names of slices, bytes by kind, the search, and real programs compiled for a TPU that is not there."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from support import hf_checkpoints
from support import tiny_programs as tiny_programs

from reval_jax import algorithms, batch, cli, model, update, weights
from reval_jax import config as config_lib
from reval_jax import mesh as mesh_lib
from reval_jax.tools import plan
from reval_jax.tools.plan import advice, compilation, estimate, memory, search, topology

GIB = 2**30


def fake_pod(capacity: int = 10 * GIB) -> compilation.Pod:
    """A slice whose 8 chips, 8 a host, are the fake CPU devices: everything but a TPU's compiler works on it."""
    return compilation.Pod(topology.named("v5e-8"), jax.devices(), jax.devices(), capacity)


def needs(needed: int) -> compilation.Measured:
    return compilation.Measured(0, 0, 0, needed, code=0, seconds=0.0, collectives={})


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "full", "chips", "of_host"),
    [
        ("v5e-256", "v5e:16x16", 256, 4),
        ("v5litepod-256", "v5e:16x16", 256, 4),
        ("v5e-16", "v5e:4x4", 16, 4),
        ("v5e-8", "v5e:2x4", 8, 8),
        ("v5e-1", "v5e:1x1", 1, 1),
        ("v6e-64", "v6e:8x8", 64, 4),
        ("v5p-128", "v5p:4x4x4", 64, 4),
        ("v5p-8", "v5p:2x2x1", 4, 4),
        ("v4-32", "v4:2x2x4", 16, 4),
        ("v5e:4x4", "v5e:4x4", 16, 4),
        ("V5P:2x2x2", "v5p:2x2x2", 8, 4),
    ],
)
def test_a_slice_is_known_by_its_common_name_and_by_its_topology(name, full, chips, of_host):
    found = topology.named(name)
    assert (found.name, found.num_chips, found.host.num_chips) == (full, chips, of_host)


def test_common_names_count_chips_or_tensorcores():
    for name, found in topology.common_names().items():
        generation, count = name.split("-")
        assert int(count) == found.num_chips * (2 if generation in ("v4", "v5p") else 1)


@pytest.mark.parametrize("name", ["v5e-255", "v5p-129", "v7e-8", "v5e:4x4x4", "v5p:4x4", "v5e:0x4", "a100", "", "v5e:"])
def test_an_unknown_slice_is_refused_with_those_nearest(name):
    with pytest.raises(ValueError, match=r"is not known.*Nearest: v\d"):
        topology.named(name)


def test_a_missing_compiler_is_named_with_the_version_that_fits(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(
        "importlib.metadata.requires",
        lambda name: ["numpy>=2", "libtpu==0.0.42.*; extra == 'tpu'", "x; extra == 'tpu'"],
    )
    with pytest.raises(ValueError, match=r"pip install 'libtpu==0\.0\.42\.\*'"):
        topology.require_compiler()


def test_sizes_are_read_as_xla_writes_them():
    assert topology.parse_bytes("15.75G") == int(15.75 * GIB)
    assert topology.parse_bytes("896.5M") == int(896.5 * 2**20)
    assert topology.parse_bytes("12") == 12


# --- architectures ---------------------------------------------------------------------------------------------------


def test_a_published_shape_needs_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    for path, parameters in [
        ("Qwen/Qwen2.5-Math-7B", 7_615_616_512),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1_777_088_000),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
    ]:
        architecture, source = weights.find_architecture(path)
        counted = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.abstract_params(architecture)))
        assert counted == parameters
        assert "as known here" in source


def test_what_is_on_this_machine_comes_before_the_published_shapes(monkeypatch, tmp_path):
    architecture = hf_checkpoints.tiny_architecture()
    directory = Path(hf_checkpoints.tiny_checkpoint(tmp_path / "tiny", architecture.family))
    assert weights.find_architecture(str(directory)) == (architecture, str(directory))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(directory / "config.json"))
    assert weights.find_architecture("Qwen/Qwen2.5-Math-7B")[0] == architecture


def test_of_another_hub_id_only_the_configuration_is_fetched(monkeypatch, tmp_path):
    architecture = hf_checkpoints.tiny_architecture()
    directory = Path(hf_checkpoints.tiny_checkpoint(tmp_path / "tiny", architecture.family))
    asked = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *names: asked.append(names) or str(directory / "config.json")
    )
    assert weights.find_architecture("some/model")[0] == architecture
    assert asked == [("some/model", "config.json")]


# --- accounting ------------------------------------------------------------------------------------------------------


def test_bytes_from_shapes_equal_sums_by_hand():
    """A llama of 2 layers, width 16, 4 query and 2 key/value heads of 8, feed-forward 24, 320 tokens, on fsdp 4 x tensor 2."""
    architecture = hf_checkpoints.tiny_architecture(
        width=16, num_heads=4, num_kv_heads=2, head_size=8, mlp_width=24, tied_head=False
    )
    config = tiny_programs.settings(mesh={"fsdp": 4, "tensor": 2}, model={"compute_dtype": "bfloat16", "remat": "full"})
    found = {phase.name: phase.kinds for phase in memory.at_least(architecture, fake_pod(), config)}
    # Split over both axes: embedding, head, query, output, key, value, gate, up, down; the norms are whole everywhere.
    split = 2 * 320 * 16 + 2 * (2 * 16 * 4 * 8 + 2 * 16 * 2 * 8 + 3 * 16 * 24)
    norms = 2 * 2 * 16 + 16
    params = 4 * (split // 8 + norms)
    assert found["update"]["params"] == found["update"]["gradients"] == params
    assert found["update"]["optimizer"] == 2 * params + 4 + 4  # Adam's two moments, its count and the schedule's
    assert found["score"]["reference"] == 2 * split // 8 + 4 * norms
    assert found["sync_weights"]["sampler_copy"] == 2 * split // 2 + 4 * norms
    # 2 layers' keys and values of 4 slots a device, 16 + 8 positions as one block of 128, one head of 8 a device, bfloat16.
    assert found["generate"]["kv_cache"] == 2 * 2 * 4 * 128 * 1 * 8 * 2
    # 8 prompts of 16 tokens are prefilled at once and lie whole on every device.
    assert found["generate"]["prompt_cache"] == 2 * 2 * 8 * 16 * 1 * 8 * 2
    # A batch has rows of 32 tokens, 8 responses and 4 slots; 2 micro-batches would be one row a device too many: M = 1, R = 8.
    shape = batch.shape_of(batch.row_length(24), 4, limits=tiny_programs.limits(config))
    rows = shape.micro_batches * shape.rows // 4
    assert found["update"]["batch"] == 4 * rows * (3 * shape.tokens + 3 * shape.responses + 5 * shape.slots) + 3 * 4
    tokens = shape.rows // 4 * shape.tokens
    assert found["update"]["temporaries"] == 2 * tokens * 16 * 2 + 16 * 320 // 2 * (2 + 4)


def test_a_phase_is_what_its_program_holds_and_what_lies_beside_it():
    kinds = dict.fromkeys(memory.KINDS, 0) | {"params": 10, "optimizer": 20, "reference": 5, "batch": 1}
    score = memory.measured(
        memory.Phase("score", kinds, is_measured=False),
        {"score": compilation.Measured(6, 2, 1, 100, code=7, seconds=0.0, collectives={})},
    )
    assert score.kinds["temporaries"] == 6 + 2 - 1 + 100 - 5 - 1
    assert score.total == 10 + 20 + (6 + 2 - 1 + 100) + 7
    assert score.fits(score.total)
    assert not score.fits(score.total - 1)


def test_a_program_the_compiler_refused_does_not_fit_whatever_its_size():
    kinds = dict.fromkeys(memory.KINDS, 0)
    refused = memory.measured(
        memory.Phase("update", kinds, is_measured=False), {"update": compilation.TooLarge(0, "out of memory", 0.0)}
    )
    assert refused.refusal == "out of memory"
    assert not refused.fits(2**60)


def test_a_refusal_for_want_of_memory_is_a_result_and_any_other_an_error():
    def fail(text):
        def build():
            raise jax.errors.JaxRuntimeError(text)

        return build

    found = compilation.measure(
        fail("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.25G of 15.75G hbm.")
    )
    assert isinstance(found, compilation.TooLarge)
    assert found.needed == int(18.25 * GIB)
    with pytest.raises(jax.errors.JaxRuntimeError):
        compilation.measure(fail("INTERNAL: Mosaic failed to compile"))


def test_grpo_keeps_no_reference_and_the_config_decides_where_reval_does():
    pod, architecture = fake_pod(), hf_checkpoints.tiny_architecture()
    grpo = tiny_programs.settings(update={"objective": "grpo", "updates_per_round": 1})
    assert memory.phases(grpo) == ["update", "sync_weights", "generate"]
    for place, expected in [("host", {"score"}), ("device", {"score", "update", "sync_weights", "generate"})]:
        config = tiny_programs.settings(update={"reference_memory": place})
        found = memory.at_least(architecture, pod, config)
        assert {phase.name for phase in found if phase.kinds["reference"]} == expected


def test_collectives_are_counted_by_kind_and_once_each():
    text = (
        "  %ag = bf16[8]{0} all-gather(%x), dimensions={0}\n"
        "  %s = (bf16[2]{0}, bf16[8]{0}) all-gather-start(%y), dimensions={0}\n"
        "  %d = bf16[8]{0} all-gather-done(%s)\n"
        "  %r = f32[] all-reduce(%z), to_apply=%add\n"
    )
    assert compilation.count_collectives(text) == {"all-gather": 2, "all-reduce": 1}


def test_flops_are_six_a_weight_and_token_and_twelve_a_pair_of_tokens_over_two():
    architecture = weights.published.ARCHITECTURES["HuggingFaceTB/SmolLM2-135M-Instruct"]
    products, attention, head = estimate.forward_flops(architecture, 1000, 400)
    matrices = sum(
        math.prod(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.abstract_params(architecture)["layers"])
        if "norm" not in path[-1].key
    )
    assert products == 2 * matrices * 1000
    # Each of N heads: T^2 / 2 pairs, a score and a weighted value of H multiply-adds each.
    assert attention == 30 * 9 * (1000 * 1000 / 2) * 2 * (2 * 64)
    assert head == 2 * 576 * 49152 * 400


# --- the search ------------------------------------------------------------------------------------------------------

BIG = hf_checkpoints.tiny_architecture(
    width=512, num_heads=8, num_kv_heads=8, head_size=64, mlp_width=2048, num_layers=4
)


def search_settings(**sections):
    defaults = {
        "task": {"max_prompt_tokens": 128},
        "rollout": {"prompts_per_round": 16, "max_response_tokens": 384, "decode_slots": 64},
        "update": {"batch_size": 64, "micro_batch_tokens": 512, "fresh_first": False},
    }
    merged = {name: defaults.get(name, {}) | sections.get(name, {}) for name in defaults | sections}
    return tiny_programs.settings(**merged)


def searched(fits, capacity=10 * GIB, **sections):
    """What the search finds where `fits(config, phase)` decides, and every question it asked."""
    asked = []

    def answer(config, phase):
        asked.append((config, phase))
        return fits(config, phase)

    found = search.find(BIG, fake_pod(capacity), search_settings(**sections), answer, lambda _: None)
    return found, asked


def test_candidates_come_fastest_first_and_none_twice():
    pod, config = fake_pod(), search_settings()
    found = search.learner_candidates(BIG, pod, config)
    assert [each.seconds for each in found] == sorted(each.seconds for each in found)
    tried = [(each.config.model.remat, each.config.update.micro_batch_tokens) for each in found]
    assert len(set(tried)) == len(tried) == 4 * 4  # 1, 2, 4 and 8 of a device's 8 rows, at four remats
    assert {tokens for _, tokens in tried} == {512, 1024, 2048, 4096}


def test_the_search_takes_the_fastest_that_fits():
    def fits(config, phase):
        limit = {"full": 2048, "attention": 1024, "dots": 512, "none": 0}[config.model.remat]
        return phase != "update" or config.update.micro_batch_tokens <= limit

    found, asked = searched(fits)
    assert fits(found, "update")
    faster = [
        each.config
        for each in search.learner_candidates(
            BIG, fake_pod(), search.replace(search_settings(), "mesh.tensor", found.mesh.tensor)
        )
    ]
    before = faster[: faster.index(search.replace(found, "rollout.decode_slots", 64))]
    assert not any(fits(config, "update") for config in before)
    assert found.update.micro_batch_tokens in (512, 1024, 2048)
    assert len([phase for _, phase in asked if phase == "update"]) < len(faster)


def test_nothing_is_asked_that_needs_no_less_than_what_did_not_fit():
    _, asked = searched(lambda config, phase: phase != "update")
    tried = [config for config, phase in asked if phase == "update"]
    for index, config in enumerate(tried):
        assert not any(search._needs_no_less(config, other) and config.mesh == other.mesh for other in tried[:index])


def test_slots_are_halved_for_generation_alone():
    found, asked = searched(lambda config, phase: phase != "generate" or config.rollout.decode_slots <= 16)
    assert found.rollout.decode_slots == 16
    assert [config.rollout.decode_slots for config, phase in asked if phase == "generate"] == [64, 32, 16]
    assert len([phase for _, phase in asked if phase == "update"]) == 1


def test_another_tensor_is_taken_where_only_that_fits():
    found, _ = searched(lambda config, phase: phase != "sync_weights" or config.mesh.tensor == 4)
    assert found.mesh.tensor == 4
    found, asked = searched(lambda config, phase: config.mesh.tensor == 4, mesh={"fsdp": 8})
    assert found is None
    assert {config.mesh.tensor for config, _ in asked} == {1}


def test_what_shapes_alone_rule_out_is_not_asked():
    found, asked = searched(lambda config, phase: True, capacity=2**20)
    assert found is None
    assert asked == []


def test_sizes_of_tensor_divide_the_chips_and_the_heads():
    pod = fake_pod()
    nine = hf_checkpoints.tiny_architecture(num_heads=9, num_kv_heads=3)
    assert search.tensors(nine, pod, search_settings()) == [1]
    assert search.tensors(BIG, pod, search_settings(mesh={"tensor": 2})) == [2, 1, 4, 8]


# --- advice ----------------------------------------------------------------------------------------------------------


def advised(config, phase, capacity=10 * GIB, architecture=BIG, **kinds):
    pod = fake_pod(capacity)
    known = {each.name: each for each in memory.at_least(architecture, pod, config)}[phase]
    full = memory.Phase(phase, known.kinds | kinds, is_measured=True)
    return advice.of(architecture, pod, config, [full])


def test_advice_names_the_setting_and_a_value():
    much = {"temporaries": 20 * GIB}
    config = search_settings(update={"micro_batch_tokens": 2048})
    assert "--update.micro_batch_tokens 1024" in advised(config, "update", temporaries=15 * GIB)
    assert "--update.micro_batch_tokens 512" in advised(config, "update", **much)
    assert "--model.remat full" in advised(search_settings(), "update", **much)
    assert "--model.remat full" in advised(search_settings(model={"remat": "attention"}), "update", **much)
    on_devices = search_settings(update={"reference_memory": "device"})
    assert "--update.reference_memory host" in advised(on_devices, "update", **much)
    assert advised(search_settings(), "update") == ""


def test_advice_for_the_sampler_gives_a_value_that_may_fit():
    config = search_settings()
    pod = fake_pod()
    generate = {each.name: each for each in memory.at_least(BIG, pod, config)}["generate"]
    said = advised(config, "generate", capacity=generate.total - 1)
    assert said == "generate: decode fewer responses at once: set --rollout.decode_slots 32"
    sync_weights = {each.name: each for each in memory.at_least(BIG, pod, config)}["sync_weights"]
    said = advised(config, "sync_weights", capacity=sync_weights.total - 1)
    assert "--mesh.tensor 2" in said


def test_a_state_that_is_too_large_asks_for_a_larger_slice():
    seven = weights.published.ARCHITECTURES["Qwen/Qwen2.5-Math-7B"]
    config = search_settings(model={"remat": "full"}, mesh={"tensor": 4})
    assert "--topology v5e-16 (16 chips)" in advised(
        config, "update", capacity=int(15.75 * GIB), architecture=seven, temporaries=3 * GIB
    )


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def config_file(tmp_path):
    directory = Path(hf_checkpoints.tiny_checkpoint(tmp_path / "tiny", "llama"))
    tree = config_lib.to_tree(tiny_programs.settings(model={"path": str(directory)}))
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(tree))  # JSON is YAML
    return path


@pytest.fixture
def no_tpu(monkeypatch):
    """The command with fake chips and a compiler that finds 3 GiB in every program."""
    monkeypatch.setattr(topology, "require_compiler", lambda: None)
    monkeypatch.setattr(compilation, "open_pod", lambda slice_: fake_pod()._replace(topology=slice_))
    monkeypatch.setattr(compilation, "compiler", lambda *_: lambda program, config: needs(3 * GIB))


def test_json_holds_the_contract(config_file, no_tpu, capsys, tmp_path):
    arguments = ["plan", "--config", str(config_file), "--topology", "v5e-8", "--model.remat", "dots"]
    assert cli.main([*arguments, "--json", str(tmp_path / "p.json")]) == 0
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "p.json").read_text())
    assert found["fits"] is True
    assert found["settings"]["model"]["remat"] == "dots"
    assert config_lib.from_tree(found["settings"])
    bytes_per_device = dict(found["bytes_per_device"])
    assert bytes_per_device.pop("capacity") == 10 * GIB
    assert list(bytes_per_device) == ["score", "update", "sync_weights", "generate"]
    for kinds in bytes_per_device.values():
        assert kinds.keys() == {*memory.KINDS, "total"}
        assert kinds["total"] == sum(kinds[kind] for kind in memory.KINDS)
    assert "fits; the fullest phase: " in text
    assert "assumed: 8 trajectories, every one 24 tokens long" in text
    assert cli.main([*arguments, "--json", "/dev/stdout"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_a_plan_that_does_not_fit_says_which_phase_and_what_to_change(config_file, no_tpu, capsys, monkeypatch):
    monkeypatch.setattr(
        compilation,
        "compiler",
        lambda *_: (
            lambda program, config: needs((30 if program == "update" and config.model.remat != "full" else 3) * GIB)
        ),
    )
    arguments = ["plan", "--config", str(config_file), "--topology", "v5e-8", "--json", "/dev/stdout"]
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["fits"] is False
    assert json.loads(captured.out)["worst_phase"] == "update"
    assert "does not fit: update needs 30.00 of 10.00 GiB" in captured.err
    assert "update: train on fewer rows at once: set --update.micro_batch_tokens " in captured.err
    assert cli.main([*arguments, "--search"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["settings"]["model"]["remat"] == "full"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topology", "v5e-255"], "--topology 'v5e-255' is not known"),
        ([], "--topology is missing"),
        (["--topology", "v5e-8", "--mesh.fsdp", "3"], "does not make 8"),
        (["--topology", "v5e-8", "--mesh.tensor", "3"], "mesh.tensor=3"),
    ],
)
def test_bad_input_is_refused(config_file, no_tpu, capsys, arguments, said):
    assert cli.main(["plan", "--config", str(config_file), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_without_a_compiler_the_command_says_how_to_get_it(config_file, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["plan", "--config", str(config_file), "--topology", "v5e-8"]) == 2
    assert "pip install 'libtpu==" in capsys.readouterr().err


# --- a real TPU compiler ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def v5e_4():
    return compilation.open_pod(topology.named("v5e-4"))


SMALL = hf_checkpoints.tiny_architecture(
    width=256, num_heads=4, num_kv_heads=2, head_size=128, mlp_width=512, vocab_size=1024, tied_head=False
)


def real_settings(**sections):
    defaults = {
        "model": {"compute_dtype": "bfloat16", "remat": "full"},
        "rollout": {"decode_slots": 8, "max_response_tokens": 100},
        "task": {"max_prompt_tokens": 28},
    }
    merged = {name: defaults.get(name, {}) | sections.get(name, {}) for name in defaults | sections}
    return tiny_programs.settings(**merged)


@pytest.mark.tpu_compile
def test_the_compilers_memory_is_the_chips(v5e_4):
    assert len(v5e_4.devices) == len(v5e_4.host_devices) == 4
    assert v5e_4.devices[0].platform == "tpu"
    assert 15 * GIB < v5e_4.capacity < 16 * GIB


@pytest.mark.tpu_compile
def test_a_tpu_mesh_gets_its_own_attention(v5e_4):
    config = real_settings(mesh={"fsdp": 2, "tensor": 2})
    mesh = mesh_lib.make(config.mesh, v5e_4.devices)
    optimizer = update.make_optimizer(config.optimizer)
    state = update.abstract(update.abstract_params(SMALL, mesh), optimizer, mesh)
    rows = batch.abstract(compilation.largest_shape(2, config), mesh)
    with jax.numpy_dtype_promotion("standard"):  # as a user's process runs: optax's adamw promotes an integer
        lowered = update.make_step(SMALL, optimizer, mesh, loss=algorithms.choose(config).loss, config=config).lower(
            state, rows
        )
    assert "splash" in lowered.as_text(debug_info=True)
    assert "tpu_custom_call" in lowered.as_text()


@pytest.mark.tpu_compile
@pytest.mark.slow
def test_a_small_run_fits_four_chips_and_its_bytes_are_those_by_hand(v5e_4):
    config = real_settings(mesh={"fsdp": 2, "tensor": 2})
    with jax.numpy_dtype_promotion("standard"):
        found = plan.examine(SMALL, "small", v5e_4, config, compilation.compiler(SMALL, v5e_4, lambda _: None))
    assert found.fits
    assert found.advice == ""
    matrices = 2 * 1024 * 256 + 2 * (2 * 256 * 512 + 2 * 256 * 256 + 3 * 256 * 512)
    params = 4 * (matrices // 4 + 2 * 2 * 256 + 256)
    for phase in found.phases:
        assert phase.is_measured
        assert phase.kinds["params"] == params
        assert phase.kinds["temporaries"] > 0
        assert phase.kinds["programs"] > 0
    compiled = found.update
    assert isinstance(compiled, compilation.Measured)
    kinds = {phase.name: phase.kinds for phase in found.phases}["update"]
    arguments = kinds["params"] + kinds["optimizer"] + kinds["batch"]
    # Arrays with few rows are padded to the chip's tiles; the new state is written over the old one.
    assert arguments <= compiled.arguments < 1.05 * arguments
    assert compiled.aliased >= params * 3
    assert compiled.collectives["all-gather"] > 0


@pytest.mark.tpu_compile
def test_a_model_that_is_too_large_is_ruled_out_without_compiling(v5e_4):
    seven = weights.published.ARCHITECTURES["Qwen/Qwen2.5-Math-7B"]

    def never(program, config):
        pytest.fail(f"compiled {program}")

    found = plan.examine(seven, "7B", v5e_4, real_settings(), never)
    assert not found.fits
    assert found.update is None
    assert "--topology v5e-" in found.advice
    assert "by shapes alone" in plan.sentences(found)


@pytest.mark.tpu_compile
def test_a_program_too_large_for_the_chip_is_a_result(v5e_4):
    array = jax.ShapeDtypeStruct((2**36,), jnp.int8, sharding=jax.sharding.SingleDeviceSharding(v5e_4.devices[0]))
    found = compilation.measure(jax.jit(lambda array: array + jnp.int8(1)).lower(array).compile)
    assert isinstance(found, compilation.TooLarge)
    assert found.needed > 2**36
    assert "available HBM" in found.reason
