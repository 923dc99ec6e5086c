"""Settings as frozen dataclasses, read from YAML, overridden on the command line, and written to the run's config.yaml.

`sections` has every setting with its unit, bounds and default; `files` reads and compares them, and `yaml_core` knows YAML;
`config_checks` refuses combinations that cannot train.
"""

from __future__ import annotations

from reval_jax.config.files import (
    REMOVED,
    RENAMED,
    changed,
    changed_results,
    from_tree,
    load,
    read_yaml,
    renamed,
    results_hash,
    to_tree,
)
from reval_jax.config.sections import (
    ENGINES,
    FUNCTION_NAME,
    IN_WORDS,
    OBJECTIVES,
    AnswerFormat,
    BuiltIn,
    Checkpoint,
    Config,
    Eval,
    Mesh,
    Model,
    Optimizer,
    Replay,
    Rollout,
    Run,
    Task,
    Update,
    Verifier,
)
from reval_jax.config.yaml_core import dump

__all__ = [
    "ENGINES",
    "FUNCTION_NAME",
    "IN_WORDS",
    "OBJECTIVES",
    "REMOVED",
    "RENAMED",
    "AnswerFormat",
    "BuiltIn",
    "Checkpoint",
    "Config",
    "Eval",
    "Mesh",
    "Model",
    "Optimizer",
    "Replay",
    "Rollout",
    "Run",
    "Task",
    "Update",
    "Verifier",
    "changed",
    "changed_results",
    "dump",
    "from_tree",
    "load",
    "read_yaml",
    "renamed",
    "results_hash",
    "to_tree",
]
