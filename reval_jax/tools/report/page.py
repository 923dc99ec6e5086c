"""The report's HTML file: its sections in the order in which a stranger needs them, and what its browser may load (nothing)."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from reval_jax import durable
from reval_jax.tools.report import browser, comparison, curves, headline, reading, tokens

MAX_BYTES = 5_000_000
"""No report is larger but for its first screen and its curves, which are never left out."""

_ROOM = 100_000  # bytes for style, script and the head

_HERE = Path(__file__).parent


def write(run_dir: Path, output: Path) -> Path:
    """Writes the report of a run; returns `output`.

    Raises:
      ValueError: the run has no metrics, or they, inspect.json or token_scores.jsonl.gz are damaged; or the file cannot be
        written.
    """
    run = reading.read(run_dir)
    body = f"<header><h1>{headline.text(run.name)}</h1>{headline.section(run)}</header>{curves.sections([run])}"
    others = {
        "Rollouts": browser.section(run),
        "Endogenous reward": tokens.section(run.directory.inspection),
        "Settings": _settings(run),
    }
    return _write(output, run.name, body + _fitting(others, MAX_BYTES - _ROOM - _size(body)))


def _fitting(sections: dict[str, str], num_bytes: int) -> str:
    """The sections by heading; while they are too large for a page, a sentence in place of the largest."""
    kept = dict(sections)
    for name in sorted(sections, key=lambda each: _size(sections[each]), reverse=True):
        if sum(map(_size, kept.values())) <= num_bytes:
            break
        if kept[name]:
            kept[name] = (
                f"<section><h2>{name}</h2><p>Left out: the page would be larger than {MAX_BYTES / 1e6:g} MB.</p></section>"
            )
    return "".join(kept.values())


def _size(text: str) -> int:
    return len(text.encode(errors="backslashreplace"))


def write_comparison(run_dir: Path, other_dir: Path, output: Path) -> Path:
    """Writes a report of two runs on the same axes; returns `output`.

    Raises:
      ValueError: as `write`, for either.
    """
    runs = [reading.read(run_dir), reading.read(other_dir)]
    title = f"{runs[0].name} and {runs[1].name}"
    body = (
        f"<header><h1>{headline.text(title)}</h1>{comparison.headlines(runs)}</header>"
        f"{comparison.differences(*runs)}{curves.sections(runs)}"
    )
    return _write(output, title, body)


def _settings(run: reading.Run) -> str:
    if not run.config_text:
        return ""
    return (
        "<section><h2>Settings</h2><details><summary>config.yaml</summary>"
        f"<pre>{headline.text(run.config_text)}</pre></details></section>"
    )


def _write(output: Path, title: str, body: str) -> Path:
    style, script = _asset("page.css"), _asset("browser.js")
    # Nothing may be loaded, and of what stands in the file nothing runs but this script: whatever a response says.
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width"><meta name="referrer" content="no-referrer">'
        f"<title>{headline.text(title)} · reval report</title><style>{style}</style></head><body>{body}"
        f"<script>{script}</script></body></html>\n"
    )
    try:
        # A name's bytes that are no text are shown as escapes.
        with durable.output(output) as file:
            file.write(page.encode(errors="backslashreplace"))
    except OSError as error:
        raise ValueError(f"{output} cannot be written: {error.strerror}. Choose another --output.") from error
    return output


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """The source expression that allows this inline content alone."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
