"""Formats of published data sets: field names, extraction of the gold answer, and location of the files.

Every format reads the uniform fields `question` and `answer` too. A format's `convert` returns the question and answer of a
record unchecked (`rows.sift` checks them), or a `rows.BadRecord` with the reason.
"""

from __future__ import annotations

import dataclasses
import decimal
import difflib
import hashlib
import math
import random
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from reval_jax.data import rows
from reval_jax.verifier import boxes

Fields = dict[str, Any]  # parsed fields of one record
Converted = dict[str, Any] | rows.BadRecord  # with the keys "question" and "answer"

QUESTION = ("question", "problem", "Question", "Problem")
"""Publishers' names of the question, in order of precedence."""
ANSWER = ("answer", "Answer")
SOLUTION = ("solution", "Solution")
_COMPETITION = (*QUESTION, *ANSWER, *SOLUTION)
_OPTIONS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")  # GPQA's


class Published(NamedTuple):
    """A data set on the Hugging Face hub."""

    repository: str
    files: dict[str, str]  # split -> file


@dataclasses.dataclass(frozen=True)
class Format:
    """One publisher's format of questions and answers."""

    about: str  # for --help
    convert: Callable[[Fields, int], Converted]  # (a record's fields, seed of random choices) → question and answer
    reads: tuple[str, ...]  # the fields that `convert` may read
    published: Published | None = None


class _UnusableError(Exception):
    """A record without a usable question or answer; the message is the reason."""


def converted(record: object, convert: Callable[[Fields, int], Converted], seed: int) -> Any:
    """The record's question and answer; a record that is not an object is returned unchanged, and `rows.sift` refuses it."""
    if not isinstance(record, dict):
        return record
    try:
        return convert(record, seed)
    except _UnusableError as error:
        return rows.BadRecord(str(error))


def plain(question: str, answer: str) -> Callable[[Fields, int], Converted]:
    """A `convert` that takes question and answer from the two named fields, whose values must be text."""

    def convert(record: Fields, seed: int) -> Converted:
        for field in (question, answer):
            if field not in record:
                return rows.BadRecord(f"no field '{field}' ({rows.field_names(record)})")
            if not isinstance(record[field], str):
                value = record[field]
                return rows.BadRecord(f"'{field}' is a {type(value).__name__}, not a string: {reprlib.repr(value)}")
        return {"question": record[question], "answer": record[answer]}

    return convert


def find_question(record: object) -> str | None:
    """The question of a record of any format; None if it has none."""
    value = next((record[name] for name in QUESTION if name in record), None) if isinstance(record, dict) else None
    return value if isinstance(value, str) else None


def last_box(text: str) -> str | None:
    r"""The content of the last balanced `\boxed{}` or `\fbox{}` of a worked solution."""
    spans = boxes.find(text).contents
    return text[slice(*spans[-1])].strip() if spans else None


def _competition(record: Fields, seed: int) -> Converted:
    """The published answer, with numbers as text; without one, the boxed answer of the solution."""
    question = _field(record, QUESTION)
    if any(record.get(name) is not None for name in ANSWER):
        return {"question": question, "answer": _text("answer", _field(record, ANSWER))}
    return {"question": question, "answer": _boxed(record)}


def _gsm8k(record: Fields, seed: int) -> Converted:
    """The text after the last `####`, or the whole answer if it is only a number."""
    question, answer = _field(record, QUESTION), _text("answer", _field(record, ANSWER))
    _, mark, gold = answer.rpartition("####")
    gold = gold.strip()
    if not mark and not re.fullmatch(r"-?[\d,]*\.?\d+", gold):
        raise _UnusableError(f"'answer' has no '####' before the gold answer: {reprlib.repr(answer)}")
    return {"question": question, "answer": re.sub(r"(?<=\d),(?=\d{3})", "", gold)}


def _olympiad_bench(record: Fields, seed: int) -> Converted:
    """All entries of `final_answer`, joined; a question that refers to a picture is unusable."""
    question = _field(record, QUESTION)
    if not isinstance(question, str) or "final_answer" not in record:
        return _competition(record, seed)
    if re.search(r"<image_?\d*>", question):
        raise _UnusableError("'question' refers to a picture")
    context = record.get("context")
    if isinstance(context, str) and context.strip():
        question = f"{context.strip()}\n{question}"
    golds = record["final_answer"]
    golds = golds if isinstance(golds, list) else [golds]
    if not golds or golds == [None]:
        raise _UnusableError("'final_answer' is empty")
    return {"question": question, "answer": ", ".join(_text("final_answer", gold) for gold in golds)}


def _gpqa(record: Fields, seed: int) -> Converted:
    """The question followed by its options, in an order that is a function of (seed, question); the answer is a letter."""
    question = _text("Question", _field(record, ("Question",))).strip()
    options = [_text(name, _field(record, (name,))).strip() for name in _OPTIONS]
    if len(set(options)) < len(options) or not all(options):
        raise _UnusableError("an option is empty, or two are the same")
    if not (rows.is_text(question) and all(map(rows.is_text, options))):
        raise _UnusableError("a field contains a NUL character or a lone surrogate, which is not text")
    order = list(range(len(options)))
    # hashlib, not hash(): the order must be the same in every process.
    digest = hashlib.sha256(f"{seed}\n{question}".encode()).digest()
    random.Random(int.from_bytes(digest, "little")).shuffle(order)  # noqa: S311  # not a secret
    lines = [f"{letter}) {options[index]}" for letter, index in zip("ABCD", order, strict=True)]
    return {"question": "\n".join([question, "", *lines]), "answer": "ABCD"[order.index(0)]}


def _field(record: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The value of the first named field that the record has."""
    for name in names:
        if name in record:
            return record[name]
    options = " or ".join(f"'{name}'" for name in names)
    raise _UnusableError(f"no field {options} ({rows.field_names(dict(record))})")


def _text(field: str, value: object) -> str:
    """A published answer as text: AMC's are floats, those of some AIME files integers; a decimal column is exact."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return str(int(value))
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if isinstance(value, decimal.Decimal) and value.is_finite():
        text = f"{value:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text  # 0.50 is 0.5
    raise _UnusableError(f"'{field}' is a {type(value).__name__}, not a string or number: {reprlib.repr(value)}")


def _boxed(record: Fields) -> str:
    solution = _text("solution", _field(record, (*SOLUTION, *ANSWER)))
    answer = last_box(solution)
    if not answer:
        raise _UnusableError("no 'answer', and nothing boxed in 'solution'")
    return answer


_TRAIN = "data/train-00000-of-00001.parquet"
FORMATS = {
    "plain": Format(
        "`question` and `answer`, both text; other names with --question and --answer",
        plain("question", "answer"),
        ("question", "answer"),
    ),
    "deepscaler": Format(
        "problem, answer",
        _competition,
        _COMPETITION,
        Published("agentica-org/DeepScaleR-Preview-Dataset", {"train": "deepscaler.json"}),
    ),
    "aime24": Format(
        "problem, answer", _competition, _COMPETITION, Published("HuggingFaceH4/aime_2024", {"train": _TRAIN})
    ),
    "aime25": Format(
        "problem, answer", _competition, _COMPETITION, Published("math-ai/aime25", {"test": "test.jsonl"})
    ),
    "amc": Format(
        "problem, answer (a float)",
        _competition,
        _COMPETITION,
        Published("AI-MO/aimo-validation-amc", {"train": _TRAIN}),
    ),
    "math500": Format(
        "problem, answer", _competition, _COMPETITION, Published("HuggingFaceH4/MATH-500", {"test": "test.jsonl"})
    ),
    "minerva": Format(
        "question, answer; or problem, and the gold answer boxed in solution",
        _competition,
        _COMPETITION,
        Published("math-ai/minervamath", {"test": "test.jsonl"}),
    ),
    "olympiad_bench": Format(
        "question, final_answer (a list)",
        _olympiad_bench,
        (*_COMPETITION, "final_answer", "context"),
        Published(
            "Hothan/OlympiadBench",
            {"train": "OlympiadBench/OE_TO_maths_en_COMP/OE_TO_maths_en_COMP.parquet"},
        ),
    ),
    "gsm8k": Format(
        "question, answer with the gold answer after ####",
        _gsm8k,
        (*QUESTION, *ANSWER),
        Published("openai/gsm8k", {name: f"main/{name}-00000-of-00001.parquet" for name in ("train", "test")}),
    ),
    "gpqa": Format(
        "Question, Correct Answer, Incorrect Answer 1 to 3, in a file of your own", _gpqa, ("Question", *_OPTIONS)
    ),
}
"""Every `--format`; `plain` first."""


def find(name: str) -> Format:
    """The format of that name.

    Raises:
      ValueError: it does not exist; the message names the nearest.
    """
    if name not in FORMATS:
        nearest = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0.0)[0]
        raise ValueError(f"--format {name} is unknown. Did you mean {nearest}? ({', '.join(FORMATS)})")
    return FORMATS[name]


def download(format_name: str, split: str) -> Path:
    """The local path of a format's published file, downloaded unless it is in the Hugging Face hub's cache.

    Raises:
      ValueError: it has no published file or split, or the hub can't be reached.
    """
    published = find(format_name).published
    if published is None:
        reason = " (its authors ask that its questions not be reposted)" if format_name == "gpqa" else ""
        raise ValueError(
            f"--format {format_name} has no published file to download{reason}. Name yours with --input FILE."
        )
    if split not in published.files:
        raise ValueError(
            f"--split {split}: {published.repository} has {', '.join(published.files)} only. Use one of these, or --input FILE."
        )
    import huggingface_hub  # a network library: imported only where the network is used

    try:
        return Path(huggingface_hub.hf_hub_download(published.repository, published.files[split], repo_type="dataset"))
    except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise ValueError(
            f"{published.files[split]} of {published.repository} could not be fetched from the Hugging Face hub and is not in "
            f"its cache ({type(error).__name__}). Check the network, or download it elsewhere and name it with --input FILE."
        ) from error
