"""The machine and its variables: what changes results is pinned, refused or recorded.

JAX reads a setting from each variable JAX_NAME. Those that change numbers and have one right value are set to it (PINNED); those
under which no run works are refused; of the rest, and of XLA's, a run records what was set, and says on resume what changed.
"""

from __future__ import annotations

import os
import platform
import warnings
from pathlib import Path
from typing import Any

import jax

PINNED: dict[str, Any] = {
    "jax_default_matmul_precision": None,
    "jax_default_prng_impl": "threefry2x32",
    "jax_enable_custom_prng": False,
    "jax_high_dynamic_range_gumbel": False,
    "jax_legacy_prng_key": "allow",
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_random_seed_offset": 0,
    "jax_threefry_partitionable": True,
}
"""Settings of jax that change numbers or refuse sound programs, with the values that every run has."""

REFUSED = {
    "jax_enable_x64": "every array of a run is in 32 bits or fewer",
    "jax_disable_jit": "a run compiles its programs",
    "jax_debug_nans": "a run skips and counts updates that are not finite",
    "jax_debug_infs": "a run skips and counts updates that are not finite",
    "jax_no_tracing": "a run compiles its programs",
    "jax_no_execution": "a run executes its programs",
}
"""Settings of jax that must be off, with the reason."""

VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG")
"""Variables of other libraries that may change results."""

_HARMLESS = (  # beginnings of settings of jax that change no result, or whose effect is recorded as a device
    "jax_check_",
    "jax_compilation_cache_",
    "jax_cuda_visible_devices",
    "jax_debug_log_",
    "jax_dump_",
    "jax_enable_compilation_cache",
    "jax_explain_",
    "jax_log",
    "jax_num_cpu_devices",
    "jax_persistent_cache_",
    "jax_platform",
    "jax_pprint_",
    "jax_raise_persistent_cache_errors",
    "jax_rocm_visible_devices",
    "jax_traceback_",
)

_INSTRUCTION_SETS = ("sse4", "avx", "fma", "f16c", "bmi", "amx", "asimd", "sve", "sme", "bf16", "i8mm", "fphp")


def pin() -> None:
    """Sets what a variable has set otherwise to the value that every run has, with a warning; before any program is traced."""
    for name, value in PINNED.items():
        variable = name.upper()
        if variable in os.environ and name in jax.config.values and _text(jax.config.values[name]) != _text(value):
            jax.config.update(name, value)
            warnings.warn(
                f"{variable}={os.environ[variable]} is not used: it would change results. They are those of {_text(value)}.",
                RuntimeWarning,
                stacklevel=3,
            )


def check() -> None:
    """Starts jax's devices.

    Raises:
      ValueError: a setting of jax is on under which no run works, or the devices cannot be started.
    """
    for name, reason in REFUSED.items():
        if jax.config.values.get(name):
            raise ValueError(f"{name.upper()} is on, but {reason}. Unset it.")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # jax asserts that a platform it does not find is there
        platforms = os.environ.get("JAX_PLATFORMS", "")
        remedy = "Unset JAX_PLATFORMS, or install what this platform needs." if platforms else "See reval doctor."
        reason = " ".join(str(error).split())[:300] or "no such platform is installed."
        raise ValueError(f"JAX_PLATFORMS={platforms}: jax cannot start its devices: {reason} {remedy}") from error


def facts() -> dict[str, str]:
    """What may change a result's last bits, by name: devices, on CPU the kind of CPU, and variables that are set."""
    device = jax.devices()[0]
    found = {
        "platform": device.platform,
        "device kind": device.device_kind,
        "number of devices": str(jax.device_count()),
        "number of processes": str(jax.process_count()),
    }
    if device.platform == "cpu":
        found |= _cpu()
    for variable, value in sorted(os.environ.items()):
        name = variable.lower()
        is_setting = name in jax.config.values and name not in PINNED and not name.startswith(_HARMLESS)
        if variable in VARIABLES or is_setting:
            found[f"variable {variable}"] = " ".join(sorted(value.split()))
    return found


def _cpu() -> dict[str, str]:
    """The CPU's name and its instruction sets, for which XLA compiles."""
    lines: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            lines[name.strip()] = value.strip()
    except OSError:
        pass  # not Linux
    sets = (lines.get("flags") or lines.get("Features") or "").split()
    return {
        "kind of CPU": lines.get("model name") or lines.get("CPU part") or platform.processor() or platform.machine(),
        "instruction sets": " ".join(sorted(each for each in sets if each.startswith(_INSTRUCTION_SETS))),
    }


def _text(value: Any) -> str:
    """A setting as it is written; jax holds some as an enumeration."""
    return str(getattr(value, "value", value))
