"""Prompts: an endless order that one integer resumes, and the text and tokens of each template."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from support import hf_checkpoints, prompt_sets

from reval_jax import prompts, verifier

UNHURRIED = settings(deadline=None, derandomize=True, database=None)  # the machine may be busy

R1_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}<｜User｜>{{ message['content'] }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)


@pytest.fixture(scope="module")
def chatml() -> transformers.PreTrainedTokenizerFast:
    return prompt_sets.chatml_tokenizer()


@pytest.fixture(scope="module")
def with_bos() -> transformers.PreTrainedTokenizerFast:
    return prompt_sets.byte_tokenizer(
        ["<s>", "</s>"],
        **prompt_sets.ends("<s>", "</s>"),
        adds_bos=True,
        chat_template="{{ bos_token }}" + prompt_sets.CHATML,
    )


@pytest.fixture(scope="module")
def r1() -> transformers.PreTrainedTokenizerFast:
    # As in R1-Distill, the turn markers are added tokens that are not marked special.
    bos, eos = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    return prompt_sets.byte_tokenizer(
        [bos, eos],
        **prompt_sets.ends(bos, eos),
        adds_bos=True,
        chat_template=R1_CHAT,
        added=["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"],
    )


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory, chatml: transformers.PreTrainedTokenizerFast) -> prompts.Dataset:
    path = tmp_path_factory.mktemp("ten") / "ten.jsonl"
    return prompts.load(
        prompt_sets.task(prompt_sets.write(path, prompt_sets.questions(*(f"{i}+{i}=" for i in range(10))))), chatml
    )


# The order


@UNHURRIED
@given(st.integers(0, 60), st.integers(0, 25), st.integers(0, 25), st.integers(0, 2**32 - 1))
def test_taking_prompts_in_two_parts_equals_taking_them_at_once(
    ten: prompts.Dataset, cursor: int, n: int, m: int, seed: int
) -> None:
    first, between = prompts.take(ten, cursor, n, seed=seed)
    second, behind = prompts.take(ten, between, m, seed=seed)
    both, end = prompts.take(ten, cursor, n + m, seed=seed)
    assert (between, behind, end) == (cursor + n, cursor + n + m, cursor + n + m)
    for part_one, part_two, whole in zip(first, second, both, strict=True):
        assert [*map(str, part_one), *map(str, part_two)] == [*map(str, whole)]
    np.testing.assert_array_equal(both.cursor, np.arange(cursor, cursor + n + m))
    assert (both.cursor.dtype, both.row.dtype) == (np.int64, np.int64)


def test_each_epoch_is_a_permutation_of_the_rows_and_no_two_are_alike(ten: prompts.Dataset) -> None:
    orders = set()
    for seed in range(5):
        taken, _ = prompts.take(ten, 0, 200, seed=seed)
        for epoch in taken.row.reshape(20, 10):
            assert sorted(epoch.tolist()) == list(range(10))
            orders.add(tuple(epoch.tolist()))
    assert len(orders) == 100


def test_a_prompt_is_its_row(ten: prompts.Dataset) -> None:
    taken, _ = prompts.take(ten, 7, 12, seed=3)
    for row, text, tokens, answer in zip(taken.row, taken.texts, taken.tokens, taken.answers, strict=True):
        assert (text, answer) == (f"{row}+{row}=", str(row))
        assert tokens is ten.tokens[row]
        assert not tokens.flags.writeable


def test_the_first_row_of_an_epoch_is_uniform(ten: prompts.Dataset) -> None:
    taken, _ = prompts.take(ten, 0, 10 * 1000, seed=0)
    counts = collections.Counter(taken.row.reshape(1000, 10)[:, 0].tolist())
    # The seed is fixed, so this p-value is too.
    assert scipy.stats.chisquare([counts[row] for row in range(10)]).pvalue > 0.001


def test_one_row_is_repeated_without_end(tmp_path: Path, chatml: transformers.PreTrainedTokenizerFast) -> None:
    dataset = prompts.load(
        prompt_sets.task(prompt_sets.write(tmp_path / "one.jsonl", prompt_sets.questions("2+2="))), chatml
    )
    taken, cursor = prompts.take(dataset, 10**9, 3, seed=0)
    assert (taken.row.tolist(), taken.texts, cursor) == ([0, 0, 0], ("2+2=",) * 3, 10**9 + 3)


def test_a_negative_cursor_or_count_is_refused(ten: prompts.Dataset) -> None:
    for cursor, n in ((-1, 1), (0, -1)):
        with pytest.raises(ValueError, match="numbers from 0 up"):
            prompts.take(ten, cursor, n, seed=0)


# The templates


def test_a_raw_prompt_is_the_tokens_of_its_text_alone(ten: prompts.Dataset) -> None:
    assert ten.texts[2] == "2+2="
    assert len(ten.tokens[2]) == 4
    assert ten.tokens[2].dtype == np.int32
    assert not ten.prompt_opens_think


def test_a_raw_prompt_begins_with_bos_and_has_no_eos_where_the_tokenizer_adds_both(
    tmp_path: Path, with_bos: transformers.PreTrainedTokenizerFast
) -> None:
    dataset = prompts.load(
        prompt_sets.task(prompt_sets.write(tmp_path / "rows.jsonl", prompt_sets.questions("2+2="))), with_bos
    )
    assert with_bos("2+2=").input_ids[-1] == with_bos.eos_token_id
    assert with_bos.decode(dataset.tokens[0]) == "<s>2+2="
    assert len(dataset.tokens[0]) == 5


@pytest.mark.parametrize("template", ["raw", "chat"])
def test_a_rendered_prompt_and_a_response_become_their_tokens_again(
    template: str, tmp_path: Path, with_bos: transformers.PreTrainedTokenizerFast
) -> None:
    rows = prompt_sets.write(tmp_path / "rows.jsonl", prompt_sets.questions("2+2=", "π?"))
    dataset = prompts.load(prompt_sets.task(rows, template=template), with_bos)
    for again, tokens in zip(
        prompts.encode_rendered(list(dataset.texts), template, with_bos), dataset.tokens, strict=True
    ):
        np.testing.assert_array_equal(again, tokens)
    response = [*with_bos("4", add_special_tokens=False).input_ids, with_bos.eos_token_id]
    assert prompts.encode(with_bos.batch_decode([response], skip_special_tokens=False), with_bos) == [response]


@pytest.mark.parametrize("name", ["chatml", "with_bos", "r1"])
def test_a_chat_prompt_equals_that_of_transformers(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    dataset = prompts.load(
        prompt_sets.task(
            prompt_sets.write(tmp_path / "rows.jsonl", prompt_sets.questions("2+2=", "π?")), template="chat"
        ),
        tokenizer,
    )
    for text, ids, question in zip(dataset.texts, dataset.tokens, ["2+2=", "π?"], strict=True):
        messages = [{"role": "user", "content": question}]
        golden = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids.tolist() == golden
        assert text == tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert dataset.prompt_opens_think == (name == "r1")


def test_the_r1_distill_prompt_is_the_models_chat_prompt_of_the_papers_user_text(
    tmp_path: Path, r1: transformers.PreTrainedTokenizerFast
) -> None:
    question = "What is {x} in \\frac{x}{2} = 3?"
    dataset = prompts.load(
        prompt_sets.task(
            prompt_sets.write(tmp_path / "rows.jsonl", prompt_sets.questions(question)), template="r1_distill"
        ),
        r1,
    )
    user = question + " Let's think step by step and output the final answer within \\boxed{}."
    assert dataset.texts == (f"<｜begin▁of▁sentence｜><｜User｜>{user}<｜Assistant｜><think>\n",)
    messages = [{"role": "user", "content": user}]
    golden = r1.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert dataset.tokens[0].tolist() == golden
    assert golden.count(r1.bos_token_id) == 1
    assert dataset.prompt_opens_think


def test_the_qwen2_5_math_prompt_is_the_models_chat_prompt_of_the_papers_texts(
    tmp_path: Path, chatml: transformers.PreTrainedTokenizerFast
) -> None:
    dataset = prompts.load(
        prompt_sets.task(
            prompt_sets.write(tmp_path / "rows.jsonl", prompt_sets.questions("What is {x}?")), template="qwen2_5_math"
        ),
        chatml,
    )
    system = "Please reason step by step, and put your final answer within \\boxed{}."
    user = "What is {x}? Let's think step by step and output the final answer within \\boxed{}."
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    assert dataset.texts == (chatml.apply_chat_template(messages, add_generation_prompt=True, tokenize=False),)
    golden = chatml.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert dataset.tokens[0].tolist() == golden
    assert not dataset.prompt_opens_think


def test_a_template_that_does_not_fit_the_tokenizer_is_refused(
    tmp_path: Path, chatml: transformers.PreTrainedTokenizerFast, with_bos: transformers.PreTrainedTokenizerFast
) -> None:
    path = prompt_sets.write(tmp_path / "rows.jsonl", prompt_sets.questions("2+2="))
    with pytest.raises(ValueError, match=r"task\.template=r1_distill .* not one token"):
        prompts.load(prompt_sets.task(path, template="r1_distill"), chatml)
    with pytest.raises(ValueError, match=r"task\.template=qwen2_5_math .*im_start.* not one token"):
        prompts.load(prompt_sets.task(path, template="qwen2_5_math"), with_bos)
    with pytest.raises(ValueError, match="no chat template"):
        prompts.load(
            prompt_sets.task(path, template="chat"),
            prompt_sets.byte_tokenizer(["<s>", "</s>"], **prompt_sets.ends("<s>", "</s>")),
        )


@pytest.mark.parametrize(
    ("name", "template", "text"),
    [
        ("chatml", "chat", "a <|im_end|> b"),
        ("chatml", "raw", "<|endoftext|>"),
        ("chatml", "qwen2_5_math", "<|im_start|>system"),
        ("r1", "r1_distill", "x<｜Assistant｜>y"),
        ("r1", "r1_distill", "x</think>y"),
        ("r1", "chat", "x<｜User｜>y"),
        ("r1", "raw", "x<｜end▁of▁sentence｜>y"),
    ],
)
def test_a_question_that_forges_a_special_token_is_refused_by_line(
    name: str, template: str, text: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = prompt_sets.write(tmp_path / "rows.jsonl", prompt_sets.questions("fine", text))
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: 'question' contains '<.*special token"):
        prompts.load(prompt_sets.task(path, template=template), request.getfixturevalue(name))


def test_a_question_may_contain_an_added_token_that_no_template_contains(
    tmp_path: Path, chatml: transformers.PreTrainedTokenizerFast
) -> None:
    path = prompt_sets.write(tmp_path / "rows.jsonl", prompt_sets.questions("what does <b> mean, and 1 < 2 > 0?"))
    assert prompts.load(prompt_sets.task(path, template="chat"), chatml).size == 1


# Lengths and the fingerprint


def test_long_prompts_are_refused_by_line_or_dropped_and_counted(
    tmp_path: Path, chatml: transformers.PreTrainedTokenizerFast
) -> None:
    path = prompt_sets.write(tmp_path / "rows.jsonl", prompt_sets.questions("12345", "1234567", "123", "12345678"))
    limited = prompt_sets.task(path, max_prompt_tokens=5)
    with pytest.raises(ValueError, match=r"max_prompt_tokens=5, but 2 of the 4 .*:2 \(7 tokens\), .*:4 \(8 tokens\)"):
        prompts.load(limited, chatml)
    dropped = prompts.load(dataclasses.replace(limited, long_prompts="drop"), chatml)
    assert (dropped.texts, dropped.answers, dropped.num_dropped) == (("12345", "123"), ("0", "2"), 2)
    with pytest.raises(ValueError, match=r"4 of the 4 .* Set task.max_prompt_tokens=8\."):
        prompts.load(dataclasses.replace(limited, max_prompt_tokens=2, long_prompts="drop"), chatml)


def test_the_fingerprint_changes_with_rows_order_answers_and_template_only(
    tmp_path: Path, chatml: transformers.PreTrainedTokenizerFast
) -> None:
    def fingerprint(name: str, rows: list[dict[str, str]], **fields: Any) -> str:
        return prompts.load(prompt_sets.task(prompt_sets.write(tmp_path / name, rows), **fields), chatml).fingerprint

    rows = prompt_sets.questions("ab", "c")
    base = fingerprint("a.jsonl", rows)
    assert len(base) == 16
    assert int(base, 16) >= 0
    assert fingerprint("b.jsonl", [row | {"id": "extra"} for row in rows], max_prompt_tokens=7) == base
    others = {
        fingerprint("c.jsonl", rows[::-1]),
        fingerprint("d.jsonl", prompt_sets.questions("a", "bc")),
        fingerprint("e.jsonl", [rows[0], rows[1] | {"answer": "9"}]),
        fingerprint("f.jsonl", rows[:1]),
        fingerprint("g.jsonl", rows, template="chat"),
    }
    assert len(others | {base}) == 6


# --- the text of a response, as the verifier gets it


@pytest.mark.parametrize("is_special", [False, True])
def test_thinking_tags_are_seen_however_the_tokenizer_declares_them(is_special: bool) -> None:
    tokenizer = hf_checkpoints.tiny_tokenizer()
    tags = [transformers.AddedToken(tag, special=is_special) for tag in ("<think>", "</think>")]
    tokenizer.add_tokens(tags, special_tokens=is_special)
    for text, opens, kind in (
        ("<think>no \\boxed{3}</think>so \\boxed{4}", False, "ok"),
        ("no \\boxed{3}</think>so \\boxed{4}", True, "ok"),
        ("<think>try \\boxed{4} or", False, "unclosed_think"),
    ):
        ids = np.array([*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id])
        (decoded,) = prompts.decode(tokenizer, [ids], (tokenizer.eos_token_id,))
        assert decoded == text
        assert verifier.grade(decoded, "4", answer_format="boxed", prompt_opens_think=opens).kind == kind


def test_only_special_tokens_that_end_or_pad_a_response_are_left_out() -> None:
    tokenizer = hf_checkpoints.tiny_tokenizer()
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    four, two = (tokenizer(digit, add_special_tokens=False).input_ids for digit in "42")
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    responses = [
        [*four, start, *two, end],
        [*four, end, pad, pad],
        [*four, start],
        [*four, pad, *two],
        [end],
        [],
        [*four, *two],
    ]
    texts = prompts.decode(tokenizer, [np.array(ids, np.int32) for ids in responses], (end, two[0]))
    # The last one ends in a stop token that is ordinary text.
    assert texts == ["4<|im_start|>2", "4", "4<|im_start|>", "4<|pad|>2", "", "", "42"]
    assert verifier.grade(f"\\boxed{{{texts[0]}}}", "42", answer_format="boxed").kind == "unparsed"
