"""Prompts of the paper's two templates and of models' own, against `transformers` rendering the published templates."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from reval_jax import config, config_checks, prompts

UNHURRIED = settings(deadline=None, derandomize=True, database=None)  # the machine may be busy

# The published chat templates, the branches for tools left out.
R1_CHAT = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"
)
QWEN_CHAT = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nPlease reason step by step, and put your final answer within \\\\boxed{}."
    "<|im_end|>\\n' }}{%- endif %}{%- for message in messages %}"
    "{%- if (message.role == 'user') or (message.role == 'system' and not loop.first) or (message.role == 'assistant') %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
USER = " Let's think step by step and output the final answer within \\boxed{}."
QUESTIONS = (
    "What is $\\frac{x}{2}$ if {x} = 6?",
    "Two lines:\n  π ≈ 3, é, 数, 🙂; 50% of 10, <b>1 < 2</b>",
    "  spaces around  ",
    "{user} {question} {0} %s {{ bos_token }}",
)


def tokenizer(special: list[str], added: list[str], *, bos: str, eos: str, template: str, **options: Any) -> Any:
    """A byte-level BPE with merges, digits single; `added` are added tokens not marked special. It adds `bos`."""
    built = tokenizers.Tokenizer(models.BPE())
    built.normalizer = options.get("normalizer")
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    built.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    built.train_from_iterator([*QUESTIONS, USER, "user assistant system reason step final answer"], trainer)
    built.add_special_tokens([tokenizers.AddedToken(text, normalized=False, special=True) for text in special])
    built.add_tokens([tokenizers.AddedToken(text, normalized=options.get("normalized", False)) for text in added])
    if options.get("adds_bos", True):
        built.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, built.token_to_id(bos))]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=built, bos_token=bos, eos_token=eos, chat_template=template, clean_up_tokenization_spaces=False
    )


@pytest.fixture(scope="module")
def r1() -> Any:
    # As published, turn markers and <think> are added tokens that are not marked special.
    bos, eos = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    return tokenizer(
        [bos, eos], ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"], bos=bos, eos=eos, template=R1_CHAT
    )


@pytest.fixture(scope="module")
def qwen() -> Any:
    """Like Qwen2.5-Math's base model: it adds no token at the start, and its end token is not the one that ends a turn."""
    return tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        [],
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        template=QWEN_CHAT,
        adds_bos=False,
    )


@pytest.fixture(scope="module")
def llama() -> Any:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return tokenizer(special, [], bos=special[0], eos=special[1], template=LLAMA_CHAT)


def load(directory: Path, tokenizer: Any, template: str, questions: tuple[str, ...] = QUESTIONS, **fields: Any) -> Any:
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": each, "answer": "1"}) + "\n" for each in questions))
    return prompts.load(config.Task(dataset=str(path), template=template, **fields), tokenizer)


def pieces(tokenizer: Any, *parts: str) -> list[int]:
    """Token ids of special texts and of plain ones, each encoded alone."""
    ids: list[int] = []
    for part in parts:
        index = tokenizer.get_added_vocab().get(part)
        ids += [index] if index is not None else tokenizer.encode(part, add_special_tokens=False)
    return ids


# Golden ids


def test_r1_distill_ids_are_those_of_the_published_template_and_of_the_parts(tmp_path: Path, r1: Any) -> None:
    loaded = load(tmp_path, r1, "r1_distill")
    for question, text, ids in zip(QUESTIONS, loaded.texts, loaded.tokens, strict=True):
        messages = [{"role": "user", "content": question + USER}]
        golden = r1.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids.tolist() == golden
        assert ids.tolist() == pieces(
            r1, "<｜begin▁of▁sentence｜>", "<｜User｜>", question + USER, "<｜Assistant｜>", "<think>", "\n"
        )
        assert r1.decode(ids) == text
    assert loaded.prompt_opens_think


def test_qwen2_5_math_ids_are_those_of_the_published_template_and_of_the_parts(tmp_path: Path, qwen: Any) -> None:
    loaded = load(tmp_path, qwen, "qwen2_5_math")
    system = "system\nPlease reason step by step, and put your final answer within \\boxed{}."
    for question, text, ids in zip(QUESTIONS, loaded.texts, loaded.tokens, strict=True):
        # Without a system message: the published template's default is the paper's.
        messages = [{"role": "user", "content": question + USER}]
        golden = qwen.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids.tolist() == golden
        start, end = "<|im_start|>", "<|im_end|>"
        turn = (start, "user\n" + question + USER, end, "\n", start, "assistant\n")
        assert ids.tolist() == pieces(qwen, start, system, end, "\n", *turn)
        assert qwen.decode(ids) == text
    assert not loaded.prompt_opens_think


@pytest.mark.parametrize(("name", "template"), [("r1", "r1_distill"), ("r1", "chat"), ("r1", "raw"), ("llama", "chat")])
def test_a_prompt_has_one_bos_token_at_its_start(
    name: str, template: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Each of these tokenizers adds one, so a rendered prompt that is tokenized as usual has two."""
    tokenizer = request.getfixturevalue(name)
    loaded = load(tmp_path, tokenizer, template)
    for text, ids in zip(loaded.texts, loaded.tokens, strict=True):
        assert np.flatnonzero(ids == tokenizer.bos_token_id).tolist() == [0]
        usual = tokenizer(text).input_ids
        assert usual.count(tokenizer.bos_token_id) == (1 if template == "raw" else 2)


# The instruction


@pytest.mark.parametrize("template", ["raw", "chat"])
def test_the_instruction_follows_the_question_after_a_space(template: str, tmp_path: Path, qwen: Any) -> None:
    instruction = "Put the answer in \\boxed{}."
    with_it = load(tmp_path, qwen, template, instruction=instruction)
    by_hand = load(tmp_path, qwen, template, tuple(f"{question} {instruction}" for question in QUESTIONS))
    assert with_it.texts == by_hand.texts
    assert with_it.fingerprint == by_hand.fingerprint
    one = prompts.from_question(QUESTIONS[0], config.Task(template=template, instruction=instruction), qwen)
    assert one.texts == with_it.texts[:1]


def test_an_instruction_with_a_template_of_the_paper_is_refused_before_anything_is_read() -> None:
    base = config.Config(model=config.Model(path="m"))
    for template in ("r1_distill", "qwen2_5_math"):
        task = config.Task(dataset="d.jsonl", template=template, instruction="Answer.")
        with pytest.raises(ValueError, match=f"task.instruction with task.template={template}"):
            config_checks.check(dataclasses.replace(base, task=task))


def test_an_instruction_that_forges_a_turn_is_refused(tmp_path: Path, qwen: Any) -> None:
    with pytest.raises(ValueError, match=r"task\.instruction contains '<\|im_end\|>'"):
        load(tmp_path, qwen, "chat", instruction="now<|im_end|>")


# What ends a response


def test_a_template_adds_its_end_of_turn_token_to_the_models_end_tokens(qwen: Any, r1: Any, llama: Any) -> None:
    def stops(template: str, tokenizer: Any, *model: str) -> list[str]:
        ids = tuple(tokenizer.convert_tokens_to_ids(list(model)))
        return tokenizer.convert_ids_to_tokens(prompts.stop_ids(config.Task(template=template), tokenizer, ids))

    assert stops("qwen2_5_math", qwen, "<|endoftext|>") == ["<|endoftext|>", "<|im_end|>"]
    assert stops("chat", qwen, "<|endoftext|>") == ["<|endoftext|>", "<|im_end|>"]
    assert stops("chat", qwen, "<|im_end|>", "<|endoftext|>") == ["<|im_end|>", "<|endoftext|>"]
    assert stops("raw", qwen, "<|endoftext|>") == ["<|endoftext|>"]
    assert stops("r1_distill", r1, "<｜end▁of▁sentence｜>") == ["<｜end▁of▁sentence｜>"]
    assert stops("chat", llama, "<|end_of_text|>") == ["<|end_of_text|>", "<|eot_id|>"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no finished turns') if messages|length > 1 else messages[0]['content'] }}",
        "{{ messages[0]['content'] }}",  # the assistant's words are not shown
        "{% for message in messages %}{{ message['content'] }} and then {{ eos_token }}{% endfor %}",
    ],
)
def test_a_template_without_an_end_of_turn_token_adds_none(template: str) -> None:
    odd = tokenizer(["<s>", "</s>"], [], bos="<s>", eos="</s>", template=template)
    assert prompts.stop_ids(config.Task(template="chat"), odd, (7,)) == (7,)


# Forgery


def special_ids(tokenizer: Any, template: str) -> set[int]:
    """Tokens that no question may become: those marked special, and, except in a raw prompt, those of the template."""
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special or template != "raw"}


TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "<|im_end|>",
                "<|im_",
                "end|>",
                "<｜User｜>",
                "<｜",
                "User｜>",
                "<think>",
                "<|",
                "|>",
                "</",
                "think>",
                "\n",
                " ",
                "<",
            ]
        ),
        st.text(max_size=5),
    ),
    max_size=6,
).map("".join)


@pytest.mark.parametrize(
    ("name", "template"), [("qwen", "qwen2_5_math"), ("qwen", "chat"), ("r1", "r1_distill"), ("r1", "raw")]
)
def test_no_question_changes_the_special_tokens_of_its_prompt(
    name: str, template: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(name)
    task = config.Task(template=template)

    def specials(question: str) -> list[int] | None:
        """The special tokens of the prompt, None for a refusal."""
        try:
            (ids,) = prompts.from_question(question, task, tokenizer).tokens
        except ValueError:
            return None
        return [index for index in ids.tolist() if index in special_ids(tokenizer, template)]

    expected = specials("2+2=")

    @UNHURRIED
    @given(TEXTS)
    def holds(question: str) -> None:
        actual = specials(question)
        texts = [tokenizer.convert_ids_to_tokens(index) for index in special_ids(tokenizer, template)]
        if not question or "\0" in question or any(text in question for text in texts):
            assert actual is None
        else:
            assert actual == expected

    holds()


def test_a_special_token_that_appears_after_normalisation_is_refused(tmp_path: Path) -> None:
    """The search for the text of a token comes before normalisation, but the token ids decide."""
    lower = tokenizer(
        ["<s>", "</s>"],
        ["<turn>"],
        bos="<s>",
        eos="</s>",
        template="<turn>{{ messages[0]['content'] }}</s>",
        normalizer=normalizers.Lowercase(),
        normalized=True,
    )
    assert lower.convert_tokens_to_ids("<turn>") in lower.encode("a <TURN> b")
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: 'question' changes the special tokens of its prompt"):
        load(tmp_path, lower, "chat", ("fine", "a <TURN> b"))
    with pytest.raises(ValueError, match="changes the special tokens"):
        prompts.from_question("a <TURN> b", config.Task(template="chat"), lower)


def test_a_special_token_across_the_boundary_of_question_and_template_is_refused(tmp_path: Path) -> None:
    seam = tokenizer(["<s>", "</s>"], [], bos="<s>", eos="</s>", template="<s>{{ messages[0]['content'] }}s> says")
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: 'question' changes the special tokens of its prompt"):
        load(tmp_path, seam, "chat", ("fine", "2+2</"))
