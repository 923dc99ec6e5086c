"""Keeps one jaxlib release from computing silently wrong numbers on CPU.

jaxlib 0.10.2 hands reductions on CPU to a library whose fusion is miscompiled: a vmapped matrix-vector product followed
by a sum returns wrong rows, with no error (https://github.com/jax-ml/jax/issues/39103). Taking reductions out of that
fusion cures it. XLA reads its flags once, when the first backend starts, so this has to run before that; and it aborts
the process on a flag it does not know, so the flag is added for the affected release only. Delete this module when
0.10.2 leaves the supported versions.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import sys
import warnings

AFFECTED_JAXLIB = frozenset({"0.10.2"})
FLAG = "--xla_cpu_experimental_ynn_fusion_type"
REMEDY = f"{FLAG}=-reduce"


def install() -> None:
    """Adds the remedy to `os.environ["XLA_FLAGS"]` where this process needs it, and warns where it no longer can help.

    A value that the user chose for the same flag is kept. Does not import jax. After a backend has started the
    environment is left as it is: the flag would be read by nobody here, and its presence would hide the fault from
    `came_too_late`.
    """
    if not came_too_late():
        flags = os.environ.get("XLA_FLAGS", "")
        guarded = guarded_flags(flags, jaxlib_version())
        if guarded != flags:
            os.environ["XLA_FLAGS"] = guarded
    if is_exposed():
        warnings.warn(exposure_message(), RuntimeWarning, stacklevel=3)


def is_exposed() -> bool:
    """True if this process may get wrong numbers on CPU: an affected jaxlib, reductions not taken out of the fusion."""
    return jaxlib_version() in AFFECTED_JAXLIB and not _is_reduction_off(os.environ.get("XLA_FLAGS", ""))


def came_too_late() -> bool:
    """True if an affected jaxlib started a backend before the guard was installed, so that the fault is live.

    Stays true for the life of the process. False where the user set the flag, to whatever value (see `is_exposed`).
    """
    is_unset = fusion_setting(os.environ.get("XLA_FLAGS", "")) is None
    return jaxlib_version() in AFFECTED_JAXLIB and is_unset and is_backend_started()


def exposure_message() -> str:
    """The warning for a process that `is_exposed`: the cause, why it matters, what to change."""
    if came_too_late():
        cause = "a jax backend had started before reval_jax was imported"
        change = "Import reval_jax before the first jax computation"
    else:
        cause = f"XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r} leaves reductions in the faulty fusion"
        change = "Take that setting out"
    return (
        f"reval_jax works around a CPU fault of jaxlib {jaxlib_version()}, but {cause}, so sums computed on CPU can be "
        f"silently wrong (jax issue 39103). {change}, or set XLA_FLAGS={REMEDY} before Python starts."
    )


def guarded_flags(xla_flags: str, version: str | None) -> str:
    """Returns the XLA_FLAGS to use with this jaxlib, given the present ones.

    They come back unchanged unless the release is affected and the flag is not set. XLA takes a value that does not
    begin with `--` for the name of a file of flags, and then nothing can be appended to it: the file's text takes its
    place.
    """
    if version not in AFFECTED_JAXLIB or fusion_setting(xla_flags) is not None:
        return xla_flags
    text = _flag_text(xla_flags)
    if text and not text.startswith("--"):
        return xla_flags  # A missing file: XLA names it as it aborts, and should name what the user gave.
    return f"{text} {REMEDY}".strip()


def fusion_setting(xla_flags: str) -> str | None:
    """Returns the value that XLA will use for the flag, the last one given, or None if it is not set."""
    values = [token.partition("=")[2] for token in _flag_text(xla_flags).split() if token.partition("=")[0] == FLAG]
    return values[-1] if values else None


def jaxlib_version() -> str | None:
    """Returns the release of the installed jaxlib, without a local suffix such as `+cuda`; None if there is none."""
    try:
        return importlib.metadata.version("jaxlib").partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None  # Nothing to guard: `import jax` will fail, and say so better than we can.


def is_backend_started() -> bool:
    """True if jax has started a backend in this process. Does not import jax."""
    # jax has no public way to ask this without starting the backend.
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bridge.backends_are_initialized()


def _is_reduction_off(xla_flags: str) -> bool:
    """True if the flag's value keeps reductions out: empty (no fusion at all) or with `-reduce` in its list."""
    setting = fusion_setting(xla_flags)
    return setting is not None and (setting == "" or "-reduce" in setting.split(","))


def _flag_text(xla_flags: str) -> str:
    """Returns the flags themselves, read from the file if the value names one."""
    text = xla_flags.strip()
    if text and not text.startswith("--") and pathlib.Path(text).is_file():
        return pathlib.Path(text).read_text(encoding="utf-8").strip()
    return text
