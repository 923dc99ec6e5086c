"""The test bed: its questions, runs that share compiled programs, and a journal that goes on where it was interrupted."""

from __future__ import annotations

import argparse
import hashlib
import json

import jax
import numpy as np
import pytest
from support import tiny_runs

from benchmarks.figures import grid, journal, plan
from benchmarks.figures.__main__ import dump, main, parse, write
from benchmarks.figures.experiments import FIGURES
from benchmarks.testbed import bed, questions, runs, supervised
from reval_jax import programs, weights


def test_a_letter_says_how_often_its_questions_are_taught_rightly():
    generator = np.random.default_rng(1)
    right = {letter: [] for letter in questions.SHARES}
    for question, answer in questions.taught(generator, 8000, 0.99):
        expression, letter = question[:-1], question[-1]
        one, sign, other = expression.partition("+") if "+" in expression else expression.partition("-")
        right[letter].append(
            int(one) + int(other) == int(answer) if sign == "+" else int(one) - int(other) == int(answer)
        )
    for letter, share in questions.SHARES.items():
        assert np.mean(right[letter]) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / len(right[letter])))
    known = {question for letter in questions.SHARES for question, _ in questions.known(letter)}
    assert not any(questions.is_missing(question) for question in known)


def test_a_sum_in_steps_has_the_running_totals():
    for question, answer in questions.steps(np.random.default_rng(0), 50):
        numbers = [int(number) for number in question.rstrip("=").split("+")]
        assert [int(total) for total in answer.rstrip(".").split(";")] == list(np.cumsum(numbers))[1:]


def test_only_answers_and_their_end_are_learned():
    tokens, is_answer = supervised.arrays([supervised.Example("3+5a", "8"), supervised.Example("9+9b", "18")], 8)
    names = supervised.tokenizer().convert_ids_to_tokens
    assert [names(row[mask].tolist()) for row, mask in zip(tokens, is_answer, strict=True)] == [
        ["8", "<eos>"],
        ["1", "8", "<eos>"],
    ]
    assert supervised.tokenizer()("3+5a")["input_ids"] == tokens[0, :4].tolist()


def test_a_bed_is_another_one_when_something_else_is_taught(monkeypatch):
    before = bed.plan_hash(bed.PLANS["short"])
    monkeypatch.setattr(questions, "STEP_ERROR", 0.5)
    assert bed.plan_hash(bed.PLANS["short"]) == before
    assert bed.plan_hash(bed.PLANS["long"]) != bed.plan_hash(bed.PLANS["short"])
    monkeypatch.setattr(questions, "CLEAN", 0.0)
    assert bed.plan_hash(bed.PLANS["short"]) != before


@pytest.mark.parametrize("kind", bed.PLANS)
def test_a_committed_bed_is_what_its_plan_says_and_begins_at_its_rates(kind):
    committed, plan = bed.bed(kind), bed.PLANS[kind]
    about = committed.about()
    assert about["plan"] == bed.plan_hash(plan), f"teach it again: python -m benchmarks.testbed.bed {kind} --help"
    assert about["weights"] == hashlib.sha256((committed.model / "model.safetensors").read_bytes()).hexdigest()
    if kind == "short":
        pretrained = weights.load(str(committed.model))
        for task, rates in about["success_rates"].items():
            if task.startswith("many"):
                assert 0.2 <= rates["mean"] <= 0.4
                continue
            ((question, rate),) = rates.items()
            assert json.loads(committed.data(task).read_text())["question"] == question
            level = bed.LEVELS["medium" if task == "tuning" else task.partition("_")[0]]
            assert rate == pytest.approx(level.rate, abs=bed.TOLERANCE)
            (example,) = (each for each in questions.known(level.letter) if each.question == question)
            found = supervised.probabilities(pretrained.architecture, pretrained.params, [example])
            assert found == pytest.approx(rate, abs=1e-3)


def test_the_sums_of_the_long_task_and_their_rate_are_those_of_its_model(tmp_path):
    committed = bed.bed("long")
    pretrained, made = weights.load(str(committed.model)), bed.Bed(tmp_path)
    found = bed._write_long(made, bed.PLANS["long"], pretrained.params)["success_rates"]["long_8"]["mean"]
    assert found == pytest.approx(bed.start("long", "long_8"), abs=1e-3)
    assert made.data("long_8").read_text() == committed.data("long_8").read_text()
    for line in made.data("long_8").read_text().splitlines():
        numbers = json.loads(line)["question"].rstrip("=").split("+")
        assert sum(map(int, numbers)) == int(json.loads(line)["answer"])


@pytest.mark.slow
def test_a_bed_can_be_taught_on_this_machine(tmp_path):
    """Rounding differs by machine, and so does what is learned: there are prompts of every level all the same."""
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix numbers
        taught = bed.teach("short", tmp_path / "short", log=str)
    assert set(taught.about()["success_rates"]) == set(bed.bed("short").about()["success_rates"])


@pytest.mark.slow
def test_runs_that_share_programs_are_those_that_do_not(tmp_path):
    file, shared = tiny_runs.write_files(tmp_path), programs.Programs()
    for seed in (0, 1):
        tiny_runs.play(file, tmp_path / f"shared_{seed}", shared=shared, run__seed=seed)
        tiny_runs.play(file, tmp_path / f"alone_{seed}", run__seed=seed)
        tiny_runs.assert_same_run(tmp_path / f"shared_{seed}", tmp_path / f"alone_{seed}")
    # The learning rate is a value, and not ignored.
    for name, programs_of in (("shared_faster", shared), ("alone_faster", None)):
        tiny_runs.play(file, tmp_path / name, shared=programs_of, run__seed=0, optimizer__learning_rate=0.03)
    tiny_runs.assert_same_run(tmp_path / "shared_faster", tmp_path / "alone_faster")
    with pytest.raises(AssertionError):
        tiny_runs.assert_same_run(tmp_path / "shared_faster", tmp_path / "shared_0")
    assert len(shared._made) == 1
    tiny_runs.play(file, tmp_path / "other", shared=shared, update__beta=0.25)
    assert len(shared._made) == 2


# --- The journal of the figures ---

FIGURE = plan.Figure(
    name="fig",
    title="",
    question="",
    tasks=("hard_1", "easy_1"),
    variants=(
        plan.Variant("two", {"update.updates_per_round": 2}, "two"),
        plan.Variant("four", {"update.updates_per_round": 4}, "four"),
        plan.Variant("two, faster", {"update.updates_per_round": 2}, "two", rate_factor=4),
    ),
    rounds=6,
    contrasts=(),
    seeds=(1, 2),
    metrics=("actor/loss",),
)


@pytest.fixture
def played(tmp_path, monkeypatch):
    """Plays cells by a formula instead of training; returns the list of what was played."""
    calls = []

    def play(config, run_dir, *, metrics, compiled):
        rate = config.optimizer.learning_rate
        calls.append((config.task.dataset.rpartition("/")[2], config.update.updates_per_round, config.run.seed, rate))
        # Best at 4.8e-4 with two updates, an edge of what is searched, and inside it with four.
        best = {2: 4.8e-4, 4: 1.2e-4}[config.update.updates_per_round]
        score = [1 - abs(np.log(rate / best)) / 10] * config.run.rounds
        numbers = {"score": score, "generated_tokens": [0] * len(score), "updates": [1] * len(score), "held_out": []}
        return {**numbers, "metrics": dict.fromkeys(metrics, score), "stopped": "rounds", "seconds": 0.1}

    monkeypatch.setattr(bed, "start", lambda kind, task: 0.5)
    monkeypatch.setattr(runs, "play", play)
    return calls


def test_a_grid_searches_beyond_an_edge_then_plays_every_cell_once(tmp_path, played):
    known = journal.Journal(tmp_path / "work", None)
    grid.work([FIGURE], known, seeds=(1, 2), about={"commit": "a"}, log=str)
    tuning = {(updates, rate) for task, updates, _, rate in played if task == "tuning.jsonl"}
    assert tuning == {(2, rate) for rate in (*plan.LEARNING_RATES, 9.6e-4)} | {
        (4, rate) for rate in plan.LEARNING_RATES
    }
    rest = [call for call in played if call[0] != "tuning.jsonl"]
    assert sorted(rest) == sorted(
        (f"{task}.jsonl", updates, seed, rate)
        for task in FIGURE.tasks
        for seed in (1, 2)
        for updates, rate in ((2, 4.8e-4), (2, 1.92e-3), (4, 1.2e-4))
    )
    record = grid.record(FIGURE, journal.Journal(tmp_path / "work", None), (1, 2))
    assert record["rates"] == {"two": 4.8e-4, "four": 1.2e-4}
    assert len(record["runs"]) == 12
    assert len(record["search"]) == 22
    assert {run["variant"] for run in record["runs"]} == {"two", "four", "two, faster"}
    assert record["abouts"] == [{"commit": "a"}]


def test_what_a_record_or_another_machines_journal_has_is_not_played_again(tmp_path, played):
    first = journal.Journal(tmp_path / "work", None)
    grid.work([FIGURE], first, seeds=(1,), about={}, log=str)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "fig.json").write_text(dump(grid.record(FIGURE, first, (1,))))
    played.clear()
    grid.work([FIGURE], journal.Journal(tmp_path / "anew", tmp_path / "records"), seeds=(1, 2), about={}, log=str)
    assert {seed for *_, seed, _ in played} == {2}
    assert len(played) == 6
    # The file of a machine whose process was killed while it wrote.
    (copied,) = (tmp_path / "work").glob("journal_*")
    (tmp_path / "joined").mkdir()
    (tmp_path / "joined" / "journal_other_1.jsonl").write_bytes(copied.read_bytes()[:-20])
    played.clear()
    grid.work([FIGURE], journal.Journal(tmp_path / "joined", None), seeds=(1,), about={}, log=str)
    assert len(played) == 1


def test_a_run_that_figures_share_has_in_each_the_name_of_its_own_variant(tmp_path, played):
    known = journal.Journal(tmp_path / "work", None)
    grid.work([FIGURE], known, seeds=(1,), about={}, log=str)
    (tmp_path / "fig.json").write_text(dump(grid.record(FIGURE, known, (1,))))
    renamed = [variant._replace(name=f"{variant.name} updates") for variant in FIGURE.variants]
    other = FIGURE._replace(name="other", variants=tuple(renamed))
    record = grid.record(other, journal.Journal(tmp_path / "none", tmp_path), (1,))
    assert {run["variant"] for run in record["runs"]} == {"two updates", "four updates", "two, faster updates"}


def test_long_runs_are_played_seed_by_seed_and_shared_one_by_one(tmp_path, played):
    figure = FIGURE._replace(tasks=("smollm2_hard",), searches=False)
    lines = []
    grid.work([figure], journal.Journal(tmp_path, None), seeds=(1, 2), about={}, log=lines.append)
    assert [(updates, seed) for _, updates, seed, _ in played] == [(2, 1), (4, 1), (2, 2), (4, 2)]
    assert len(list((tmp_path / "claims").iterdir())) == 4
    assert [line.split("; ")[1].split(",")[0] for line in lines] == [
        *("3 runs left", "2 runs left", "1 run left", "no run left")
    ]


def test_what_is_left_of_a_search_says_that_more_runs_follow(tmp_path, played):
    known = journal.Journal(tmp_path, None)
    text = grid.left([FIGURE], known, (1,))
    assert text.startswith("20 runs left, at most some ")
    assert text.endswith("then those at the rates that their searches choose")
    parts = [grid.left([FIGURE], known, (1,), (index, 2)) for index in (0, 1)]
    assert sum(int(part.split()[0]) for part in parts) == 20


@pytest.mark.parametrize("stop", [runs.InterruptedRunError, KeyboardInterrupt])
def test_a_signal_ends_the_command_without_a_traceback_and_says_how_to_go_on(tmp_path, monkeypatch, capsys, stop):
    def play(*args, **kwargs):
        raise stop

    monkeypatch.setattr(runs, "play", play)
    words = ["run", "fig10", "--anew", "--jobs", "1", "--work", str(tmp_path), "--records", str(tmp_path)]
    assert main(words) == 75
    assert "the same command goes on" in capsys.readouterr().out
    assert not (tmp_path / "fig10.json").exists()


def test_fewer_seeds_leave_what_is_recorded_of_the_others(tmp_path, played):
    grid.work([FIGURE], journal.Journal(tmp_path, None), seeds=(1, 2), about={}, log=str)
    write([FIGURE], argparse.Namespace(work=tmp_path, records=tmp_path, anew=True, seeds=range(1, 2)))
    record = json.loads((tmp_path / "fig.json").read_text())
    assert {run["seed"] for run in record["runs"]} == {1, 2}


def test_a_run_counts_only_for_cells_that_ask_for_no_more_rounds(tmp_path, played):
    known = journal.Journal(tmp_path, None)
    short = journal.Cell("easy_1", FIGURE.variants[0], 1, 1e-4, 6, False)
    known.add({"key": short.key, "score": [0.5] * 6, "metrics": {"actor/loss": []}, "stopped": "rounds"})
    known.refresh()
    assert known.find(short, ("actor/loss",))
    assert not known.find(short, ("actor/kl_ref",))
    assert not known.find(short._replace(rounds=7), ())
    stopped = short._replace(seed=2, stops=True)
    known.add({"key": stopped.key, "score": [0.95] * 5, "metrics": {}, "stopped": "t95"})
    known.refresh()
    assert known.find(stopped, ())
    assert not known.find(stopped._replace(stops=False), ())


def test_a_chunk_is_played_by_one_process(tmp_path):
    with grid._claim(tmp_path, "chunk") as first, grid._claim(tmp_path, "chunk") as second:
        assert (first, second) == (True, False)
    with grid._claim(tmp_path, "chunk") as third:
        assert third


def test_two_parts_share_all_cells(tmp_path, played):
    for part in (0, 1):
        grid.work([FIGURE], journal.Journal(tmp_path / str(part), None), seeds=(1,), about={}, part=(part, 2), log=str)
    assert len(played) == len(set(played))


@pytest.mark.parametrize(
    "words", [["run", "fig99"], ["run", "--part", "3/2"], ["run", "--seeds", "9"], ["run", "--part", "x"], ["walk"]]
)
def test_wrong_arguments_are_refused(words, capsys):
    with pytest.raises(SystemExit) as error:
        parse(words)
    assert error.value.code == 2
    assert words[1 if len(words) == 2 else -1].lstrip("-") in capsys.readouterr().err


def test_a_quick_figure_has_the_first_panel_and_the_searched_rates():
    rates = {variant.method: 1e-4 for variant in FIGURES["fig03"].variants}
    quick = plan.quick(FIGURES["fig03"], rates)
    assert [variant.name for variant in quick.variants] == list(FIGURES["fig03"].panels[0].variants)
    assert {variant.settings["optimizer.learning_rate"] for variant in quick.variants} == {1e-4}
    assert len(quick.seeds) == 4
    assert not quick.searches
    names = {variant.name for variant in quick.variants}
    assert all({each.first, each.second} <= names for each in quick.contrasts)
    assert quick.contrasts


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_one_cell_of_every_figure_is_one_run(figure):
    one = plan.one_cell(figure, 4)
    assert (len(one.tasks), len(one.variants), len(one.seeds), one.rounds) == (1, 1, 1, 4)


def test_a_record_has_one_run_on_a_line():
    record = {"figure": "x", "rates": {}, "search": [{"seed": 1}], "runs": [{"seed": 1}, {"seed": 2}]}
    assert json.loads(dump(record)) == record
    assert '  {"seed":2}' in dump(record).splitlines()
