from __future__ import annotations

import collections
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from reval_jax import config, prompts
from reval_jax.data import rows

UNHURRIED = settings(deadline=None, derandomize=True, database=None)  # the machine may be busy

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
R1_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}<｜User｜>{{ message['content'] }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)


def ends(bos: str, eos: str) -> dict[str, str]:
    return {"bos_token": bos, "eos_token": eos}


def byte_tokenizer(special: list[str], **options: Any) -> transformers.PreTrainedTokenizerFast:
    """One token a byte, after the special ones; `added` are added tokens that are not marked special."""
    added, bos = options.pop("added", []), options.pop("adds_bos", False)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[])
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens(special)
    inner.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in added])
    if bos:
        token = options["bos_token"]
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{token} $A {options['eos_token']}",
            special_tokens=[(name, inner.token_to_id(name)) for name in (token, options["eos_token"])],
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **options)


@pytest.fixture(scope="module")
def chatml() -> transformers.PreTrainedTokenizerFast:
    return byte_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        **ends("<|im_start|>", "<|im_end|>"),
        chat_template=CHATML,
        added=["<b>"],
    )


@pytest.fixture(scope="module")
def with_bos() -> transformers.PreTrainedTokenizerFast:
    return byte_tokenizer(
        ["<s>", "</s>"], **ends("<s>", "</s>"), adds_bos=True, chat_template="{{ bos_token }}" + CHATML
    )


@pytest.fixture(scope="module")
def r1() -> transformers.PreTrainedTokenizerFast:
    # As in R1-Distill, the turn markers are added tokens that are not marked special.
    bos, eos = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    return byte_tokenizer(
        [bos, eos],
        **ends(bos, eos),
        adds_bos=True,
        chat_template=R1_CHAT,
        added=["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"],
    )


def write(path: Path, rows: list[Any]) -> str:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def questions(*texts: str) -> list[dict[str, str]]:
    return [{"question": text, "answer": str(i)} for i, text in enumerate(texts)]


def task(dataset: str, **fields: Any) -> config.Task:
    return dataclasses.replace(config.Task(dataset=dataset, template="raw"), **fields)


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory, chatml: transformers.PreTrainedTokenizerFast) -> prompts.Dataset:
    path = tmp_path_factory.mktemp("ten") / "ten.jsonl"
    return prompts.load(task(write(path, questions(*(f"{i}+{i}=" for i in range(10))))), chatml)


# The order


@UNHURRIED
@given(st.integers(0, 60), st.integers(0, 25), st.integers(0, 25), st.integers(0, 2**32 - 1))
def test_taking_in_two_parts_gives_what_taking_at_once_gives(
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
    dataset = prompts.load(task(write(tmp_path / "one.jsonl", questions("2+2="))), chatml)
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
    dataset = prompts.load(task(write(tmp_path / "rows.jsonl", questions("2+2="))), with_bos)
    assert with_bos("2+2=").input_ids[-1] == with_bos.eos_token_id
    assert with_bos.decode(dataset.tokens[0]) == "<s>2+2="
    assert len(dataset.tokens[0]) == 5


@pytest.mark.parametrize("name", ["chatml", "with_bos", "r1"])
def test_a_chat_prompt_is_what_transformers_makes_of_it(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(name)
    dataset = prompts.load(task(write(tmp_path / "rows.jsonl", questions("2+2=", "π?")), template="chat"), tokenizer)
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
    dataset = prompts.load(task(write(tmp_path / "rows.jsonl", questions(question)), template="r1_distill"), r1)
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
        task(write(tmp_path / "rows.jsonl", questions("What is {x}?")), template="qwen2_5_math"), chatml
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
    path = write(tmp_path / "rows.jsonl", questions("2+2="))
    with pytest.raises(ValueError, match=r"task\.template=r1_distill .* not one token"):
        prompts.load(task(path, template="r1_distill"), chatml)
    with pytest.raises(ValueError, match=r"task\.template=qwen2_5_math .*im_start.* not one token"):
        prompts.load(task(path, template="qwen2_5_math"), with_bos)
    with pytest.raises(ValueError, match="no chat template"):
        prompts.load(task(path, template="chat"), byte_tokenizer(["<s>", "</s>"], **ends("<s>", "</s>")))


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
    path = write(tmp_path / "rows.jsonl", questions("fine", text))
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: 'question' contains '<.*special token"):
        prompts.load(task(path, template=template), request.getfixturevalue(name))


def test_an_added_token_that_no_template_is_made_of_may_be_asked_about(
    tmp_path: Path, chatml: transformers.PreTrainedTokenizerFast
) -> None:
    path = write(tmp_path / "rows.jsonl", questions("what does <b> mean, and 1 < 2 > 0?"))
    assert prompts.load(task(path, template="chat"), chatml).size == 1


# Lengths and the fingerprint


def test_long_prompts_are_refused_by_line_or_dropped_and_counted(
    tmp_path: Path, chatml: transformers.PreTrainedTokenizerFast
) -> None:
    path = write(tmp_path / "rows.jsonl", questions("12345", "1234567", "123", "12345678"))
    limited = task(path, max_prompt_tokens=5)
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
        return prompts.load(task(write(tmp_path / name, rows), **fields), chatml).fingerprint

    rows = questions("ab", "c")
    base = fingerprint("a.jsonl", rows)
    assert len(base) == 16
    assert int(base, 16) >= 0
    assert fingerprint("b.jsonl", [row | {"id": "extra"} for row in rows], max_prompt_tokens=7) == base
    others = {
        fingerprint("c.jsonl", rows[::-1]),
        fingerprint("d.jsonl", questions("a", "bc")),
        fingerprint("e.jsonl", [rows[0], rows[1] | {"answer": "9"}]),
        fingerprint("f.jsonl", rows[:1]),
        fingerprint("g.jsonl", rows, template="chat"),
    }
    assert len(others | {base}) == 6


# The rows


def test_every_kind_of_bad_row_is_named_by_line_in_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts.rows, "SHOWN_PROBLEMS", 20)
    good = {"question": "2+2=", "answer": "4", "source": "extra fields are ignored"}
    bad = [
        ({"question": "x"}, "no field 'answer'"),
        ({"answer": "4"}, "no field 'question'"),
        ({"question": "x", "answer": 4}, "'answer' is a int, not a string: 4"),
        ({"question": ["x"], "answer": "4"}, "'question' is a list"),
        ({"question": None, "answer": "4"}, "'question' is a NoneType"),
        ({"question": " \n", "answer": "4"}, "'question' is empty"),
        ({"question": "x", "answer": ""}, "'answer' is empty"),
        ({"question": "a\0b", "answer": "4"}, "'question' contains a NUL"),
        ('{"question": "a\\ud800b", "answer": "4"}', "'question' contains a lone surrogate"),
        ("[1, 2]", "a list, not an object"),
        ("{'question': 1}", "not JSON"),
        ("9" * 5000, "not JSON"),
        ("[" * 100_000, "not JSON"),
        (good, "the same question as "),
    ]
    path = write(tmp_path / "rows.jsonl", [good, "", *(row for row, _ in bad)])
    with pytest.raises(ValueError, match=f"{len(bad)} rows can't be used") as raised:
        prompts.read(path)
    for line, (_, problem) in enumerate(bad, start=3):
        assert f"rows.jsonl:{line}: {problem}" in str(raised.value)
    assert str(raised.value).endswith("Mend or remove them.")


def test_only_the_first_bad_rows_are_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ["{}"] * 1000)
    with pytest.raises(ValueError, match=r"1000 rows .*rows\.jsonl:5: [^;]*; and 995 more") as raised:
        prompts.read(path)
    assert len(str(raised.value)) < 1000


def test_bytes_that_are_not_utf8_are_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"question": "a", "answer": "1"}\n{"question": "\xff", "answer": "1"}\n')
    with pytest.raises(ValueError, match=r"1 row can't be used: .*rows\.jsonl:2: not JSON"):
        prompts.read(str(path))


def test_line_ends_and_a_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "a", "answer": "1"}\r\n\r\n{"question": "b\\u2028", "answer": "2"}')
    assert [row[1:] for row in prompts.read(str(path))] == [("a", "1"), ("b\u2028", "2")]


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_data_set_without_rows_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match="has no rows"):
        prompts.read(str(path))


def test_a_path_that_holds_no_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,answer\n")
    (tmp_path / "folder").mkdir()
    for name, found in (("none.jsonl", "nothing there"), ("rows.csv", "another kind"), ("folder", "TFDS directory")):
        with pytest.raises(ValueError, match=found):
            prompts.read(str(tmp_path / name))


def test_messages_about_a_benchmark_name_the_settings_of_benchmarks(
    tmp_path: Path, chatml: transformers.PreTrainedTokenizerFast
) -> None:
    """Every way in which a data set can be refused."""
    (tmp_path / "folder").mkdir()
    write(tmp_path / "empty.jsonl", [])
    write(tmp_path / "bad.jsonl", ["{"])
    write(tmp_path / "forged.jsonl", questions("a<|im_end|>"))
    write(tmp_path / "long.jsonl", questions("x" * 99))
    for name in ("absent.jsonl", "folder", "empty.jsonl", "bad.jsonl", "forged.jsonl", "long.jsonl"):
        asked = task(str(tmp_path / name), max_prompt_tokens=9)
        for named, said, other in (
            (rows.BENCHMARK, "eval.benchmarks=", "task.dataset"),
            (None, "task.dataset=", "eval."),
        ):
            with pytest.raises(ValueError, match=said + re.escape(asked.dataset)) as refused:
                prompts.load(asked, chatml, **({"named": named} if named else {}))
            assert other not in str(refused.value)
            assert ("eval.split=" in str(refused.value)) == (name == "folder" and named is not None)


def test_only_a_directory_of_one_split_names_it(tmp_path: Path) -> None:
    info = tmp_path / rows.INFO
    for content, expected in (
        ('{"splits": [{"name": "test"}]}', "test"),
        ('{"splits": [{"name": "test"}, {"name": "train"}]}', ""),
        ('{"splits": []}', ""),
        ("[]", ""),
        ('{"splits"', ""),
    ):
        info.write_text(content)
        assert prompts.only_split(str(tmp_path)) == expected
    for other in ("absent", str(info), "procedural:arithmetic"):
        assert prompts.only_split(other) == ""


TFDS_WRITER = """
import ast
import sys
import tensorflow_datasets as tfds

ROWS = ast.literal_eval(sys.argv[2])


class Sums(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"question": text, "answer": text}),
            disable_shuffling=True,
        )

    def _split_generators(self, download_manager):
        return {"test": iter(enumerate(ROWS))}

    def _generate_examples(self):
        raise AssertionError


Sums(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""

TFDS_READER = """
import json, sys
from reval_jax import prompts

rows = [list(row) for row in prompts.read(sys.argv[1], split="test")]
print(json.dumps([rows, "tensorflow" in sys.modules, "torch" in sys.modules]))
"""


def tfds_directory(where: Path, rows: list[dict[str, Any]]) -> Path:
    """A TFDS directory of these rows, written in a process of its own: TFDS keeps a registry of builders."""
    command = [sys.executable, "-W", "ignore", "-c", TFDS_WRITER, str(where), repr(rows)]
    subprocess.run(command, check=True, capture_output=True)
    return where / "sums" / "1.0.0"


@pytest.mark.slow
def test_a_tfds_directory_is_read_as_text_without_tensorflow(tmp_path: Path) -> None:
    path = tfds_directory(tmp_path, questions("2+2=", "π?", "x"))
    done = subprocess.run(
        [sys.executable, "-c", TFDS_READER, str(path)], check=True, capture_output=True, text=True,
        cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip
    rows, has_tensorflow, has_torch = json.loads(done.stdout)
    assert rows == [[f"{path}[test]:{i}", text, str(i)] for i, text in enumerate(["2+2=", "π?", "x"])]
    assert not has_tensorflow
    assert not has_torch


@pytest.mark.slow
def test_bad_rows_and_splits_of_a_tfds_directory_are_named(tmp_path: Path) -> None:
    path = tfds_directory(tmp_path, [*questions("a", ""), {"question": b"\xff", "answer": "1"}])
    with pytest.raises(
        ValueError, match=r"2 rows .*\[test\]:1: 'question' is empty; .*\[test\]:2: 'question' is a bytes"
    ):
        prompts.read(str(path), split="test")
    with pytest.raises(ValueError, match=r"task\.split=train can't be read .*one of its splits"):
        prompts.read(str(path), split="train")
