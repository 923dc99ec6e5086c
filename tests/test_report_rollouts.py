"""What the page of `reval report` says of rollouts, their tokens and its own size, where the files are odd."""

from __future__ import annotations

import gzip
import html
import json
import re

import pytest
from support import run_files

from reval_jax.tools import report
from reval_jax.tools.report import token_file


def page_of(run_dir):
    """The report's HTML."""
    return report.write(run_dir, run_dir / "report.html").read_text()


def rows_of(page):
    """The responses that the page holds."""
    return json.loads(re.search(r'id="rollouts">(.*?)</script>', page, flags=re.DOTALL)[1])["rows"]


def text_of(page):
    """What of a page is text, in one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def lines(num_rounds, **values):
    """Metrics of rounds with 2 responses each."""
    return [run_files.line(round, 0.5, **{"training/sampled": 2} | values) for round in range(1, num_rounds + 1)]


def score_tokens(run_dir, tokens, *, prompt="2+3=", response="5", **about):
    """Writes numbers of round 1's first response: 1, 2, … of its tokens."""
    numbers = [float(index) for index in range(1, len(tokens) + 1)]
    row = {"round": 1, "line": 0, "digest": token_file.digest(prompt, response), "tokens": tokens}
    row |= dict.fromkeys(token_file.SCORES, numbers)
    about = {"policy": "run, round 2", "round": 2, "reference": "model", "temperature": 1.0} | about
    token_file.write(run_dir / "token_scores.jsonl.gz", about, [row])


def test_responses_of_a_round_that_the_metrics_lack_are_counted_and_called_unfinished(tmp_path):
    rollouts = {round: [run_files.response("5"), run_files.response("6", verdict="wrong")] for round in (1, 2)}
    page = page_of(run_files.write(tmp_path / "run", lines(1), rollouts=rollouts))
    assert "holds 4 of the 4 sampled responses. Unfinished, as metrics.jsonl has no line of it: round 2." in text_of(
        page
    )
    assert [(row["r"], row.get("u", False)) for row in rows_of(page)] == [(1, False)] * 2 + [(2, True)] * 2
    assert "Unfinished" not in text_of(page_of(run_files.write(tmp_path / "whole", lines(2), rollouts=rollouts)))


def test_a_damaged_file_is_named_in_one_sentence_with_one_full_stop(tmp_path):
    run_dir = run_files.write(tmp_path / "run", lines(2), rollouts={round: [run_files.response()] for round in (1, 2)})
    (run_dir / "rollouts" / "round_000002.jsonl.gz").write_bytes(b"nothing")
    text = text_of(page_of(run_dir))
    assert "or delete it." in text
    assert "or delete it.." not in text


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_rollouts_file_with_a_reward_that_is_no_number_is_left_out_as_damaged(tmp_path, reward):
    rollouts = {1: [run_files.response()], 2: [run_files.response(reward=reward)]}
    page = page_of(run_files.write(tmp_path / "run", lines(2), rollouts=rollouts))
    assert "Left out as damaged: round_000002.jsonl.gz: a line's 'reward'" in text_of(page)
    assert [row["r"] for row in rows_of(page)] == [1]


def test_the_same_response_to_another_prompt_has_no_colours(tmp_path):
    run_dir = run_files.write(tmp_path / "run", lines(1), rollouts={1: [run_files.response("2", prompt="9+9=")]})
    score_tokens(run_dir, ["2"], prompt="1+1=", response="2")
    page = page_of(run_dir)
    assert "s" not in rows_of(page)[0]
    assert "No token has colours yet" in text_of(page)
    score_tokens(run_dir, ["2"], prompt="9+9=", response="2")
    assert rows_of(page_of(run_dir))[0]["s"] == [[1.0]] * 3


def test_colours_of_an_older_checkpoint_than_the_newest_are_noted(tmp_path):
    run_dir = run_files.write(tmp_path / "run", lines(4), rollouts={1: [run_files.response()]})
    score_tokens(run_dir, ["5"])
    note = "These numbers are of the checkpoint of round 2; the newest is of round 4."
    (run_dir / "checkpoints" / "2").mkdir(parents=True)
    assert "the newest is" not in text_of(page_of(run_dir))
    (run_dir / "checkpoints" / "4").mkdir()
    assert note in text_of(page_of(run_dir))


@pytest.mark.parametrize("value", [None, float("nan"), "1"])
def test_scores_that_are_no_numbers_are_refused(tmp_path, value):
    run_dir = run_files.write(tmp_path / "run", lines(1), rollouts={1: [run_files.response()]})
    score_tokens(run_dir, ["5"])
    file = run_dir / "token_scores.jsonl.gz"
    content = gzip.decompress(file.read_bytes())
    assert b"1.0]" in content
    file.write_bytes(gzip.compress(content.replace(b"1.0]", json.dumps(value).encode() + b"]")))
    with pytest.raises(ValueError, match="a score is no finite number"):
        page_of(run_dir)


@pytest.mark.parametrize(
    ("response", "tokens", "pieces", "numbers"),
    [
        ("é", ["\ufffd", "\ufffd"], ["é"], [3.0]),
        ("a é b", ["a", " \ufffd", "\ufffd", " b"], ["a", " é", " b"], [1.0, 5.0, 4.0]),
        (" é é !", [" \ufffd", "\ufffd", " \ufffd", "\ufffd", " ", "!"], [" é é", " ", "!"], [10.0, 5.0, 6.0]),
        ("\ufffd.", ["\ufffd", "."], ["\ufffd", "."], [1.0, 2.0]),
    ],
)
def test_tokens_that_share_a_character_are_shown_as_one_with_their_sum(tmp_path, response, tokens, pieces, numbers):
    run_dir = run_files.write(tmp_path / "run", lines(1), rollouts={1: [run_files.response(response)]})
    score_tokens(run_dir, tokens, response=response)
    (row,) = rows_of(page_of(run_dir))
    assert (row["t"], row["s"][0]) == (pieces, numbers)
    assert "x" not in row, "the tokens are the text"


def test_tokens_that_are_not_the_text_have_it_beside_them(tmp_path):
    run_dir = run_files.write(tmp_path / "run", lines(1), rollouts={1: [run_files.response("two words")]})
    score_tokens(run_dir, ["two", "words"], response="two words")
    (row,) = rows_of(page_of(run_dir))
    assert (row["x"], row["t"]) == ("two words", ["two", "words"])


def test_long_examples_of_inspect_are_cut_and_the_page_says_so(tmp_path):
    run_dir = run_files.write(tmp_path / "run", lines(1))
    write_inspection(run_dir, num_tokens=24_000)
    page = page_of(run_dir)
    assert page.count("<span title=") == 2 * 4_000
    assert text_of(page).count("(the page shows 4,000 of 24,000 tokens)") == 2
    assert len(page.encode()) < report.MAX_BYTES


def test_a_section_that_would_make_the_page_too_large_is_left_out_and_said(tmp_path):
    run_dir = run_files.write(tmp_path / "run", lines(1), rollouts={1: [run_files.response("an answer")]})
    write_inspection(run_dir, num_tokens=3_000, text="<" * 400)
    page = page_of(run_dir)
    assert len(page.encode()) < report.MAX_BYTES
    assert "Endogenous reward Left out: the page would be larger than 5 MB." in text_of(page)
    assert rows_of(page)[0]["x"] == "an answer"


def write_inspection(run_dir, *, num_tokens, text=" tok"):
    """A result of `reval inspect` with two examples."""
    names = ("num_prompts", "num_responses", "num_right", "num_mixed_prompts", "num_mixed_responses")
    example = {
        "where": "x:1",
        "prompt": "p",
        "verdict": "ok",
        "scores": {"return": 1.0},
        "tokens": [text] * num_tokens,
        **{name: [0.5] * num_tokens for name in ("endogenous_reward", "log_prob", "soft_value")},
    }
    result = {
        "model": "m",
        "rollouts": ["a"],
        "intervals": {"level": 0.95},
        "scores": {},
        "examples": [example] * 2,
        **dict.fromkeys(names, 2),
    }
    (run_dir / "inspect.json").write_text(json.dumps(result))


def test_of_very_many_resets_some_are_drawn_and_the_chart_says_how_many(tmp_path):
    every = lines(2_000, **{"timing_s/reference_store": 0.1})
    page = page_of(run_files.write(tmp_path / "run", every))
    chart = re.search(r'aria-label="Score of the sampled responses">(.*?)</svg>', page)[1]
    marks = re.findall(r'class="mark".*?<title>round (\d+)<', chart)
    assert len(marks) == 300
    assert (marks[0], marks[-1]) == ("1", "2000")
    assert "Vertical lines: 300 of the 2,000 resets of the reference." in text_of(page)
