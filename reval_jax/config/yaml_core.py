"""YAML by the rules of version 1.2, read and written.

PyYAML reads by version 1.1, where `yes` and `off` are truth values, `010` is 8, `1:30` is 90, `1_000` a number, and `1e-6` a
text; and of a key that stands twice it silently takes the last.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_MAX_ALIASES = 20  # each may stand for a list of others: this many can make some 1,500 values, and 90 a billion
_FIRST = "-+.0123456789"
# The core schema, https://yaml.org/spec/1.2.2/#1032-tag-resolution: tag, its plain texts, and the characters they begin with.
_CORE = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", _FIRST),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        _FIRST,
    ),
)


class _Loader(yaml.SafeLoader):
    """Reads the core schema, and refuses a key that stands twice, tags, and more than a few aliases."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # yaml's own name and type
    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if getattr(event, "tag", None) is not None:
            # A value that its tag does not fit would fail inside yaml in many ways.
            raise ValueError(f"has the tag {event.tag!r} in line {line}, and tags are not read. Leave it out")
        self.aliases += isinstance(event, yaml.AliasEvent)
        if self.aliases > _MAX_ALIASES:
            raise ValueError(
                f"has more than {_MAX_ALIASES} aliases (*name), the next in line {line}. Write the values out"
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if key == "<<":
                raise ValueError(
                    f"has the merge key '<<' in line {line}, which YAML 1.2 does not know. Write the fields out"
                )
            if isinstance(key, str) and key in first:
                raise ValueError(f"has '{key}' twice, in lines {first[key]} and {line}. Keep one of them")
            if isinstance(key, str):
                first[key] = line
        return super().construct_mapping(node, deep=deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        try:
            value = int(text, 0) if text.startswith(("0o", "0x")) else int(text)
            str(value)  # of 0x and 0o only this has a limit, and messages show values
            return value
        except ValueError as error:  # Python's limit of digits
            raise ValueError(f"has a number of {len(text)} digits in line {node.start_mark.line + 1}") from error


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either version would read as something else."""

    yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # noqa: RUF012


for _name, _pattern, _characters in _CORE:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), list(_characters))  # type: ignore[no-untyped-call]
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)


def parse(text: str) -> Any:
    """The content of a YAML document.

    Raises:
      ValueError: the text is not YAML, has a key twice, tags, merge keys or many aliases, or is nested too deeply; the message
        follows the file's name.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML: {error}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def dump(tree: Any) -> str:
    """A YAML document of plain values, keys in their order."""
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False))
