"""Chat templates come with a model and are programs: they may fail, never end, drop the question, look at the clock."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import pytest
from support import prompt_sets
from tokenizers import normalizers

from reval_jax import config, prompts
from reval_jax.sandbox import rendering

# What a template may not do


def with_template(template: Any) -> Any:
    odd = prompt_sets.byte_tokenizer(["<s>", "</s>"], **prompt_sets.ends("<s>", "</s>"))
    odd.chat_template = template
    return odd


def load(directory: Path, tokenizer: Any, template: str, questions: tuple[str, ...] = ("2+2=",), **fields: Any) -> Any:
    path = prompt_sets.write(directory / "rows.jsonl", prompt_sets.questions(*questions))
    return prompts.load(prompt_sets.task(path, template=template, **fields), tokenizer)


ECHO = "{{ messages[0]['content'] }}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('a system message is required') }}", "TemplateError: a system message is required"),
        ("{% if messages %}{{ x", "TemplateSyntaxError: unexpected end of template"),
        ("{{ foo.bar.baz }}", "UndefinedError: 'foo' is undefined"),
        ("{{ messages + 1 }}", "TypeError: "),
        ("{% include '/etc/passwd' %}", "TypeError: no loader"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "RecursionError"),
        ("{{ range(10 ** 9) }}", "OverflowError: "),
        ("{{ ''.__class__.__mro__ }}", "SecurityError: "),
        ("{{ cycler.__init__.__globals__.os.system('touch CANARY') }}", "SecurityError: "),
        ("{{ 'x' * 10 ** 10 }}", "more than 512 MiB"),
        ("{{ 'x' * (messages | length * 10 ** 10) }}", "more than 512 MiB"),
        ("{{ '%09999999999d' % 1 }}", "more than 512 MiB|OverflowError|ValueError"),
        ("{{ '\\ud800' }}", "UnicodeEncodeError: .*surrogates not allowed"),
        ("{{ 'x' * 2000000 }}", "2000000 characters"),
    ],
)
def test_a_template_that_fails_is_refused_in_one_message(
    template: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "canary"
    odd = with_template(template.replace("CANARY", str(canary)))
    with pytest.raises(
        ValueError, match=rf"the chat template of .* failed on the 'question' of .*rows\.jsonl:1.*{reason}"
    ):
        load(tmp_path, odd, "chat")
    assert not canary.exists()
    # The next template is rendered as if nothing had happened.
    assert load(tmp_path, with_template(ECHO), "chat", ("2+2=",)).texts == ("2+2=",)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
        "{{ (9 ** 999999) ** 99999 }}",  # one operation, in which Python looks at no signal
    ],
)
def test_a_template_without_end_is_stopped(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "BASE_SECONDS", 0.5)
    rendering.close()
    with pytest.raises(ValueError, match=r"the chat template of .* failed .* more CPU time"):
        load(tmp_path, with_template(template), "chat")
    assert prompts.stop_ids(config.Task(template="chat"), with_template(template), (7,)) == (7,)


def test_a_list_of_named_templates_needs_a_default(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of its templates is called 'default' \(rag, tool_use\)"):
        load(tmp_path, with_template({"tool_use": ECHO, "rag": ECHO}), "chat")
    assert load(tmp_path, with_template({"tool_use": "", "default": ECHO}), "chat", ("2+2=",)).texts == ("2+2=",)


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        # Reads the content as a list of parts.
        (
            "{% for m in messages %}<u>{% for p in m['content'] %}{{ p['text'] }}{% endfor %}</u>{% endfor %}",
            "'<u></u>'",
        ),
        ("{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}", "''"),
        ("{{ messages[0].text }}", "''"),
        ("{{ undefined }}", "''"),
        ("{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}?", r"'\?'"),
        ("{{ messages[0].content[:-1] }}", "'1<'"),
        ("{{ messages[0].content | escape }}", "'1&lt;2'"),
        ("{{ messages[0].content | upper }}", "'1<2'"),  # the second question only
    ],
)
def test_a_template_that_drops_or_changes_the_question_is_refused(template: str, shown: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'question' '.*' is not in its prompt .*task\.template=chat") as refused:
        load(tmp_path, with_template(template), "chat", ("1<2", "x+y="))
    assert re.search(shown, str(refused.value)) or "upper" in template
    with pytest.raises(ValueError, match="is not in its prompt"):
        prompts.from_question("x<y", config.Task(template="chat"), with_template(template))


def test_white_space_at_the_ends_of_a_question_may_go_but_its_instruction_may_not(tmp_path: Path) -> None:
    trims = with_template("<u>{{ messages[0].content | trim }}</u>")
    assert load(tmp_path, trims, "chat", (" a\n\n b ",)).texts == ("<u>a\n\n b</u>",)
    cuts = with_template("{{ messages[0].content.split(' Box')[0] }}")
    with pytest.raises(ValueError, match=r"question and task\.instruction unchanged"):
        load(tmp_path, cuts, "chat", ("2+2=",), instruction="Box it.")


def test_two_questions_with_one_prompt_are_refused(tmp_path: Path) -> None:
    both = with_template("1+1= and 2+2=")
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: 'question' '2\+2=' gives the same prompt as .*rows\.jsonl:1"):
        load(tmp_path, both, "chat", ("1+1=", "2+2="))


def test_a_prompt_without_a_token_is_refused(tmp_path: Path) -> None:
    deletes = with_template(None)
    deletes.backend_tokenizer.normalizer = normalizers.Replace("a", "")
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: 'question' 'aa' gives a prompt without a token"):
        load(tmp_path, deletes, "raw", ("b", "aa"))


# The clock and chance


def test_the_clock_of_a_template_shows_the_date_that_it_is_given(tmp_path: Path) -> None:
    dated = with_template("{{ strftime_now('%d %B %Y %H:%M') }} " + ECHO)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "2+2=", "answer": "4"}\n')
    task = config.Task(dataset=str(path), template="chat")
    loaded = prompts.load(task, dated, date="2024-02-29")
    assert loaded.texts == ("29 February 2024 00:00 2+2=",)
    assert prompts.load(task, dated, date="2024-02-29").fingerprint == loaded.fingerprint
    assert prompts.load(task, dated, date="2024-03-01").fingerprint != loaded.fingerprint
    assert prompts.from_question("2+2=", task, dated, date="2024-02-29").texts == loaded.texts
    today = datetime.date.today().strftime("%d %B %Y 00:00 2+2=")
    assert prompts.load(task, dated).texts in ((today,), (datetime.date.today().strftime("%d %B %Y 00:00 2+2="),))


def test_a_template_that_draws_at_random_always_draws_the_same(tmp_path: Path) -> None:
    drawn = with_template("{{ range(1000) | random }} " + ECHO)
    loaded = load(tmp_path, drawn, "chat", ("a", "b"))
    assert loaded.texts[0].split()[0] == loaded.texts[1].split()[0]
    assert load(tmp_path, drawn, "chat", ("b", "a")).texts == loaded.texts[::-1]


def test_many_prompts_are_those_of_transformers(tmp_path: Path) -> None:
    qwen = prompt_sets.chatml_tokenizer()
    questions = tuple(f"What is {i} + {i}?" for i in range(2 * rendering.PROMPTS_PER_REQUEST + 1))
    expected = [
        qwen.apply_chat_template([{"role": "user", "content": each}], tokenize=False, add_generation_prompt=True)
        for each in questions
    ]
    assert load(tmp_path, qwen, "chat", questions).texts == tuple(expected)


def test_a_process_that_was_idle_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(tmp_path, with_template(ECHO), "chat", ("2+2=",))
    process = rendering._Renderer.current._process  # type: ignore[union-attr]
    process.stdin.close()  # it ends itself, as when it is idle  # type: ignore[union-attr]
    process.wait()
    monkeypatch.setattr(process, "poll", lambda: None)  # as when it ends between the look and the request
    monkeypatch.setattr(process, "stdin", (tmp_path / "closed").open("w"))
    assert load(tmp_path, with_template(ECHO), "chat", ("2+2=",)).texts == first.texts
