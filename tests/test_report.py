"""`reval report`: what its page says of a run, what it refuses, and that nothing in it is obeyed or loaded."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pytest
from support import run_files

from reval_jax import cli, metrics
from reval_jax.tools import report

HOSTILE = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>\u2028\u202e\x1b[2J'\"&"


def rising(num_rounds=6):
    """Lines of a run whose score rises from 0.1 to 0.9."""
    return [run_files.line(round, 0.1 + 0.8 * (round - 1) / (num_rounds - 1)) for round in range(1, num_rounds + 1)]


def page_of(run_dir, capsys, *words, code=0):
    """The text of the page of `reval report`, or its message if it refuses."""
    output = run_dir.parent / f"{run_dir.name}.html"
    assert cli.main(["report", "--run-dir", str(run_dir), "--output", str(output), *map(str, words)]) == code
    captured = capsys.readouterr()
    return output.read_text() if code == 0 else captured.err


def shown(page):
    """What of a page is text, in one line."""
    body = re.sub(r"<(script|style|title)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_the_first_lines_say_what_was_trained_how_and_what_came_of_it(tmp_path, capsys):
    settings = {
        "model__path": "models/SmolLM2.gguf",
        "task__dataset": "data/sums.jsonl",
        "update__beta": 0.02,
        "update__updates_per_round": 3,
        "run__rounds": 6,
    }
    lines = [line | {"reval/residual_abs": 1.0} for line in rising()]
    text = shown(page_of(run_files.write(tmp_path / "mine", lines, **settings), capsys))
    assert "SmolLM2 learns sums by ReVal" in text
    assert "β = 0.02" in text
    assert (
        "3 updates a round on 1024 responses each, the first on the fresh responses, the others drawn from the last"
        in text
    )
    assert "went from 0.100 [0.048, 0.198] in round 1 to 0.900 [0.802, 0.952] in round 6: it rose." in text
    assert "best of 6 rounds is round 6" in text
    assert "rounds 6 of 6 done" in text
    assert "To know first" not in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"update__objective": "policy_gradient"}, "a policy gradient: 2 updates a round on the fresh responses."),
        ({"update__objective": "my_file:mine"}, "the objective my_file:mine: 2 updates a round"),
    ],
)
def test_other_methods_are_named_too(tmp_path, capsys, settings, words):
    assert words in shown(page_of(run_files.write(tmp_path / "run", rising(), **settings), capsys))


def test_scores_whose_intervals_overlap_are_not_told_apart(tmp_path, capsys):
    lines = [run_files.line(1, 0.5), run_files.line(2, 0.55)]
    assert "they are not told apart" in shown(page_of(run_files.write(tmp_path / "run", lines), capsys))


def test_intervals_of_the_metrics_come_before_wilsons(tmp_path, capsys):
    bounds = {"critic/score/mean/low": 0.2, "critic/score/mean/high": 0.8}
    lines = [run_files.line(1, 0.5, **bounds), run_files.line(2, 0.5, **bounds)]
    assert "from 0.500 [0.200, 0.800]" in shown(page_of(run_files.write(tmp_path / "run", lines), capsys))


@pytest.mark.parametrize(
    ("change", "settings", "warning"),
    [
        ({"training/skipped": 2}, {}, "2 updates had a loss or gradient that was not finite"),
        ({"verifier/timeout": 3}, {}, "Grading failed on 4.7% of the responses (18 timeout)"),
        (
            {"response_length/clip_ratio": 0.5},
            {},
            "50% of the responses of the last 5 rounds were cut at the limit of 8192",
        ),
        ({"critic/score/mean": 0.25}, {}, "The score is 0.25 in every round"),
        ({}, {"run__rounds": 50}, "The run has not ended: 6 of 50 rounds are done"),
    ],
)
def test_what_a_reader_must_know_comes_before_the_curves(tmp_path, capsys, change, settings, warning):
    lines = [line | change for line in rising()]
    text = shown(page_of(run_files.write(tmp_path / "run", lines, **({"run__rounds": 6} | settings)), capsys))
    assert warning in text
    assert text.index("To know first") < text.index(warning) < text.index("Score of the sampled responses")


def test_a_run_that_stopped_at_its_score_has_ended(tmp_path, capsys):
    run_dir = run_files.write(tmp_path / "run", rising(), run__rounds=50, run__stop_score=0.7, run__stop_rounds=2)
    text = shown(page_of(run_dir, capsys))
    assert "6 of 50 stopped at its score" in text
    assert "has not ended" not in text


def test_an_interval_without_a_width_is_none_and_decides_nothing(tmp_path, capsys):
    def held_out(value):
        metric = "val-core/two/acc/mean@1"
        return {metric: value, f"{metric}/low": value, f"{metric}/high": value}

    same = {"critic/score/mean/low": 0.0, "critic/score/mean/high": 0.0}
    lines = [run_files.line(1, 0.0, **same, **held_out(0.0)), run_files.line(2, 0.9, **held_out(1.0))]
    page = page_of(run_files.write(tmp_path / "run", lines), capsys)
    text = shown(page)
    assert "[0.000, 0.000]" not in html.unescape(page)
    assert "[0, 0]" not in page
    assert (
        "it went from 0.000 (all equal, so no interval) (round 1) to 1.000 (all equal, so no interval) (round 2): without"
        in text
    )
    assert "0.000 (all equal, so no interval) in round 1 to 0.900 [0.802, 0.952] in round 2: without" in text
    assert "it rose" not in text


def test_an_adaptive_number_of_updates_is_named_by_its_bounds(tmp_path, capsys):
    lines = [line | {"reval/residual_abs": 1.0} for line in rising()]
    for fewest in (1, 2):
        settings = {"update__updates_per_round": fewest, "update__max_updates_per_round": 8}
        text = shown(page_of(run_files.write(tmp_path / f"run{fewest}", lines, **settings), capsys))
        assert f"{fewest} to 8 updates a round, adaptive, on 1024 responses each" in text


def test_no_round_is_the_best_of_a_score_that_never_moved(tmp_path, capsys):
    lines = [line | {"critic/score/mean": 0.0} for line in rising()]
    text = shown(page_of(run_files.write(tmp_path / "run", lines), capsys))
    assert "The best of" not in text
    assert "best score" not in text
    assert "best score, round 6" in shown(page_of(run_files.write(tmp_path / "other", rising()), capsys))


@pytest.mark.parametrize(
    "change",
    [
        {"response_length/clip_ratio": None},
        {"critic/score/mean": "x"},
        {"critic/score/mean": float("nan")},
        {"training/sampled": "64", "training/skipped": "x", "training/updates": None},
        {"verifier/ok": "x", "timing_s/round": "x"},
        {"timing_s/round": 5e-324, "timing_s/update": float("nan")},
    ],
)
def test_a_value_that_is_no_number_is_left_out(tmp_path, capsys, change):
    lines = rising()
    lines[2] |= change
    lines[-1] |= change
    page = page_of(run_files.write(tmp_path / "run", lines), capsys)
    assert "score of the sampled responses went from 0.100" in shown(page)
    assert not re.search(r"\b(nan|inf)\b", page)
    every = [line | change for line in rising()]
    page = page_of(run_files.write(tmp_path / "every", every), capsys)
    assert not re.search(r"\b(nan|inf)\b", page)


@pytest.mark.parametrize("values", [[1e308, -1e308, 0.0], [5e-324, 1e-323, 0.0], [10**400, 1, 2]])
def test_values_too_large_or_too_close_for_an_axis_end_no_report(tmp_path, capsys, values):
    lines = [run_files.line(round, 0.5, **{"actor/kl_ref": value}) for round, value in enumerate(values, start=1)]
    page = page_of(run_files.write(tmp_path / "run", lines), capsys)
    assert not re.search(r"\b(nan|inf)\b", page)


@pytest.mark.parametrize("value", [None, "two", 0])
def test_settings_of_another_type_end_no_report(tmp_path, capsys, value):
    names = ("run__stop_rounds", "run__rounds", "update__updates_per_round", "update__passes", "update__beta")
    for name in names:
        settings = {"run__stop_score": 0.5, "update__objective": "policy_gradient", name: value}
        assert "it rose" in shown(page_of(run_files.write(tmp_path / name, rising(), **settings), capsys))


def test_a_score_that_fell_is_said(tmp_path, capsys):
    text = shown(page_of(run_files.write(tmp_path / "run", falling()), capsys))
    assert "it fell" in text
    assert "The score has fallen: its mean was 0.740 in rounds 1 to 3, and is 0.260 in rounds 4 to 6" in text
    # The best of many rounds is above the last one by chance alone.
    noise = np.random.default_rng(0).binomial(64, 0.5, 60) / 64
    lines = [run_files.line(round, score) for round, score in enumerate(noise, start=1)]
    text = shown(page_of(run_files.write(tmp_path / "noise", lines), capsys))
    assert "fallen" not in text
    assert f"The mean of the last 5 rounds is {noise[-5:].mean():.3f}." in text


def falling():
    """Lines of a run whose score falls."""
    return [run_files.line(round, 1 - line["critic/score/mean"]) for round, line in enumerate(rising(), start=1)]


def test_a_line_cut_by_a_kill_is_no_round_and_said_once(tmp_path, capsys):
    run_dir = run_files.write(tmp_path / "run", rising())
    whole = page_of(run_dir, capsys)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"training/round": 7, "critic/sc')
    cut = page_of(run_dir, capsys)
    assert cut.count("is cut, as by a kill") == 1
    assert "is cut" not in whole
    assert re.findall(r"<path[^>]+>", cut) == re.findall(r"<path[^>]+>", whole)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"training/round": 1}\n{"training/ro\n{"training/round": 3}\n', "metrics.jsonl:2 is an incomplete line"),
        (b'{"training/round": 1}\n[2]\n', "metrics.jsonl:2 is no round's line"),
        (b'{"training/round": "1"}\n', "metrics.jsonl:1 is no round's line"),
        (b'{"training/rou', "has no metrics yet"),
        (b"", "has no metrics yet"),
    ],
)
def test_damage_inside_the_metrics_is_refused(tmp_path, capsys, content, message):
    run_dir = run_files.write(tmp_path / "run", [])
    (run_dir / "metrics.jsonl").write_bytes(content)
    error = page_of(run_dir, capsys, code=2)
    assert message in error
    assert error.count("reval: ") == 1


def test_a_digit_that_changed_is_refused(tmp_path, capsys):
    run_dir = run_files.write(tmp_path / "run", [])
    writer = metrics.Writer(run_dir / "metrics.jsonl", keep_bytes=0, is_active=True)
    for line in rising():
        writer.write(line)
    assert "Score of" in page_of(run_dir, capsys)
    content = (run_dir / "metrics.jsonl").read_bytes()
    (run_dir / "metrics.jsonl").write_bytes(content.replace(b"100.0", b"900.0", 1))
    assert "does not have its checksum" in page_of(run_dir, capsys, code=2)


def test_curves_bands_and_resets_stand_where_the_numbers_are(tmp_path, capsys):
    lines = [
        run_files.line(1, 0.0, **{"actor/kl_ref": 0.0}),
        run_files.line(2, 1.0, **{"actor/kl_ref": 4.0, "timing_s/reference_store": 0.1}),
        run_files.line(3, 0.5, **{"actor/kl_ref": 0.0}),
    ]
    page = page_of(run_files.write(tmp_path / "run", lines), capsys)
    chart = re.search(r'<svg class="chart"[^>]*aria-label="Score of the sampled responses">(.*?)</svg>', page)[1]
    (curve,) = re.findall(r'class="line c0" d="M([^"]+)"', chart)
    points = np.array([[float(number) for number in point.split()] for point in curve.split("L")])
    top, bottom = points[1, 1], points[0, 1]
    assert bottom > top, "a larger y is further down"
    np.testing.assert_allclose(points[2, 1], (top + bottom) / 2, atol=0.1)
    np.testing.assert_allclose(points[1, 0], points[[0, 2], 0].mean(), atol=0.1)
    assert 'class="band f0"' in chart
    assert "round 3: 0.500 [0.381, 0.619]" in chart
    kl = re.search(r'aria-label="Distance from the reference">(.*?)</svg>', page)[1]
    for drawn in (chart, kl):
        (mark,) = re.findall(r'class="mark" d="M([\d.]+) ', drawn)
        assert float(mark) == pytest.approx(points[1, 0], abs=0.1)


def test_seconds_of_rounds_that_compile_are_said_and_leave_the_others_their_height(tmp_path, capsys):
    lines = [line | ({"timing_s/round": 90.0} if line["training/round"] == 1 else {}) for line in rising()]
    page = page_of(run_files.write(tmp_path / "run", lines), capsys)
    assert "Beyond the axis: 1 round, of up to 90 s." in shown(page)
    chart = re.search(r'aria-label="Seconds of a round by phase">(.*?)</svg>', page)[1]
    edge = re.findall(r'class="area [^"]*" d="M([^"]+)Z"', chart)[-1].split("L")
    heights = [float(point.split()[1]) for point in edge[:6]]
    # 4 times the median of 2 seconds is the top.
    top, bottom = 12, 216
    np.testing.assert_allclose(heights, [top, *[bottom - (bottom - top) * 2 / 8.4] * 5], atol=0.1)


def test_every_metric_that_a_run_lacks_leaves_no_empty_chart(tmp_path, capsys):
    page = page_of(run_files.write(tmp_path / "run", rising()), capsys)
    titles = re.findall(r"<figcaption><b>(.*?)</b>", page)
    assert titles == ["Score of the sampled responses", "Verdicts", "Loss", "Seconds of a round by phase"]


def test_names_of_benchmarks_are_shown_as_they_are(tmp_path, capsys):
    names = ["math$\\foo$", "a$b$c", "<b>", "_hidden", "x_1^2"]
    values = {f"val-core/{name}/acc/mean@{k}": 0.5 for name in names for k in (2, 16)}
    hostile = {f"val-core/{name}/acc/mean@16": 0.5 for name in ("a\x1b[31m\u202eb", "c")}
    text = shown(page_of(run_files.write(tmp_path / "run", [line | values for line in rising()]), capsys))
    for name in names:
        assert f"{name} @16" in text
        assert f"{name} @2 " not in text, "the largest k alone"
    page = page_of(run_files.write(tmp_path / "hostile", [line | hostile for line in rising()]), capsys)
    assert "a\\x1b[31m\\u202eb @16" in shown(page)
    assert not re.search("[\x1b\u202e]", page)


def test_a_run_without_settings_or_with_damaged_ones_is_shown_all_the_same(tmp_path, capsys):
    run_dir = run_files.write(tmp_path / "run", rising())
    (run_dir / "config.yaml").write_text("a: [")
    assert "The settings cannot be read" in shown(page_of(run_dir, capsys))
    (run_dir / "config.yaml").unlink()
    assert "has no readable settings" in shown(page_of(run_dir, capsys))


def test_the_page_allows_its_own_script_and_style_alone_and_refers_to_nothing(tmp_path, capsys):
    run_dir = run_files.write(
        tmp_path / "run", rising(), rollouts={1: [run_files.response(HOSTILE, prompt=HOSTILE, answer=HOSTILE)]}
    )
    page = page_of(run_dir, capsys)
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', page)[1]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert not re.search(r"(?:src|href|action)\s*=\s*[\"']", page.split('id="rollouts"')[0])
    assert not re.search(r"@import|url\(", page)
    assert " style=" not in page, "the policy would ignore it"
    assert len(re.findall(r"<script\b", page)) == 2, "the browser, and the JSON that it reads"
    stored = json.loads(re.search(r'id="rollouts">(.*?)</script>', page, flags=re.DOTALL)[1])
    expected = HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b")
    assert stored["prompts"] == [expected]
    assert (stored["rows"][0]["x"], stored["rows"][0]["a"]) == (expected, expected)


def test_hostile_settings_and_names_are_text(tmp_path, capsys):
    run_dir = run_files.write(tmp_path / "<b>run", rising(), model__path=HOSTILE, task__dataset=HOSTILE)
    page = page_of(run_dir, capsys)
    assert "<b>run" not in page
    assert "<img" not in page
    assert len(re.findall(r"<script\b", page)) == 1
    assert not re.search("[\x1b\u202e]", page)


def test_a_page_of_a_large_run_is_small_and_says_what_it_leaves_out(tmp_path, capsys):
    long = "a < b & c\n" * 400
    rows = [
        run_files.response(long + str(index), prompt=f"{index % 4}+1=", verdict="wrong" if index % 16 else "ok")
        for index in range(64)
    ]
    lines = [run_files.line(round, 0.5, **{"actor/kl_ref": round * 0.1}) for round in range(1, 3001)]
    rollouts = dict.fromkeys(range(1, 3001, 40), rows) | {3000: rows}
    page = page_of(run_files.write(tmp_path / "run", lines, rollouts=rollouts), capsys)
    assert len(page.encode()) < report.MAX_BYTES
    stored = json.loads(re.search(r'id="rollouts">(.*?)</script>', page, flags=re.DOTALL)[1])["rows"]
    rounds = sorted({row["r"] for row in stored})
    assert (rounds[0], rounds[-1]) == (1, 3000)
    assert max(np.diff(rounds)) <= 2 * 3000 / len(rounds) + 40, "evenly"
    for round in rounds:
        of_round = [row for row in stored if row["r"] == round]
        assert {row["v"] for row in of_round} == {"ok", "wrong"}, "one in sixteen is right"
    assert f"holds {len(stored):,} of the 192,000 sampled responses" in shown(page)


def test_one_enormous_response_is_cut_and_said(tmp_path, capsys):
    run_dir = run_files.write(tmp_path / "run", rising(), rollouts={1: [run_files.response("é" * 9_000_000)]})
    page = page_of(run_dir, capsys)
    assert len(page.encode()) < 200_000
    assert "9,000,000 characters in all" in page


def test_a_damaged_rollouts_file_is_left_out_and_named(tmp_path, capsys):
    run_dir = run_files.write(
        tmp_path / "run", rising(), rollouts={1: [run_files.response()], 2: [run_files.response()]}
    )
    (run_dir / "rollouts" / "round_000002.jsonl.gz").write_bytes(b"nothing")
    text = shown(page_of(run_dir, capsys))
    assert "Left out as damaged: round_000002.jsonl.gz" in text
    assert "holds 1 of the 384" in text


# Two runs


def test_two_runs_share_their_axes_and_differing_settings_are_listed(tmp_path, capsys):
    one = run_files.write(tmp_path / "one", rising(), update__beta=0.02)
    other = run_files.write(tmp_path / "other", [*falling(), run_files.line(12, 0.2)], update__beta=0.5)
    page = page_of(one, capsys, "--compare", other)
    text = shown(page)
    assert (
        "In round 6, the last that both have, A scores 0.900 [0.802, 0.952] and B 0.100 [0.048, 0.198]: A is higher."
        in text
    )
    assert "A: one" in text
    assert "B: other" in text
    assert "update.beta 0.02 0.5" in text
    assert "update.objective" not in text
    chart = re.search(r'aria-label="Score of the sampled responses">(.*?)</svg>', page)[1]
    curves = dict(re.findall(r'class="(line c\d[^"]*)" d="M([^"]+)"', chart))
    assert list(curves) == ["line c0", "line c1 dashed"]
    first, second = (
        np.array([[float(number) for number in point.split()] for point in curve.split("L")])
        for curve in curves.values()
    )
    np.testing.assert_allclose(first[:, 0], second[:6, 0], atol=0.1)
    assert first[-1, 0] < second[-1, 0], "round 6 is not round 12"
    np.testing.assert_allclose(first[0, 1], second[5, 1], atol=0.1)


def test_a_comparison_has_a_file_of_its_own_and_refuses_what_is_no_run(tmp_path, capsys):
    one, other = (run_files.write(tmp_path / name, rising()) for name in ("one", "other"))
    assert cli.main(["report", "--run-dir", str(one), "--compare", str(other)]) == 0
    assert capsys.readouterr().out == f"{one / 'comparison.html'}\n"
    assert "None: both runs have the same settings" in shown((one / "comparison.html").read_text())
    assert "absent has no metrics yet" in page_of(one, capsys, "--compare", tmp_path / "absent", code=2)


# What `reval inspect` found


def inspection(**scores):
    """A result of `reval inspect` with one example."""
    example = {
        "where": "file:1",
        "verdict": "ok",
        "prompt": "1+1=",
        "tokens": ["<script>", "a & b", "\n"],
        "endogenous_reward": [0.5, -1.25, 30.0],
        "log_prob": [0.0] * 3,
        "soft_value": [0.0] * 3,
        "scores": {"return": 29.25},
    }
    counts = dict.fromkeys(("num_prompts", "num_responses", "num_right", "num_mixed_prompts", "num_mixed_responses"), 2)
    return {
        **counts,
        "model": "m",
        "rollouts": ["f"],
        "intervals": {"level": 0.95},
        "examples": [example],
        "scores": {name: {"auc": value, "minus_log_prob": value} for name, value in scores.items()},
    }


def test_the_aucs_and_the_examples_of_inspect_are_shown_as_text(tmp_path, capsys):
    run_dir = run_files.write(tmp_path / "run", rising())
    alone = {"value": 0.25, "low": None, "high": None}
    result = inspection(log_prob={"value": 0.566, "low": 0.5, "high": 0.6}, alone=alone)
    (run_dir / "inspect.json").write_text(json.dumps(result))
    page = page_of(run_dir, capsys)
    assert "<td>log_prob</td><td>0.566 [0.500, 0.600]</td>" in page
    assert "<td>alone</td><td>0.250 (one prompt)</td>" in page
    assert '<span title="reward +0.500, log pi 0.000, V 0.000 nats" class="p2">&lt;script&gt;</span>' in page
    assert 'class="n5">a &amp; b</span>' in page
    (run_dir / "inspect.json").write_text('{"format": 1}')
    assert "is not a file of reval inspect" in page_of(run_dir, capsys, code=2)
