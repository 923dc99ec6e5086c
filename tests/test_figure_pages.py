"""Pictures and tables of the figures, from records made here: every variant is shown, and what was lost or failed is said."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import pytest

from benchmarks.figures import curves, outcomes, page, plan
from benchmarks.figures.__main__ import main
from benchmarks.figures.experiments import FIGURES, fig08, fig09

pytest.importorskip("matplotlib", reason="matplotlib is not installed, which draws the pictures")
from benchmarks.figures import draw

STARTS = {"hard": 0.1, "medium": 0.4, "easy": 0.68}


def made_up_run(figure, variant, task, seed, rate, rounds):
    """A run whose score rises at a speed that its variant has, stopped as the harness stops it."""
    words = f"{variant.name} {task}".encode()
    speed = 4 + int(hashlib.sha256(words).hexdigest(), 16) % 25
    rng = np.random.default_rng([seed, *words])
    start = STARTS.get(task.split("_")[0], 0.3)
    mean = start + (1 - start) / (1 + np.exp(-(np.arange(rounds) - speed) / 3))
    score = np.round(rng.binomial(64, np.clip(mean, 0, 1)) / 64, 4)
    stopped = "rounds"
    if figure.stops_at_95:
        in_a_row = np.convolve(score >= 0.95, np.ones(5), "valid") == 5
        if in_a_row.any() and (end := int(np.flatnonzero(in_a_row)[0]) + 5) < rounds:
            score, stopped = score[:end], "t95"
    size = score.size
    growing = np.linspace(0, 5, size).round(3).tolist()
    return {
        **{"task": task, "variant": variant.name, "seed": seed, "learning_rate": rate, "score": score.tolist()},
        "generated_tokens": (np.arange(1, size + 1) * 200).tolist(),
        "updates": (np.arange(1, size + 1) * variant.settings.get("update.updates_per_round", 1)).tolist(),
        "metrics": dict.fromkeys(figure.metrics, growing),
        "held_out": [[round, float(mean[min(round, rounds - 1)])] for round in range(0, size + 1, 10)],
        **{"stopped": stopped, "seconds": 1.0, "about": 0},
    }


def made_up_record(figure):
    runs = [
        made_up_run(figure, variant, task, seed, 1.2e-4, figure.rounds)
        for task in figure.tasks
        for variant in figure.variants
        for seed in figure.seeds
    ]
    search = [
        made_up_run(figure, variant, figure.tuning, seed, rate, plan.SEARCH_ROUNDS)
        for variant in plan.searched(figure).values()
        for rate in plan.LEARNING_RATES
        for seed in plan.TUNING_SEEDS
    ]
    return {
        "figure": figure.name,
        "abouts": [{"commit": "c", "versions": {}, "machine": "m", "command": "c"}],
        "search": search,
        "rates": dict.fromkeys(plan.searched(figure), 0.00012),
        "starts": {task: STARTS.get(task.split("_")[0], 0.3) for task in figure.tasks},
        "runs": runs,
    }


def replaced(record, variant, **fields):
    """The record with these fields in every run of a variant on hard_1."""
    runs = [run | fields if (run["variant"], run["task"]) == (variant, "hard_1") else run for run in record["runs"]]
    return record | {"runs": runs}


def test_runs_of_no_variant_are_refused_and_not_left_out(tmp_path, capsys):
    record = made_up_record(fig09.FIGURE)
    record["runs"][0]["variant"] = "0/1 of old"
    (tmp_path / "fig09.json").write_text(json.dumps(record))
    assert main(["draw", "fig09", "--records", str(tmp_path)]) == 2
    assert re.search(
        r"fig09.json has runs of 0/1 of old, which are no variants .*figures run fig09", capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "name", ["fig10", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fig03", "fig08"))]
)
def test_a_picture_is_drawn_and_its_bytes_repeat(tmp_path, name):
    record = made_up_record(FIGURES[name])
    files = [tmp_path / "one.svg", tmp_path / "deeper" / "two.svg"]
    for file in files:
        draw.draw(FIGURES[name], record, file)
    one, two = (file.read_text() for file in files)
    assert one == two
    # matplotlib writes each text in a comment beside its outlines.
    texts = re.findall(r"<!-- (.*?) -->", one)
    for variant in FIGURES[name].variants:
        assert variant.name in texts
    assert float(re.search(r'width="([\d.]+)pt"', one)[1]) * 96 / 72 <= 760


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FIGURES if name not in ("fig03", "fig08", "fig10")])
def test_every_picture_is_drawn(tmp_path, name):
    draw.draw(FIGURES[name], made_up_record(FIGURES[name]), tmp_path / "picture.svg")
    assert "<svg" in (tmp_path / "picture.svg").read_text()


def test_a_picture_says_which_runs_failed_and_is_drawn_without_some(tmp_path):
    figure = FIGURES["fig02"]
    record = replaced(made_up_record(figure), "GRPO", stopped="failed: not finite", score=[0.1, 0.1])
    record["runs"] = [run for run in record["runs"] if not run["task"].startswith("easy")]
    draw.draw(figure, record, tmp_path / "picture.svg")
    texts = re.findall(r"<!-- (.*?) -->", (tmp_path / "picture.svg").read_text())
    assert "GRPO (8 of 48 failed)" in texts
    assert texts.count("unfinished") == 0  # nothing is drawn of a contrast without pairs


def test_runs_that_failed_in_their_first_round_are_drawn_and_listed(tmp_path):
    figure = FIGURES["fig10"]
    record = made_up_record(figure)
    for run in record["runs"]:
        if run["variant"].startswith("TBRM"):
            empty = {"score": [], "generated_tokens": [], "updates": [], "held_out": []}
            run |= empty | {"metrics": {name: [] for name in figure.metrics}, "stopped": "failed: not finite"}
    draw.draw(figure, record, tmp_path / "picture.svg")
    table = page.tables({"fig10": record})["fig10"]
    assert re.search(r"\| TBRM − 0 \| KL, nats \| – \| 0 of 16.* \| unfinished \|", table)
    assert "V_ref" not in table


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_variants_that_share_a_panel_differ_in_color(figure):
    looks = draw._looks(figure)
    for panel in figure.panels:
        assert len({looks[name][0] for name in panel.variants}) == len(panel.variants)


def test_a_curve_is_the_mean_of_runs_with_what_they_lack_filled():
    figure = FIGURES["fig03"]
    panel = plan.Panel("", ("GRPO",))
    base = {"metrics": {}, "held_out": [], "variant": "GRPO", "task": "hard_1"}
    runs = [
        base | {"seed": 1, "score": [0.9, 1.0, 1.0], "stopped": "t95", "generated_tokens": [10, 20, 30]},
        base | {"seed": 2, "score": [0.2] * 4, "stopped": "failed: x", "generated_tokens": [20, 40, 60, 80]},
    ]
    found = curves.curve(figure, runs, panel)
    assert found.mean.tolist() == pytest.approx([0.55, 0.6, 0.6, (0.2 + 2.9 / 3) / 2])
    assert found.x.tolist() == pytest.approx([15, 30, 45, 60])
    assert (found.runs, found.failed) == (2, 1)
    assert np.all(found.low <= found.mean)
    assert np.isnan(curves.curve(figure, runs[:1], panel).low).all()
    assert curves.curve(figure, [], panel) is None


def test_a_metric_is_averaged_where_half_of_the_runs_have_it():
    base = {"score": [0.1] * 3, "stopped": "rounds", "held_out": [], "updates": [1, 2, 3]}
    runs = [base | {"metrics": {"m": values}} for values in ([1.0, None, None], [3.0, 5.0, None])]
    found = curves.curve(FIGURES["fig08"], runs, plan.Panel("", (), "m", "updates"))
    assert found.mean.tolist() == [2.0, 5.0]
    assert found.x.tolist() == [1.0, 2.0]


def test_held_out_accuracy_after_a_failure_is_zero():
    base = {"metrics": {}, "updates": [1] * 20}
    runs = [
        base | {"score": [0.1] * 20, "stopped": "rounds", "held_out": [[0, 0.2], [10, 0.4], [20, 0.6]]},
        base | {"score": [0.1] * 12, "stopped": "failed: x", "held_out": [[0, 0.2], [10, 0.4]]},
    ]
    found = curves.curve(FIGURES["fig05"], runs, plan.Panel("", (), "held_out", "rounds"))
    assert found.x.tolist() == [0, 10, 20]
    assert found.mean.tolist() == pytest.approx([0.2, 0.4, 0.3])


@pytest.mark.parametrize("names", ["methods", "variants"])
def test_a_search_is_read_by_method_with_its_collapses_and_its_choice(names):
    figure = FIGURES["fig09"]
    record = made_up_record(figure)
    method = fig09.MEAN.method
    for run in record["search"]:
        run |= {"score": [0.5] * 40, "stopped": "rounds"}
        if run["variant"] == fig09.MEAN.name:
            run |= {"score": [0.9] * 30 + [0.1] * 10} if run["learning_rate"] == 4.8e-4 else {}
            run |= {"variant": method} if names == "methods" else {}
    found = curves.searches(figure, record)
    assert list(found) == list(plan.searched(figure))
    assert found[method].rates == plan.LEARNING_RATES
    assert found[method].areas == (*[(0.5, 0.5)] * 4, pytest.approx((0.7, 0.7)))
    assert found[method].collapsed == (False, False, False, False, True)
    assert found[method].chosen == 1.2e-4


def test_where_reval_loses_is_listed_and_refuted_claims_come_first():
    figure = FIGURES["fig03"]
    record = made_up_record(figure)
    for run in record["runs"]:
        steady = [0.0] * 5 + [1.0] * 55 if run["variant"] == "GRPO" else [0.0] * 9 + [1.0] * 51
        run |= {"score": steady, "stopped": "rounds"}
    tables = page.tables({"fig03": record})
    assert tables["losses"].splitlines()[0] == (
        "- `fig03`: GRPO / ReVal, K = 8, rounds to 0.95: 0.636, 0.636 … 0.636 times. It is less than twice as fast."
    )
    verdicts = re.findall(r"^\| \*\*(.*?)\*\* \|", tables["claims"], flags=re.MULTILINE)
    assert verdicts == sorted(verdicts, key=["refuted", "not told apart", "confirmed", "unfinished"].index)
    assert set(verdicts) == {"refuted", "not told apart"} or "confirmed" in verdicts
    assert "| GRPO | 0.00012 | 7.0 (8/8), 1.00 | 7.0 (8/8), 1.00 | 7.0 (8/8), 1.00 |" in tables["fig03"]
    assert tables["fig02"] == "Not run yet."


def test_tables_say_what_is_missing_censored_and_failed():
    figure = FIGURES["fig03"]
    record = replaced(made_up_record(figure), "GRPO", stopped="failed: not finite", score=[0.1, 0.1])
    table = page.tables({"fig03": record})["fig03"]
    assert "24; failed: 8 and 0; not reached: 33% and 0%" in table
    record["runs"] = [run for run in record["runs"] if (run["variant"], run["seed"]) != ("GRPO", 3)]
    table = page.tables({"fig03": record})["fig03"]
    assert re.search(r"GRPO / ReVal, K = 8 \| .* \| 21 of 24; .* \| unfinished \|", table)


def test_notes_tell_how_prompts_differ_and_what_the_reference_values_are():
    record = made_up_record(FIGURES["fig02"])
    for run in record["runs"]:
        late = {"hard": 20, "medium": 10, "easy": 5}[run["task"].split("_")[0]]
        run |= {"score": [0.0] * late + [1.0] * (60 - late), "stopped": "rounds"}
    assert (
        "A share of 1.00 of the variance of the prompts' mean log T95 lies between difficulties; by chance 0.25."
        in page.tables({"fig02": record})["fig02"]
    )
    record = made_up_record(FIGURES["tbrm_rates"])
    for run in record["runs"]:
        run["metrics"]["reval/residual_mean"][0] = 8.5 - run["score"][0] / 0.2
    note = "V_ref(s₁) in nats, from the first residual of TBRM: 8.5 (hard_1), 8.5 (medium_1), 8.5 (easy_1)."
    assert note in page.tables({"tbrm_rates": record})["tbrm_rates"]


def test_a_plateau_is_compared_at_the_start_of_its_prompt():
    record = made_up_record(FIGURES["fig08"])
    level = outcomes.plateau(0.1, 0.5)
    for run in record["runs"]:
        run["score"] = [level] * 60
    table = page.tables({"fig08": record})["fig08"]
    assert f"| {fig08.BINARY[0.5].name} − p*(0.5) | score of the last 5 rounds | +0, +0 … +0 | 8 |" in table


def test_tables_are_written_between_their_comments_alone(tmp_path, monkeypatch):
    text = "before\n<!-- claims -->\nold\n<!-- end -->\nafter <!-- a comment -->\n<!-- losses -->\n<!-- end -->\n"
    (tmp_path / "evidence.md").write_text(text)
    monkeypatch.setattr(page, "DOCS", tmp_path)
    page.main()
    written = (tmp_path / "evidence.md").read_text()
    assert written.startswith(
        "before\n<!-- claims -->\n\nNo figure has been run yet.\n\n<!-- end -->\nafter <!-- a comment -->\n"
    )
    page.main()
    assert (tmp_path / "evidence.md").read_text() == written
    with pytest.raises(ValueError, match="has the comment <!-- nothing -->"):
        page.with_tables("<!-- nothing -->\n<!-- end -->", {})


def test_a_figure_added_after_runs_had_been_seen_confirms_nothing():
    record = made_up_record(fig09.FIGURE)
    added = fig09.FIGURE._replace(is_exploratory=True)
    assert {each.verdict for each in outcomes.comparisons(fig09.FIGURE, record)} & {"confirmed", "refuted"}
    assert {each.verdict for each in outcomes.comparisons(added, record)} == {"exploratory"}
    assert FIGURES["fig09_low"].is_exploratory
    assert "`fig09_low`, **added after runs had been seen**" in page.contrasts()


def test_a_best_rate_at_the_edge_of_the_search_is_said():
    record = made_up_record(fig09.FIGURE)
    inside = page.of_figure(fig09.FIGURE, record, [])
    assert "at the edge" not in inside
    method = next(iter(record["rates"]))
    record["rates"][method] = plan.LEARNING_RATES[-1]
    assert f"after both extensions, for: {method}." in page.of_figure(fig09.FIGURE, record, [])


def test_a_method_whose_search_is_unfinished_is_left_out_of_it():
    record = made_up_record(fig09.FIGURE)
    method = next(iter(record["rates"]))
    del record["rates"][method]
    assert method not in curves.searches(fig09.FIGURE, record)
