"""Prompt templates: renders and tokenizes questions, and finds the tokens that end a response."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from reval_jax import config
from reval_jax.data import rows as rows_lib
from reval_jax.data import special_tokens
from reval_jax.sandbox import rendering

if TYPE_CHECKING:
    import transformers

USER_TEXT = "{question} Let's think step by step and output the final answer within \\boxed{{}}."
"""The user message of the paper's two templates (ReVal, arXiv 2603.23355, Figs. 12 and 13)."""

R1_DISTILL = "<｜begin▁of▁sentence｜><｜User｜>{user}<｜Assistant｜><think>\n"
QWEN2_5_MATH = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{{}}.<|im_end|>\n"
    "<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
)

_PLAIN = "0"  # a question without special tokens of any tokenizer
_SHOWN = 60  # characters of a text in a message


def today() -> str:
    """The date that a new run's chat template prints, if it prints one: YYYY-MM-DD."""
    return datetime.date.today().isoformat()


def check(task: config.Task, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    """Refuse a template that does not fit the tokenizer, and an instruction that contains a special token.

    Raises:
      ValueError: the tokenizer has no chat template or lacks a special token, or the instruction contains one.
    """
    if task.template == "chat" and not _chat_template(tokenizer):
        names = (
            f": none of its templates is called 'default' ({', '.join(named)})" if (named := _named(tokenizer)) else ""
        )
        raise ValueError(
            f"task.template=chat, but the model's tokenizer has no chat template{names}. Use task.template=raw, or an "
            "instruction-tuned model."
        )
    for marker in special_tokens.MARKERS.get(task.template, ()):
        if tokenizer.encode(marker, add_special_tokens=False) != [tokenizer.convert_tokens_to_ids(marker)]:
            raise ValueError(
                f"task.template={task.template} contains {marker}, which is not one token of this model's tokenizer: "
                "the model was trained on other prompts. Use task.template=chat or raw."
            )
    forged = [text for text in special_tokens.special_texts(task.template, tokenizer) if text in task.instruction]
    if forged:
        raise ValueError(
            f"task.instruction contains {forged[0]!r}, the text of a special token: it would end or fake a turn. Remove it."
        )


def refuse_forged_text(
    task: config.Task, rows: list[rows_lib.Row], tokenizer: transformers.PreTrainedTokenizerBase, *, source: str
) -> None:
    """Refuse questions that contain the text of a special token; `source` names the data set in the message."""
    special = special_tokens.special_texts(task.template, tokenizer)
    bad_rows = [
        rows_lib.BadRow(row.where, f"'question' contains {text!r}")
        for row in rows
        for text in special
        if text in row.question
    ]
    remedy = "That is the text of a special token: it would end or fake a turn. Remove it."
    rows_lib.refuse(source, bad_rows, remedy)


def render(
    task: config.Task,
    rows: list[rows_lib.Row],
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    date: str,
    source: str,
) -> tuple[list[str], list[np.ndarray]]:
    """Rendered text and tokens i32[P_i] of every row's prompt; call `refuse_forged_text` first.

    A prompt contains its question, unchanged but for white space at its two ends, which many templates cut off.

    Args:
      date: that a chat template prints as today's, YYYY-MM-DD.
      source: names the data set in messages.

    Raises:
      ValueError: the template fails, or leaves a question out, or gives two questions one prompt; a prompt has no token; a
        question changes the special tokens of its prompt. Its text contains none, but a tokenizer may produce one when it
        normalises the text, or where question and template meet.
    """
    texts = _prompt_texts(task, rows, tokenizer, date)
    _refuse_lost_questions(task, rows, texts[:-1], source)
    *tokens, plain = encode_rendered(texts, task.template, tokenizer)
    special = {tokenizer.convert_tokens_to_ids(text) for text in special_tokens.special_texts(task.template, tokenizer)}
    special.discard(tokenizer.unk_token_id)  # any unknown text becomes it
    ids = np.array(sorted(index for index in special if index is not None), np.int32)
    expected = plain[np.isin(plain, ids)]
    empty = [
        rows_lib.BadRow(row.where, f"'question' {row.question[:_SHOWN]!r} gives a prompt without a token")
        for row, prompt in zip(rows, tokens, strict=True)
        if not len(prompt)
    ]
    rows_lib.refuse(source, empty, "The tokenizer leaves nothing of it. Remove it.")
    bad_rows = [
        rows_lib.BadRow(row.where, "'question' changes the special tokens of its prompt")
        for row, prompt in zip(rows, tokens, strict=True)
        if not np.array_equal(prompt[np.isin(prompt, ids)], expected)
    ]
    remedy = "The tokenizer turns part of it into a special token, which would end or fake a turn. Remove it."
    rows_lib.refuse(source, bad_rows, remedy)
    return texts[:-1], tokens


def _refuse_lost_questions(task: config.Task, rows: list[rows_lib.Row], texts: list[str], source: str) -> None:
    """Refuse a template that drops or changes questions, or gives two of them the same prompt."""
    bad_rows = []
    first: dict[str, rows_lib.Row] = {}
    for row, text in zip(rows, texts, strict=True):
        shown = f"'question' {row.question[:_SHOWN]!r}"
        if _asked(task, row.question).strip() not in text:
            bad_rows.append(rows_lib.BadRow(row.where, f"{shown} is not in its prompt {text[:_SHOWN]!r}"))
        elif first.setdefault(text, row).question.strip() != row.question.strip():
            bad_rows.append(rows_lib.BadRow(row.where, f"{shown} gives the same prompt as {first[text].where}"))
    rows_lib.refuse(
        source,
        bad_rows,
        f"With task.template={task.template} a prompt has to contain its question and task.instruction unchanged. Use "
        "task.template=raw, or a model whose chat template prints the content of one user message.",
    )


def encode_rendered(
    texts: list[str], template: str, tokenizer: transformers.PreTrainedTokenizerBase
) -> list[np.ndarray]:
    """Tokens i32[P_i] of rendered prompts; a raw prompt begins with the beginning-of-sequence token, where one is added."""
    prefix = _prefix(template, tokenizer)
    return [np.array(prefix + ids, np.int32) for ids in encode(texts, tokenizer)]


def stop_ids(
    task: config.Task,
    tokenizer: transformers.PreTrainedTokenizerBase,
    model_stop_ids: tuple[int, ...],
    *,
    date: str = "",
) -> tuple[int, ...]:
    """Tokens that end a response to `task.template`: the model's, then those that end a turn of the template.

    For "chat" the latter is the special token that the chat template writes right after an assistant's message.

    Args:
      date: that a chat template prints as today's, YYYY-MM-DD; empty means today.
    """
    texts = special_tokens.STOP_TEXTS.get(task.template, ())
    if task.template == "chat":
        texts = _end_of_turn(tokenizer, date or today())
    known = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
    return tuple(dict.fromkeys([*model_stop_ids, *(known[text] for text in texts if text in known)]))


def _end_of_turn(tokenizer: transformers.PreTrainedTokenizerBase, date: str) -> tuple[str, ...]:
    """The special token after an assistant's message in the tokenizer's chat template; empty if there is none."""
    answer = "forty-two"
    turns = [{"role": "user", "content": _PLAIN}, {"role": "assistant", "content": answer}]
    try:
        (text,) = _rendered(tokenizer, [turns], date=date, add_generation_prompt=False)
    except rendering.RenderError:  # a template may fail for a finished turn; the model's end tokens remain
        return ()
    _, separator, after = text.rpartition(answer)
    special = special_tokens.special_texts("chat", tokenizer)
    return tuple(each for each in special if separator and after.lstrip().startswith(each))


def _prompt_texts(
    task: config.Task, rows: list[rows_lib.Row], tokenizer: transformers.PreTrainedTokenizerBase, date: str
) -> list[str]:
    """The prompt of each row, and last that of a plain question."""
    asked = [_asked(task, question) for question in (*(row.question for row in rows), _PLAIN)]
    if task.template == "raw":
        return asked
    if task.template != "chat":
        layout = R1_DISTILL if task.template == "r1_distill" else QWEN2_5_MATH
        return [layout.format(user=user) for user in asked]
    chats = [[{"role": "user", "content": user}] for user in asked]
    try:
        return _rendered(tokenizer, chats, date=date, add_generation_prompt=True)
    except rendering.RenderError as error:
        which = f"'question' of {rows[error.index].where}" if error.index < len(rows) else f"question {_PLAIN!r}"
        raise ValueError(
            f"task.template=chat: the chat template of {tokenizer.name_or_path or 'the model'} failed on the {which} as the "
            f"only message, a user's: {error}. Use task.template=raw, or a model whose template takes such a message."
        ) from error


def _asked(task: config.Task, question: str) -> str:
    """The question with its instruction: the user's message."""
    if task.template not in ("raw", "chat"):
        return USER_TEXT.format(question=question)
    return f"{question} {task.instruction}" if task.instruction else question


def _rendered(
    tokenizer: transformers.PreTrainedTokenizerBase,
    chats: Sequence[list[dict[str, str]]],
    *,
    date: str,
    add_generation_prompt: bool,
) -> list[str]:
    """The text of each chat in the tokenizer's chat template."""
    variables = {
        name: [str(each) for each in value] if isinstance(value, list | tuple) else str(value)
        for name, value in tokenizer.special_tokens_map.items()
    }
    return rendering.render(
        _chat_template(tokenizer), variables, chats, date=date, add_generation_prompt=add_generation_prompt
    )


def _chat_template(tokenizer: transformers.PreTrainedTokenizerBase) -> str:
    """The source of the chat template that `transformers` takes by default; empty if there is none."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else ""


def _named(tokenizer: transformers.PreTrainedTokenizerBase) -> list[str]:
    """The names of the tokenizer's chat templates, if they have names."""
    return sorted(map(str, tokenizer.chat_template)) if isinstance(tokenizer.chat_template, dict) else []


def _prefix(template: str, tokenizer: transformers.PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-sequence token of a raw prompt, where the tokenizer adds one."""
    added = tokenizer("").input_ids
    if template == "raw" and added and added[0] == tokenizer.bos_token_id:
        return [added[0]]
    return []


def encode(texts: list[str], tokenizer: transformers.PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each text, in which the text of a special token becomes that token, and none is added."""
    # verbose=False: task.max_prompt_tokens is checked, so the tokenizer's warning about its own limit is not needed.
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids
