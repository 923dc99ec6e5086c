"""Wrong input gives exit code 2 and one message that names the correction, and nothing is overwritten."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import yaml
from support import hf_checkpoints, tiny_runs

from reval_jax import cli, run_directory


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pristine")
    tiny_runs.write_files(directory)
    return directory


@pytest.fixture
def files(pristine, tmp_path):
    """A new directory with a tiny model, its data and config.yaml, which a test may damage."""
    directory = tmp_path / "files"
    shutil.copytree(pristine, directory)
    text = (directory / "config.yaml").read_text().replace(str(pristine), str(directory))
    (directory / "config.yaml").write_text(text)
    return directory


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_config(files, section, **fields):
    tree = yaml.safe_load((files / "config.yaml").read_text())
    tree[section] |= fields
    (files / "config.yaml").write_text(yaml.safe_dump(tree))


def refused(files, capsys, *options, run_dir=None, config=None):
    """The message of a refused `reval train`; checks the exit code, and that nothing was written."""
    before = tiny_runs.tree_hash(files.parent)
    arguments = ["--config", str(config or files / "config.yaml"), "--run-dir", str(run_dir or files.parent / "run")]
    code = cli.main(["train", *arguments, *options])
    captured = capsys.readouterr()
    assert code == 2, captured
    assert captured.out == ""
    assert captured.err.count("reval: ") == 1
    assert captured.err.startswith("reval: ")
    assert "Traceback" not in captured.err
    assert tiny_runs.tree_hash(files.parent) == before, "a refused command wrote something"
    return captured.err


def refused_flag(files, capsys, *options):
    """The message of tyro about wrong flags, without its frame."""
    before = tiny_runs.tree_hash(files.parent)
    code = cli.main(["train", "--config", str(files / "config.yaml"), "--run-dir", str(files.parent / "run"), *options])
    captured = capsys.readouterr()
    assert code == 2, captured
    assert captured.out == ""
    assert captured.err.count("For full helptext") == 1
    assert "Traceback" not in captured.err
    assert tiny_runs.tree_hash(files.parent) == before
    return " ".join(re.sub("[│─╭╮╰╯]", " ", captured.err).split())


GRPO = ("--update.objective", "grpo", "--update.reference_reset_every", "0")
OVERRIDES = {
    "missing model": (("--model.path", "no/such/place/model"), "model.path='no/such/place/model' does not exist"),
    "no model": (("--model.path", ""), "model.path is empty"),
    "missing data": (("--task.dataset", "nowhere.jsonl"), "task.dataset=nowhere.jsonl does not exist"),
    "no data": (("--task.dataset", ""), "task.dataset is empty"),
    "prompt too long": (("--task.max_prompt_tokens", "3"), "task.max_prompt_tokens=3, but 6 of the 6 prompts"),
    "wrong template": (("--task.template", "r1_distill"), "is not one token of this model's tokenizer"),
    "slots do not divide over devices": (
        ("--rollout.decode_slots", "6"),
        "rollout.decode_slots=6 does not divide over the 8",
    ),
    "one slot a device": (("--rollout.decode_slots", "8"), "two or more for each. Use a multiple of 8, for example 16"),
    "a setting by its old name": (
        ("--update.reward", "binary"),
        "'update.reward' is called 'update.reward_design' now",
    ),
    "mesh does not fit": (("--mesh.data", "3"), "does not make 8, the number of cpu devices"),
    "mesh of no devices": (("--mesh.fsdp", "0"), "mesh.fsdp=0"),
    "group_normalized with one sample": (
        (
            "--update.reward_design",
            "group_normalized",
            "--rollout.samples_per_prompt",
            "1",
            "--rollout.prompts_per_round",
            "8",
        ),
        "update.reward_design=group_normalized with rollout.samples_per_prompt=1",
    ),
    "buffer smaller than a batch": (("--replay.capacity", "7"), "replay.capacity=7 is smaller than a batch of 8"),
    "batch is not the fresh batch": (
        ("--update.batch_size", "16"),
        "Set update.batch_size=8, or update.fresh_first=false",
    ),
    "batch larger than the first round": (
        ("--update.batch_size", "16", "--update.fresh_first", "False"),
        "update.batch_size=16 is larger than the buffer after the first round",
    ),
    "grpo on replay": (
        (*GRPO, "--update.fresh_first", "False"),
        "update.objective=grpo with update.fresh_first=false",
    ),
    "grpo with top_k": ((*GRPO, "--rollout.top_k", "5"), "rollout.top_k=5"),
    "grpo with top_p": ((*GRPO, "--rollout.top_p", "0.9"), "rollout.top_p=0.9"),
    "grpo that does not split": (
        (*GRPO, "--update.updates_per_round", "3"),
        "update.updates_per_round=3 does not divide update.batch_size=8",
    ),
    "grpo with a reference reset": (
        ("--update.objective", "grpo"),
        "update.objective=grpo with update.reference_reset_every=3",
    ),
    "optimizer reset that never comes": (
        ("--update.reset_optimizer", "True", "--update.reference_reset_every", "0"),
        "update.reset_optimizer=true with update.reference_reset_every=0",
    ),
    "number out of bounds": (("--run.rounds", "0"), "run.rounds=0: input should be greater than 0"),
    "number not finite": (("--optimizer.learning_rate", "inf"), "optimizer.learning_rate=inf"),
    "missing benchmark": (("--eval.benchmarks", "absent.jsonl"), "absent.jsonl does not exist"),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_settings_that_cannot_train_are_refused(files, capsys, name):
    options, message = OVERRIDES[name]
    assert message in refused(files, capsys, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--update.batchsize", "8"), "--update.batch_size"),
        (("--optimiser.learning_rate", "1"), "--optimizer.learning_rate"),
        (("--run.rounds", "three"), "--run.rounds"),
        (("--model.compute_dtype", "float16"), "bfloat16"),
    ],
)
def test_flags_that_do_not_exist_or_parse_are_refused_with_the_nearest(files, capsys, options, message):
    stderr = refused_flag(files, capsys, *options)
    assert options[0] in stderr
    assert message in stderr


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("update", {"batchsize": 8}, "unknown key 'update.batchsize'. Did you mean 'update.batch_size'?"),
        ("run", {"round": 8}, "unknown key 'run.round'. Did you mean 'run.rounds'?"),
        ("run", {"rounds": "many"}, "run.rounds='many'"),
        (
            "update",
            {"objective": "grppo"},
            "update.objective='grppo': no objective has this name. Did you mean 'grpo'?",
        ),
        ("update", {"objective": ["reval"]}, "update.objective=['reval']: no objective has this name"),
        ("model", {"compute_dtype": "float16"}, "model.compute_dtype='float16'"),
        ("update", {"beta": -1.0}, "update.beta=-1.0"),
        ("update", {"reference_reset_every": True}, "update.reference_reset_every=True"),
    ],
)
def test_a_config_file_with_a_wrong_key_or_value_is_refused_by_name(files, capsys, section, fields, message):
    edit_config(files, section, **fields)
    assert message in refused(files, capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [unclosed", "is not YAML"),
        ("- a\n- list\n", "holds a list, not sections"),
        ("modell:\n  path: x\n", "unknown key 'modell'. Did you mean 'model'?"),
        ("model: SmolLM2\n", "model is a section with fields, but its value is 'SmolLM2'"),
        ("1: 2\n", "1"),
        ("\x00", "is not YAML"),
    ],
)
def test_a_config_file_that_holds_no_settings_is_refused(files, capsys, text, message):
    (files / "config.yaml").write_text(text)
    assert message in refused(files, capsys)


def test_a_missing_config_file_is_named(files, capsys):
    assert "absent.yaml cannot be read: No such file" in refused(files, capsys, config=files / "absent.yaml")


def test_a_config_file_that_is_a_directory_is_named(files, capsys):
    assert f"{files} cannot be read" in refused(files, capsys, config=files)


def test_an_unknown_architecture_is_refused(files, capsys):
    edit_json(files / "model" / "config.json", model_type="gpt_neox")
    assert "model_type='gpt_neox', but only llama, qwen2, qwen3 are implemented" in refused(files, capsys)


def test_truncated_weights_are_refused_before_the_run_directory_is_made(files, capsys):
    weights = files / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "truncated or damaged" in refused(files, capsys)


def test_missing_weights_are_refused(files, capsys):
    (files / "model" / "model.safetensors").unlink()
    assert "has no *.safetensors file" in refused(files, capsys)


def test_weights_of_a_wrong_dtype_are_refused(files, capsys):
    path = files / "model" / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int32)
    safetensors.numpy.save_file(tensors, path)
    stderr = refused(files, capsys)
    assert "model.norm.weight" in stderr
    assert "I32" in stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("\n\n", "has no rows"),
        ('{"question": "2+2="}\n', "no field 'answer'"),
        ('{"question": "2+2=", "answer": 4}\n', "'answer' is a int, not a string"),
        ("not json\n", "not JSON"),
    ],
)
def test_a_data_set_without_usable_rows_is_refused(files, capsys, text, message):
    (files / "train.jsonl").write_text(text)
    assert message in refused(files, capsys)


def test_a_run_directory_below_a_file_is_refused(files, capsys):
    stderr = refused(files, capsys, run_dir=files / "train.jsonl" / "run")
    assert f"{files / 'train.jsonl'} is not a writable directory" in stderr


def test_a_run_directory_that_is_a_file_is_refused(files, capsys):
    assert "is not a writable directory" in refused(files, capsys, run_dir=files / "train.jsonl")


def test_a_directory_with_other_files_is_refused_as_a_run(files, capsys):
    assert "holds files but no config.yaml" in refused(files, capsys, run_dir=files / "model")


def test_a_directory_with_the_users_own_config_is_not_overwritten(files, capsys):
    assert "is a config.yaml that no run wrote" in refused(files, capsys, run_dir=files)


@pytest.fixture
def claimed(files):
    """A run directory that belongs to the settings in config.yaml."""
    run_dir = files.parent / "run"
    config = tiny_runs.with_overrides(files / "config.yaml", {})
    run_directory.claim(run_dir, config, data_fingerprint="0123456789abcdef", round=0)
    (run_dir / "metrics.jsonl").write_text("{}\n")
    return run_dir


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--update.beta", "0.25", "update.beta: 0.5 -> 0.25"),
        ("--run.seed", "1", "run.seed: 0 -> 1"),
        ("--rollout.temperature", "0.5", "rollout.temperature: 1.0 -> 0.5"),
        ("--replay.capacity", "40", "replay.capacity: 20 -> 40"),
    ],
)
def test_resuming_with_other_settings_is_refused(files, claimed, capsys, option, value, message):
    stderr = refused(files, capsys, option, value, run_dir=claimed)
    assert message in stderr
    assert "--run-dir" in stderr


def test_resuming_with_another_data_set_under_the_same_name_is_refused(files, claimed, capsys):
    assert "began with 0123456789abcdef" in refused(files, capsys, run_dir=claimed)


def test_a_model_whose_vocabulary_is_smaller_than_its_tokenizers_is_refused(files, capsys):
    shutil.rmtree(files / "model")
    hf_checkpoints.tiny_checkpoint(files / "model", vocab_size=hf_checkpoints.VOCABULARY - 8)
    assert "Use the tokenizer that belongs to these weights" in refused(files, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), ""),
        (("traim",), "Did you mean 'train'?"),
        (("verify",), "verify needs PREDICTION and GOLD"),
        (("verify", "1"), "verify needs PREDICTION and GOLD"),
        (("sample",), "--prompt is empty"),
        (
            ("eval",),
            "eval.benchmarks is empty. Name at least one .jsonl file, directory of `reval data prepare` or procedural:NAME",
        ),
        (("train",), "model.path is empty"),
        (("train", "--config"), "argument --config: expected one argument"),
        (("report", "--run-dir", "absent"), "absent has no metrics yet"),
        (("export", "--run-dir", "absent", "--output", "out"), "cannot be read"),
        (("sample", "--run-dir", "absent", "--prompt", "x"), "cannot be read"),
        (("verify", "--json", "absent/file", "1", "1"), "--json absent/file cannot be written"),
    ],
)
def test_every_command_refuses_with_code_2_and_one_message(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(list(arguments)) == 2
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.count("reval: ") == bool(message)
    assert not list(Path(tmp_path).iterdir())


@pytest.mark.parametrize("command", ["sample", "export", "eval"])
def test_a_run_without_that_checkpoint_is_refused(files, claimed, capsys, command):
    extra = {
        "sample": ["--prompt", "1+1="],
        "export": ["--output", str(files / "out")],
        "eval": [],
    }[command]
    before = tiny_runs.tree_hash(files.parent)
    assert cli.main([command, "--run-dir", str(claimed), *extra]) == 2
    assert "has no checkpoints" in capsys.readouterr().err
    assert tiny_runs.tree_hash(files.parent) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompt", "1+1=", "--samples", "0"), "--samples 0 asks for no response"),
        (("--prompt", ""), "--prompt is empty"),
        (("--prompt", "1+1=", "--round", "3"), "--round 3 names a checkpoint, but no run"),
    ],
)
def test_an_impossible_sample_is_refused(files, capsys, options, message):
    assert cli.main(["sample", "--config", str(files / "config.yaml"), *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize("text", ["a: [unclosed", "3", "model: {path: x}"])
def test_a_foreign_config_in_the_run_directory_is_refused(files, capsys, text):
    run_dir = files.parent / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(text)
    assert "config.yaml" in refused(files, capsys)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('a system message is required') }}", "TemplateError: a system message is required"),
        ("{% if messages %}{{ x", "TemplateSyntaxError"),
        ("{{ foo.bar.baz }}", "UndefinedError"),
        (
            "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}",
            "is not in its prompt ''",
        ),
    ],
)
def test_a_chat_template_that_fails_or_drops_the_question_is_refused(files, capsys, template, message):
    (files / "model" / "chat_template.jinja").write_text(template)
    stderr = refused(files, capsys, "--task.template", "chat", "--task.max_prompt_tokens", "64")
    assert message in stderr
    assert "Use task.template=raw" in stderr
