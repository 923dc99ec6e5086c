"""Settings: written files load back, the hash changes only with fields that affect results, and every field is checked."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import pytest
import yaml

from reval_jax import cli, config, config_checks, data, plugins, pool, run_directory, weights
from reval_jax.data import rows

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
FIELDS = [
    (section.name, field.name)
    for section in dataclasses.fields(config.Config)
    for field in dataclasses.fields(section.default)
]
FREE = {(section, field) for section, field in FIELDS if section in ("eval", "checkpoint")} | {
    ("run", "rounds"),
    ("run", "stop_score"),
    ("run", "stop_rounds"),
    ("run", "sinks"),
    ("run", "max_rollouts_gib"),
    ("run", "grace_seconds"),
    ("rollout", "decode_window"),
    ("verifier", "workers"),
    ("verifier", "wall_limit"),
    ("verifier", "tasks_per_worker"),
    ("verifier", "max_failed_share"),
}
"""What a resumed run may change: no result depends on it."""


def other_value(section: str, field: str):
    """A valid value that is not the default."""
    kind = getattr(config.Config(), section)
    value = getattr(kind, field)
    hint = typing.get_type_hints(type(kind))[field]
    if typing.get_origin(hint) is typing.Literal:
        return next((choice for choice in typing.get_args(hint) if choice != value), None)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.5
    return {str: "other:value", tuple: ("other.jsonl",), type(None): 0.5}[type(value)]


def with_field(section: str, field: str, value: object) -> config.Config:
    settings = config.Config()
    return dataclasses.replace(settings, **{section: dataclasses.replace(getattr(settings, section), **{field: value})})


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_config_loads_and_can_train(file):
    settings = config_checks.check(config.load(file))
    assert config.from_tree(config.to_tree(settings)) == settings


def test_there_are_shipped_configs():
    assert SHIPPED


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_a_resolved_config_loads_back_equal_whatever_field_is_set(section, field, tmp_path):
    value = other_value(section, field)
    if value is None:
        return  # a choice of one
    settings = with_field(section, field, value)
    run_directory.claim(tmp_path / "run", settings, data_fingerprint="0", round=0)
    assert config.load(tmp_path / "run" / "config.yaml") == settings
    assert settings != config.Config()


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_the_hash_changes_exactly_for_fields_that_alter_results(section, field):
    value = other_value(section, field)
    if value is None:
        return
    before, after = config.Config(), with_field(section, field, value)
    is_free = (section, field) in FREE
    assert (config.results_hash(before) == config.results_hash(after)) == is_free
    assert bool(config.changed_results(before, after)) == (not is_free)
    changes = config.changed(before, after)
    assert len(changes) == 1
    assert changes[0].startswith(f"{section}.{field}: ")


def test_the_hash_does_not_depend_on_the_order_of_the_file(tmp_path):
    tree = config.to_tree(config.Config())
    backwards = {section: dict(reversed(fields.items())) for section, fields in reversed(tree.items())}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(backwards, sort_keys=False))
    assert config.results_hash(config.load(tmp_path / "a.yaml")) == config.results_hash(config.Config())


def test_an_empty_file_is_the_defaults(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    assert config.load(tmp_path / "empty.yaml") == config.Config()


def test_two_wrong_keys_are_both_named():
    with pytest.raises(ValueError, match=r"update\.betta.*update\.beta.*run\.sed.*run\.seed"):
        config.from_tree({"update": {"betta": 1.0}, "run": {"sed": 1}})


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("rollout", "temperature", 0.0),
        ("rollout", "temperature", float("inf")),
        ("rollout", "top_p", 0.0),
        ("rollout", "top_p", 1.1),
        ("rollout", "top_k", -1),
        ("update", "clip_low", 1.1),
        ("update", "clip_dual", 1.0),
        ("optimizer", "b2", 1.0),
        ("optimizer", "learning_rate", float("nan")),
        ("mesh", "fsdp", -2),
        ("run", "seed", -1),
        ("run", "seed", 2**32),
        ("run", "stop_score", 1.5),
        ("checkpoint", "keep", 0),
        ("replay", "capacity", 0),
    ],
)
def test_values_out_of_bounds_are_refused_by_name(section, field, value):
    with pytest.raises(ValueError, match=rf"{section}\.{field}="):
        config.from_tree({section: {field: value}})


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("run", "rounds", 2.5),
        ("run", "rounds", "ten"),
        ("update", "beta", "small"),
        ("update", "fresh_first", "perhaps"),
    ],
)
def test_wrong_types_are_refused_by_name(section, field, value):
    with pytest.raises(ValueError, match=rf"{section}\.{field}="):
        config.from_tree({section: {field: value}})


def test_the_papers_defaults_are_the_papers():
    settings = config.Config()
    assert settings.fresh_size == settings.update.batch_size == 1024
    assert (settings.replay.capacity, settings.update.updates_per_round, settings.update.fresh_first) == (5120, 2, True)
    assert (settings.update.beta, settings.optimizer.learning_rate, settings.run.rounds) == (0.002, 1e-6, 650)
    assert (settings.optimizer.weight_decay, settings.optimizer.warmup_updates, settings.optimizer.max_grad_norm) == (
        0.01,
        0,
        1.0,
    )
    assert (settings.update.clip_low, settings.update.clip_high, settings.update.clip_dual) == (0.2, 0.28, 3.0)
    assert settings.max_tokens == 1024 + 8192


@pytest.mark.parametrize("old", config.RENAMED)
def test_a_setting_by_its_old_name_is_refused_with_the_new_one(old):
    section, field = old.split(".")
    with pytest.raises(ValueError, match=f"'{old}' is called '{config.RENAMED[old]}' now"):
        config.from_tree({section: {field: "drop"}})


@pytest.mark.parametrize("old", config.REMOVED)
def test_a_former_setting_is_refused_with_the_reason(old):
    section, field = old.split(".")
    with pytest.raises(ValueError, match=f"'{old}' is no setting any more: {config.REMOVED[old]}"):
        config.from_tree({section: {field: "loop"}})


def test_no_old_name_is_a_setting_and_every_new_one_is():
    names = {f"{section}.{field}" for section, field in FIELDS}
    assert not names & (config.RENAMED.keys() | config.REMOVED.keys())
    assert set(config.RENAMED.values()) <= names


def load_text(directory: Path, text: str) -> config.Config:
    file = directory / "c.yaml"
    file.write_text(text)
    return config.load(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run:\n  seed: 1\nmodel: {}\nrun:\n  rounds: 2\n", r"c\.yaml has 'run' twice, in lines 1 and 4"),
        ("run:\n  seed: 1\n  rounds: 2\n  seed: 1\n", r"has 'seed' twice, in lines 2 and 4"),
        ("run: {seed: 1, seed: 2}", r"has 'seed' twice, in lines 1 and 1"),
        ("run: [", r"c\.yaml is not YAML"),
        ("[" * 5000, r"c\.yaml is nested too deeply"),
        ("run: {seed: " + "1" * 5000 + "}", r"c\.yaml has a number of 5000 digits in line 1"),
        ("run: {seed: 0x" + "f" * 5000 + "}", r"c\.yaml has a number of 5002 digits in line 1"),
        ("run:\n  seed: !!bool maybe", r"c\.yaml has the tag 'tag:yaml\.org,2002:bool' in line 2"),
        ("run: !!timestamp abc", r"has the tag .*timestamp' in line 1"),
        ("run: !!map [1]", r"has the tag .*map' in line 1"),
        ("run: &b {seed: 1}\nmodel:\n  <<: *b", r"has the merge key '<<' in line 3, which YAML 1\.2 does not know"),
        (
            "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)),
            r"c\.yaml has more than 20 aliases",
        ),
        ("run.rounds: 5", r"unknown key 'run\.rounds': a field stands below its section\. Write run: \{rounds: …\}"),
        ("run: {run.rounds: 5}", r"unknown key 'run\.run\.rounds'\. Did you mean 'run\.rounds'"),
        ("optimizer: {learning_rate: true}", r"optimizer\.learning_rate=True: "),
        ("optimizer: {learning_rate: '1e-6'}", r"optimizer\.learning_rate='1e-6': "),
        ("optimizer: {learning_rate: 1_000.5}", r"optimizer\.learning_rate='1_000\.5': "),
        ("run: {rounds: 1:30}", r"run\.rounds='1:30': "),
        ("run: {rounds: 1_000}", r"run\.rounds='1_000': "),
        ("run: {rounds: 5.0}", r"run\.rounds=5\.0: "),
        ("run: {seed: true}", r"run\.seed=True: "),
        ("run: {stop_score: yes}", r"run\.stop_score='yes': "),
        ("mesh: {fsdp: true}", r"mesh\.fsdp=True: "),
        ("update: {fresh_first: yes}", r"update\.fresh_first='yes': "),
        ("update: {fresh_first: off}", r"update\.fresh_first='off': "),
        ("update: {fresh_first: 1}", r"update\.fresh_first=1: "),
        ("model: {path: 1:30, compute_dtype: 2024-01-01}", r"model\.compute_dtype='2024-01-01'"),
        ("rollout: {temperature: 1e-7}", r"rollout\.temperature=1e-07: .*greater than or equal to"),
        ("eval: {temperature: 1e-42}", r"eval\.temperature=1e-42: "),
        ("rollout: {temperature: 1e39}", r"rollout\.temperature=1e\+39: "),
    ],
)
def test_what_yaml_would_silently_read_as_something_else_is_refused(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_text(tmp_path, text)


def test_numbers_and_texts_are_read_as_yaml_1_2_reads_them(tmp_path):
    """https://yaml.org/spec/1.2.2/#1032-tag-resolution"""
    read = load_text(
        tmp_path,
        "run: {seed: 010, rounds: 0x1F, stop_score: ~}\noptimizer: {learning_rate: 1e-6, weight_decay: .5, max_grad_norm: 2}\n"
        "update: {clip_dual: .inf, fresh_first: False}\nmodel: {path: yes}\ntask: {instruction: 1:30, split: on}\n"
        "replay: {capacity: 0o17}\n",
    )
    assert (read.run.seed, read.run.rounds, read.run.stop_score, read.replay.capacity) == (10, 31, None, 15)
    assert (read.optimizer.learning_rate, read.optimizer.weight_decay, read.optimizer.max_grad_norm) == (1e-6, 0.5, 2)
    assert (read.update.clip_dual, read.update.fresh_first) == (float("inf"), False)
    assert (read.model.path, read.task.instruction, read.task.split) == ("yes", "1:30", "on")


@pytest.mark.parametrize(
    "text", ["1e5", "0o17", "010", "1:30", "yes", "true", "~", "", "1_000", ".5", "2024-01-01", "<<", "a: b", "é\n"]
)
def test_a_text_that_looks_like_something_else_survives_a_runs_config(text, tmp_path):
    settings = dataclasses.replace(config.Config(), task=config.Task(instruction=text))
    run_directory.claim(tmp_path / "run", settings, data_fingerprint="0", round=0)
    assert config.load(tmp_path / "run" / "config.yaml") == settings
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["task"]["instruction"] == text


def test_home_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text('{"question": "2+2=", "answer": "4"}\n')
    (tmp_path / "home_rewards.py").write_text("def score(response, answer):\n    return 1.0\n")
    assert [row.question for row in rows.read("~/rows.jsonl")] == ["2+2="]
    assert rows.label("~/rows.jsonl") == "rows"
    assert data.inspect("~/rows.jsonl", data.PrepareSettings())["rows"] == 1
    assert plugins.load("s", "home_rewards:score", directory="~")("", "") == 1.0
    with pytest.raises(ValueError, match=r"rollout\.pool=~/pool\.npz cannot be read: No such file"):
        pool.load("~/pool.npz")
    (tmp_path / "p.yaml").write_text("input: [~/rows.jsonl]\noutput: ~/prepared\n")
    assert cli.main(["data", "prepare", "--config", "~/p.yaml", "--json=~/summary.json"]) == 0
    assert (tmp_path / "prepared").is_dir()
    assert (tmp_path / "summary.json").is_file()
    with pytest.raises(ValueError, match=r"model\.path='~no-such-user/x' does not exist"):
        weights.resolve("~no-such-user/x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: true", "seed=True: a number is needed"),
        ("quarantine_fraction: 1:30", "quarantine_fraction='1:30': a number is needed"),
        ("seed: 1\nseed: 2", "has 'seed' twice, in lines 1 and 2"),
    ],
)
def test_the_settings_of_data_prepare_are_read_by_the_same_rules(text, message, tmp_path, capsys):
    (tmp_path / "p.yaml").write_text(text)
    assert cli.main(["data", "prepare", "--config", str(tmp_path / "p.yaml"), "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
