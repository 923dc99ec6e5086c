"""The guard against the CPU fault of jaxlib 0.10.2 (jax issue 39103), tested in new processes."""

from __future__ import annotations

import os
import pathlib
import platform
import subprocess
import sys
import textwrap

import pytest

from reval_jax import xla_guard

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
IS_AFFECTED = xla_guard.jaxlib_version() in xla_guard.AFFECTED_JAXLIB
only_affected = pytest.mark.skipif(not IS_AFFECTED, reason="the installed jaxlib is not an affected release")

# x[i] = (i, 0, 0) through the identity: row i has to give i^2. The faulty release gets 1 and 7233 rows wrong here.
COUNT_WRONG_ROWS = """
    import jax
    import jax.numpy as jnp

    def wrong_rows(num_rows):
        row = jnp.arange(num_rows, dtype=jnp.float32)
        x = jnp.stack((row, 0 * row, 0 * row), axis=1)
        identity = jnp.eye(3, dtype=jnp.float32)
        squares = jax.jit(lambda x: jax.vmap(lambda v: jnp.sum((identity @ v) ** 2))(x))(x)
        return int(jnp.sum(jnp.abs(squares - row * row) > 1e-3 * row * row))

    print(wrong_rows(32_769) + wrong_rows(40_001))
"""
PRINT_FLAGS = """
    import os
    import sys
    import reval_jax
    print("jax" in sys.modules, os.environ.get("XLA_FLAGS"))
"""
START_BACKEND = """
    import jax
    jax.devices("cpu")
"""


def run_python(*parts: str, xla_flags: str | None = None, path: tuple[pathlib.Path, ...] = ()) -> list[str]:
    """Runs the parts as one program in a new process; returns the lines of standard output, then of standard error."""
    # Without the compilation cache: each process has to compile under its own flags.
    unwanted = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(map(str, (*path, REPOSITORY)))}
    if xla_flags is not None:
        environment["XLA_FLAGS"] = xla_flags
    program = "\n".join(textwrap.dedent(part) for part in parts)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines() + done.stderr.splitlines()


def fake_jaxlib(directory: pathlib.Path, version: str) -> pathlib.Path:
    """A directory that makes importlib.metadata report this version of jaxlib; imports still load the real one."""
    metadata = directory / f"jaxlib-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: jaxlib\nVersion: {version}\n")
    return directory


# --- numbers


@only_affected
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the fault was seen on x86-64 only")
def test_without_the_guard_the_affected_jaxlib_is_silently_wrong():
    assert int(run_python(COUNT_WRONG_ROWS)[0]) > 0


def test_with_reval_jax_imported_first_the_same_program_is_right():
    assert run_python("import reval_jax", COUNT_WRONG_ROWS)[0] == "0"


def test_the_guard_is_in_time_after_import_jax_while_no_backend_has_started():
    late = "print(reval_jax.xla_guard.came_too_late(), reval_jax.xla_guard.is_exposed())"
    assert run_python("import jax", "import reval_jax", late, COUNT_WRONG_ROWS)[:2] == ["False False", "0"]


@pytest.mark.skipif(IS_AFFECTED, reason="the installed jaxlib is an affected release")
def test_an_unaffected_jaxlib_is_right_without_the_flag():
    assert run_python(COUNT_WRONG_ROWS)[0] == "0"


@only_affected
def test_a_guard_that_came_too_late_says_so():
    report = "print(reval_jax.xla_guard.came_too_late(), reval_jax.xla_guard.is_exposed())"
    output = run_python(START_BACKEND, "import reval_jax", report, COUNT_WRONG_ROWS, report)
    assert (output[0], output[2]) == ("True True", "True True")
    assert any("RuntimeWarning" in line and "had started before reval_jax was imported" in line for line in output)
    if platform.machine() == "x86_64":
        assert int(output[1]) > 0


@only_affected
def test_a_backend_started_under_the_users_own_remedy_is_no_late_guard():
    report = "print(reval_jax.xla_guard.came_too_late(), reval_jax.xla_guard.is_exposed())"
    assert run_python(START_BACKEND, "import reval_jax", report, xla_flags=xla_guard.REMEDY) == ["False False"]


# --- the environment


@only_affected
def test_import_sets_the_flag_on_the_affected_jaxlib_without_importing_jax():
    assert run_python(PRINT_FLAGS) == [f"False {xla_guard.REMEDY}"]


@pytest.mark.parametrize("version", ["0.10.1", "0.10.20", "0.11.0", "0.12.2"])
def test_import_leaves_the_environment_of_other_jaxlibs_alone(tmp_path: pathlib.Path, version: str):
    path = (fake_jaxlib(tmp_path, version),)
    assert run_python(PRINT_FLAGS, path=path) == ["False None"]
    assert run_python(PRINT_FLAGS, path=path, xla_flags="--xla_dump_to=x") == ["False --xla_dump_to=x"]


@pytest.mark.parametrize("version", ["0.10.2", "0.10.2+cuda12"])
def test_import_sets_the_flag_for_the_version_that_metadata_reports(tmp_path: pathlib.Path, version: str):
    assert run_python(PRINT_FLAGS, path=(fake_jaxlib(tmp_path, version),)) == [f"False {xla_guard.REMEDY}"]


@only_affected
def test_the_users_other_flags_stay_and_work():
    flags = "--xla_force_host_platform_device_count=3"
    program = (PRINT_FLAGS, COUNT_WRONG_ROWS, "print(jax.device_count())")
    assert run_python(*program, xla_flags=flags) == [f"False {flags} {xla_guard.REMEDY}", "0", "3"]


@only_affected
def test_a_file_of_flags_stays_in_force(tmp_path: pathlib.Path):
    file = tmp_path / "flags.txt"
    file.write_text("--xla_force_host_platform_device_count=3\n--xla_cpu_enable_fast_math=false\n")
    program = ("import reval_jax", COUNT_WRONG_ROWS, "print(jax.device_count())")
    assert run_python(*program, xla_flags=str(file)) == ["0", "3"]


@only_affected
@pytest.mark.parametrize("value", ["", "-dot,-reduce"])
def test_the_users_own_remedy_is_kept_and_right(value: str):
    flags = f"{xla_guard.FLAG}={value}"
    assert run_python(PRINT_FLAGS, COUNT_WRONG_ROWS, xla_flags=flags) == [f"False {flags}", "0"]


@only_affected
def test_a_users_setting_that_keeps_the_fault_causes_a_warning():
    flags = f"{xla_guard.FLAG}=dot,reduce"
    output = run_python(PRINT_FLAGS, xla_flags=flags)
    assert output[0] == f"False {flags}"
    assert any("RuntimeWarning" in line and "leaves reductions in the faulty fusion" in line for line in output)


# --- the pure part


@pytest.mark.parametrize("version", [None, "0.10.1", "0.10.2.dev20260601", "0.11.0"])
def test_flags_of_unaffected_versions_come_back_unchanged(version: str | None):
    for flags in ("", " --a=1 ", xla_guard.REMEDY):
        assert xla_guard.guarded_flags(flags, version) == flags


def test_guarding_twice_changes_nothing():
    once = xla_guard.guarded_flags("--a=1", "0.10.2")
    assert once == f"--a=1 {xla_guard.REMEDY}"
    assert xla_guard.guarded_flags(once, "0.10.2") == once


def test_a_longer_flag_of_the_same_beginning_is_another_flag():
    other = f"{xla_guard.FLAG}_x=1"
    assert xla_guard.fusion_setting(other) is None
    assert xla_guard.guarded_flags(other, "0.10.2") == f"{other} {xla_guard.REMEDY}"


def test_the_last_setting_counts_as_it_does_for_xla():
    assert xla_guard.fusion_setting(f"{xla_guard.FLAG}=dot {xla_guard.REMEDY}") == "-reduce"


def test_the_name_of_a_missing_flag_file_is_left_for_xla_to_report(tmp_path: pathlib.Path):
    missing = str(tmp_path / "missing.txt")
    assert xla_guard.guarded_flags(missing, "0.10.2") == missing
