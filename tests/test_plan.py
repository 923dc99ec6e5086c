"""`reval plan`: architectures, bytes by kind, and the command with a fake compiler."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import pytest
from support import fake_pods, hf_checkpoints, tiny_programs

from reval_jax import batch, cli, model, weights
from reval_jax import config as config_lib
from reval_jax.tools.plan import compilation, estimate, memory, topology


def needs(needed: int) -> compilation.ProgramMemory:
    """A compiled program that needs this many bytes of temporaries."""
    return compilation.ProgramMemory(0, 0, 0, needed, code=0, seconds=0.0, collectives={})


# --- architectures ---------------------------------------------------------------------------------------------------


def test_a_published_shape_needs_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("a request to the hub"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    for path, parameters in [
        ("Qwen/Qwen2.5-Math-7B", 7_615_616_512),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1_777_088_000),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
    ]:
        architecture, source = weights.find_architecture(path)
        counted = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.abstract_params(architecture)))
        assert counted == parameters
        assert "shipped with reval_jax" in source


def test_a_local_config_is_preferred_to_the_published_shapes(monkeypatch, tmp_path):
    architecture = hf_checkpoints.tiny_architecture()
    directory = Path(hf_checkpoints.tiny_checkpoint(tmp_path / "tiny", architecture.family))
    assert weights.find_architecture(str(directory)) == (architecture, str(directory))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(directory / "config.json"))
    assert weights.find_architecture("Qwen/Qwen2.5-Math-7B")[0] == architecture


def test_for_another_hub_id_only_the_configuration_is_downloaded(monkeypatch, tmp_path):
    architecture = hf_checkpoints.tiny_architecture()
    directory = Path(hf_checkpoints.tiny_checkpoint(tmp_path / "tiny", architecture.family))
    requests = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *names: requests.append(names) or str(directory / "config.json")
    )
    assert weights.find_architecture("some/model")[0] == architecture
    assert requests == [("some/model", "config.json")]


# --- accounting ------------------------------------------------------------------------------------------------------


def test_bytes_from_shapes_equal_sums_by_hand():
    """A llama of 2 layers, width 16, 4 query and 2 key/value heads of 8, feed-forward 24, 320 tokens, on fsdp 4 x tensor 2."""
    architecture = hf_checkpoints.tiny_architecture(
        width=16, num_heads=4, num_kv_heads=2, head_size=8, mlp_width=24, tied_head=False
    )
    config = tiny_programs.settings(mesh={"fsdp": 4, "tensor": 2}, model={"compute_dtype": "bfloat16", "remat": "full"})
    bytes_by_phase = {
        phase.name: phase.kinds for phase in memory.lower_bounds(architecture, fake_pods.fake_pod(), config)
    }
    # Split over both axes: embedding, head, query, output, key, value, gate, up, down. Every device holds the whole norms.
    split = 2 * 320 * 16 + 2 * (2 * 16 * 4 * 8 + 2 * 16 * 2 * 8 + 3 * 16 * 24)
    norms = 2 * 2 * 16 + 16
    params = 4 * (split // 8 + norms)
    assert bytes_by_phase["update"]["params"] == bytes_by_phase["update"]["gradients"] == params
    assert (
        bytes_by_phase["update"]["optimizer"] == 2 * params + 4 + 4
    )  # Adam's two moments, its count and the schedule's
    assert bytes_by_phase["score"]["reference"] == 2 * split // 8 + 4 * norms
    assert bytes_by_phase["sync_weights"]["sampler_copy"] == 2 * split // 2 + 4 * norms
    # 2 layers' keys and values of 4 slots a device, 16 + 8 positions as one block of 128, one head of 8 a device, bfloat16.
    assert bytes_by_phase["generate"]["kv_cache"] == 2 * 2 * 4 * 128 * 1 * 8 * 2
    # 8 prompts of 16 tokens are prefilled together, and every device holds the whole result.
    assert bytes_by_phase["generate"]["prompt_cache"] == 2 * 2 * 8 * 16 * 1 * 8 * 2
    # A batch has rows of 32 tokens, 8 responses and 4 slots; 2 micro-batches would be one row a device too many: M = 1, R = 8.
    shape = batch.shape_of(batch.row_length(24), 4, limits=tiny_programs.limits(config))
    rows = shape.micro_batches * shape.rows // 4
    assert (
        bytes_by_phase["update"]["batch"]
        == 4 * rows * (3 * shape.tokens + 3 * shape.responses + 6 * shape.slots) + 3 * 4
    )
    tokens = shape.rows // 4 * shape.tokens
    assert bytes_by_phase["update"]["temporaries"] == 2 * tokens * 16 * 2 + 16 * 320 // 2 * (2 + 4)


def test_a_phase_is_its_programs_arrays_and_the_other_arrays_on_the_device():
    kinds = dict.fromkeys(memory.KINDS, 0) | {"params": 10, "optimizer": 20, "reference": 5, "batch": 1}
    score = memory.with_programs(
        memory.Phase("score", kinds, is_compiled=False),
        {"score": compilation.ProgramMemory(6, 2, 1, 100, code=7, seconds=0.0, collectives={})},
    )
    assert score.kinds["temporaries"] == 6 + 2 - 1 + 100 - 5 - 1
    assert score.total == 10 + 20 + (6 + 2 - 1 + 100) + 7
    assert score.fits(score.total)
    assert not score.fits(score.total - 1)


def test_a_program_that_the_compiler_refused_does_not_fit_at_any_capacity():
    kinds = dict.fromkeys(memory.KINDS, 0)
    refused = memory.with_programs(
        memory.Phase("update", kinds, is_compiled=False), {"update": compilation.TooLarge(0, "out of memory", 0.0)}
    )
    assert refused.refusal == "out of memory"
    assert not refused.fits(2**60)


def test_a_refusal_for_lack_of_memory_is_a_result_and_any_other_an_error():
    def fail(text):
        def build():
            raise jax.errors.JaxRuntimeError(text)

        return build

    result = compilation.measure(
        fail("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.25G of 15.75G hbm.")
    )
    assert isinstance(result, compilation.TooLarge)
    assert result.needed == int(18.25 * fake_pods.GIB)
    with pytest.raises(jax.errors.JaxRuntimeError):
        compilation.measure(fail("INTERNAL: Mosaic failed to compile"))


def test_grpo_keeps_no_reference_and_the_config_decides_where_reval_does():
    pod, architecture = fake_pods.fake_pod(), hf_checkpoints.tiny_architecture()
    grpo = tiny_programs.settings(update={"objective": "grpo", "updates_per_round": 1})
    assert memory.phases(grpo) == ["update", "sync_weights", "generate"]
    for place, expected in [("host", {"score"}), ("device", {"score", "update", "sync_weights", "generate"})]:
        config = tiny_programs.settings(update={"reference_memory": place})
        phases = memory.lower_bounds(architecture, pod, config)
        assert {phase.name for phase in phases if phase.kinds["reference"]} == expected


def test_collectives_are_counted_by_kind_and_once_each():
    text = (
        "  %ag = bf16[8]{0} all-gather(%x), dimensions={0}\n"
        "  %s = (bf16[2]{0}, bf16[8]{0}) all-gather-start(%y), dimensions={0}\n"
        "  %d = bf16[8]{0} all-gather-done(%s)\n"
        "  %r = f32[] all-reduce(%z), to_apply=%add\n"
    )
    assert compilation.count_collectives(text) == {"all-gather": 2, "all-reduce": 1}


def test_flops_are_six_a_weight_and_token_and_twelve_a_pair_of_tokens_over_two():
    architecture = weights.published.architecture("HuggingFaceTB/SmolLM2-135M-Instruct")
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
    """Replaces the chips by fake ones, and the compiler by one that reports 3 GiB for every program."""
    monkeypatch.setattr(topology, "require_compiler", lambda: None)
    monkeypatch.setattr(compilation, "open_pod", lambda slice_: fake_pods.fake_pod()._replace(topology=slice_))
    monkeypatch.setattr(compilation, "compiler", lambda *_: lambda program, config: needs(3 * fake_pods.GIB))


def test_json_holds_the_contract(config_file, no_tpu, capsys, tmp_path):
    arguments = ["plan", "--config", str(config_file), "--topology", "v5e-8", "--model.remat", "dots"]
    assert cli.main([*arguments, "--json", str(tmp_path / "p.json")]) == 0
    text = capsys.readouterr().out
    plan = json.loads((tmp_path / "p.json").read_text())
    assert plan["fits"] is True
    assert plan["settings"]["model"]["remat"] == "dots"
    assert config_lib.from_tree(plan["settings"])
    bytes_per_device = dict(plan["bytes_per_device"])
    assert bytes_per_device.pop("capacity") == 10 * fake_pods.GIB
    assert list(bytes_per_device) == ["score", "update", "sync_weights", "generate"]
    for kinds in bytes_per_device.values():
        assert kinds.keys() == {*memory.KINDS, "total"}
        assert kinds["total"] == sum(kinds[kind] for kind in memory.KINDS)
    assert "fits; the fullest phase: " in text
    assert "assumed: 8 trajectories, every one 24 tokens long" in text
    assert cli.main([*arguments, "--json", "/dev/stdout"]) == 0
    assert json.loads(capsys.readouterr().out) == plan


def test_a_plan_that_does_not_fit_names_the_phase_and_the_setting_to_change(config_file, no_tpu, capsys, monkeypatch):
    monkeypatch.setattr(
        compilation,
        "compiler",
        lambda *_: (
            lambda program, config: needs(
                (30 if program == "update" and config.model.remat != "full" else 3) * fake_pods.GIB
            )
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
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is True
    assert plan["settings"]["model"]["remat"] == "full"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v5e-255"], "--topology 'v5e-255' is not known"),
        ([], "--topology is missing"),
        (["--topology", "v5e-8", "--mesh.fsdp", "3"], "does not make 8"),
        (["--topology", "v5e-8", "--mesh.tensor", "3"], "mesh.tensor=3"),
    ],
)
def test_bad_input_is_refused(config_file, no_tpu, capsys, arguments, message):
    assert cli.main(["plan", "--config", str(config_file), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_a_compiler_the_command_names_the_package_to_install(config_file, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["plan", "--config", str(config_file), "--topology", "v5e-8"]) == 2
    assert "pip install 'libtpu==" in capsys.readouterr().err
