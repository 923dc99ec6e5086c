"""Texts of special tokens: in the paper's templates, at the end of a response, forbidden in questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import transformers

MARKERS = {
    "r1_distill": ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
    "qwen2_5_math": ("<|im_start|>", "<|im_end|>"),
}
"""Special tokens in a template of the paper; each must be one token of the model's tokenizer."""
STOP_TEXTS = {
    "r1_distill": ("<｜end▁of▁sentence｜>",),
    # Qwen2.5-Math's base model names only the second as its end token, but turns of this template end with the first.
    "qwen2_5_math": ("<|im_end|>", "<|endoftext|>"),
}
"""Texts that end a response to a template of the paper."""


def special_texts(template: str, tokenizer: transformers.PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Texts that no question may contain, because the tokenizer turns them into special tokens.

    An added token that is not marked special counts only if the template contains it, as R1-Distill's contains `<｜User｜>`;
    Gemma's `<b>` does not count.
    """
    rendered = "".join(MARKERS.get(template, ()))
    if template == "r1_distill":
        rendered += "<think></think>"
    elif template == "chat":
        rendered = str(tokenizer.chat_template)
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special or token.content in rendered}
    return tuple(sorted(text for text in special | set(tokenizer.all_special_tokens) if text.strip()))
