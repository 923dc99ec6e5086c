"""The pages of `reval report` in a real browser: no error, no request, nothing obeyed; filters work, and colours are seen."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from support import browser, run_files

from reval_jax import types
from reval_jax.tools import report
from reval_jax.tools.report import token_file

pytestmark = pytest.mark.skipif(browser.find() is None, reason="no browser: apt-get install chromium")

HOSTILE = (
    '<img src=x onerror="document.title=\'owned\'"></script></pre><script>document.title="owned"</script>\u2028'
    "<svg onload=\"document.title='owned'\">\u202e\x1b[2J'\"&amp;"
)
BLUE, ORANGE = (0, 114, 178), (213, 94, 0)


@pytest.fixture(scope="module")
def page():
    with browser.opened() as opened:
        yield opened


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of 8 rounds with 5 responses each, of which one is hostile; the first response of each has coloured tokens."""
    lines = [
        run_files.line(round, round / 8, **{"actor/kl_ref": round % 4, "training/sampled": 5}) for round in range(1, 9)
    ]
    rollouts = {
        round: [
            run_files.response("right answer", prompt="2+3=", num_tokens=3),
            *(run_files.response(f"wrong {index}", prompt="1+1=", verdict="wrong") for index in range(3)),
            run_files.response(HOSTILE, prompt=HOSTILE, answer=HOSTILE, verdict="unparsed", num_tokens=99 + round),
        ]
        for round in range(1, 9)
    }
    made = run_files.write(tmp_path_factory.mktemp("runs") / "mine", lines, rollouts=rollouts)
    scores = {
        "log_ratio": [4.0, -4.0, 0.0],
        "endogenous_reward": [0.0, 0.0, 9.0],
        "reference_endogenous_reward": [-1.0, 0.0, 9.0],
    }
    rows = [
        {
            "round": round,
            "line": 0,
            "digest": token_file.digest("2+3=", "right answer"),
            "tokens": ["right", " ans", "wer"],
            **scores,
        }
        for round in range(1, 9)
    ]
    about = {"policy": "mine, round 8", "reference": "model", "temperature": 1.0}
    token_file.write(made / "token_scores.jsonl.gz", about, rows)
    return made


@pytest.fixture
def shown(page, run_dir):
    """The report of the run, open."""
    page.resize(1280, 1000)
    page.open(report.write(run_dir, run_dir / "report.html"))
    return page


def has_colour(picture, colour, *, off=3):
    """Whether a pixel of the picture has this colour."""
    return bool((np.abs(picture.astype(int) - colour).max(axis=2) <= off).any())


def blended(colour, share):
    """A colour on white."""
    return np.round(np.array(colour) * share + 255 * (1 - share))


def choose(page, name, value):
    """Chooses an option as a reader does."""
    page.run(
        f"(() => {{ const s = document.getElementById('choose-{name}'); s.value = '{value}'; "
        "s.dispatchEvent(new Event('change')); })()"
    )


def cards(page):
    """The text of every response on the page."""
    return page.run("[...document.querySelectorAll('#list article')].map(card => card.innerText)")


def status(page):
    return page.run("document.getElementById('status').textContent")


def test_pages_have_no_error_ask_for_nothing_and_are_no_wider_than_the_window(page, run_dir, tmp_path):
    other = shutil.copytree(run_dir, tmp_path / "other")
    page.resize(1280, 1000)
    for file in (
        report.write(run_dir, tmp_path / "one.html"),
        report.write_comparison(run_dir, other, tmp_path / "two.html"),
    ):
        page.open(file)
        assert page.errors == []
        assert page.requests == [file.as_uri()]
        assert page.run("document.documentElement.scrollWidth") <= 1280
        assert page.run(
            "[...document.querySelectorAll('svg.chart')].every(chart => chart.getBoundingClientRect().height > 150)"
        )
    assert page.run("document.querySelectorAll('svg.chart').length") >= 5


def test_filters_show_what_matches_and_pages_turn(shown):
    assert status(shown) == "40 of 40 responses match; page 1 of 4"
    assert len(cards(shown)) == 12
    shown.run("document.getElementById('next').click()")
    assert status(shown) == "40 of 40 responses match; page 2 of 4"
    choose(shown, "verdict", "wrong")
    assert status(shown) == "24 of 40 responses match; page 1 of 2"
    assert all(card.startswith("wrong") for card in cards(shown))
    choose(shown, "round", "3")
    assert [("round 3" in card, "1+1=" in card) for card in cards(shown)] == [(True, True)] * 3
    choose(shown, "verdict", "")
    choose(shown, "prompt", "0")
    (card,) = cards(shown)
    assert "2+3=" in card
    assert "right answer: 5" in card
    choose(shown, "prompt", "")
    choose(shown, "round", "")
    shown.run(
        "(() => { const w = document.getElementById('words'); w.value = 'WRONG 2'; w.dispatchEvent(new Event('input')); })()"
    )
    assert status(shown) == "8 of 40 responses match; page 1 of 1"
    shown.run(
        "(() => { const w = document.getElementById('words'); w.value = ''; w.dispatchEvent(new Event('input')); })()"
    )
    choose(shown, "coloured", "yes")
    assert status(shown) == "8 of 40 responses match; page 1 of 1"
    assert shown.errors == []


def test_sorting_by_length_and_reward_orders_the_responses(shown):
    choose(shown, "sort", "length")
    shown.run("document.getElementById('direction').click()")
    assert ["107 tokens" in cards(shown)[0], "106 tokens" in cards(shown)[1]] == [True, True]
    choose(shown, "sort", "reward")
    assert all("reward 1" in card for card in cards(shown)[:8])
    assert all("reward 0" in card for card in cards(shown)[8:])


def test_hostile_prompts_and_responses_do_nothing_and_are_shown_as_text(shown):
    choose(shown, "verdict", "unparsed")
    assert shown.run("document.title") == "mine · reval report"
    assert shown.run("document.querySelectorAll('img, svg[onload], pre script').length") == 0
    card = shown.run("document.querySelector('#list .response').textContent")
    assert card == HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b")
    assert (shown.errors, len(shown.requests)) == ([], 1)


def test_the_policy_stops_what_would_get_into_the_page_all_the_same(shown):
    shown.run(
        """document.body.insertAdjacentHTML('beforeend', '<img src="https://example.org/x.png" onerror="document.title=1">'
        + '<p id="late" style="color: rgb(1, 2, 3)" onclick="document.title=2">x</p>')"""
    )
    shown.run(
        "(() => { const s = document.createElement('script'); s.textContent = 'document.title = 3'; document.body.append(s); })()"
    )
    shown.run("document.getElementById('late').click()")
    assert shown.run("document.title") == "mine · reval report"
    assert shown.run("getComputedStyle(document.getElementById('late')).color") != "rgb(1, 2, 3)"
    assert any("Content Security Policy" in error for error in shown.errors)


def test_tokens_are_seen_in_the_colours_of_their_numbers_and_the_switch_changes_them(shown):
    choose(shown, "coloured", "yes")
    more, less = blended(BLUE, 0.66), blended(ORANGE, 0.66)
    picture = shown.screenshot("#list .response")
    assert has_colour(picture, more)
    assert has_colour(picture, less)
    assert shown.run("document.querySelector('#list .response span').title").startswith(
        "log-ratio to the reference +4.00"
    )
    choose(shown, "colour", "2")
    picture = shown.screenshot("#list .response")
    assert has_colour(picture, less)
    choose(shown, "colour", "")
    picture = shown.screenshot("#list .response")
    assert not has_colour(picture, more)
    assert not has_colour(picture, less)
    assert "2+3=" in cards(shown)[0]


def test_the_curve_and_its_band_are_seen_in_a_light_and_in_a_dark_window(shown):
    chart = 'svg[aria-label="Score of the sampled responses"]'
    light = shown.screenshot(chart)
    assert has_colour(light, BLUE)
    assert has_colour(light, (246, 247, 249))
    assert np.median(light) > 200
    shown.resize(1280, 1000, is_dark=True)
    dark = shown.screenshot(chart)
    assert has_colour(dark, (74, 168, 224))
    assert np.median(dark) < 60


def test_without_javascript_the_outcome_and_the_curves_are_there(page, run_dir, tmp_path):
    file = report.write(run_dir, tmp_path / "report.html")
    page.resize(1280, 1000)
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(file)
        text = page.run("document.body.innerText")
        assert page.run("document.querySelectorAll('#list article').length") == 0
        picture = page.screenshot('svg[aria-label="Score of the sampled responses"]')
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)
    assert "went from 0.125" in text
    assert "Browsing the responses needs JavaScript" in text
    assert types.VERDICTS[0] in text
    assert has_colour(picture, BLUE)


def test_a_narrow_window_shows_one_chart_beneath_the_other(shown):
    shown.resize(600, 900)
    assert shown.run("document.documentElement.scrollWidth") <= 600
    lefts = shown.run("[...document.querySelectorAll('.panel')].map(panel => panel.getBoundingClientRect().left)")
    assert len(set(lefts)) == 1
