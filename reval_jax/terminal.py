"""Text for a person's terminal: nothing in it is obeyed, and any encoding can show it."""

from __future__ import annotations

import io
import re
import sys

# Control characters except newline and tab (an escape sequence begins with one), and those that turn the direction of text.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""The text with every character that a terminal obeys as its escape (`\x1b`); newlines and tabs stay.

    Sampled text, file names and data from elsewhere may hold sequences that move the cursor, hide text, or set the clipboard.
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def accept_every_character() -> None:
    """Print characters that the standard streams' encoding lacks as escapes, instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
