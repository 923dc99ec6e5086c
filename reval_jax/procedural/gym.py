"""Data sets of the `reasoning-gym` library (Apache-2.0), an optional extra: questions, and scores of answers.

Several of the library's scorers evaluate the answer as Python, with `eval` or SymPy's `parse_expr`. During scoring, both
names are bound to parsers of this module, which execute nothing. A scorer may still do other things with an answer, so call
`reasoning_gym_score` only in a worker of the sandbox. A gold answer holds only what regenerates the question.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import hashlib
import json
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from reval_jax.procedural import naming, selection

ITEMS_PER_ROW = 8
"""Library items tried per requested row before the data set counts as exhausted."""
MAX_ITEMS = 20_000
"""Most items requested from the library: some of its data sets refuse more, and some generate all of them at once."""

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.LShift: operator.lshift,
    ast.RShift: operator.rshift, ast.BitAnd: operator.and_, ast.BitOr: operator.or_, ast.BitXor: operator.xor,
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.invert,
}  # fmt: skip


def rows(name: naming.Name) -> list[tuple[str, str]]:
    """Question and gold answer of every row, without repeated questions and those of the other split.

    Raises:
      ValueError: the library is missing, has no such data set or setting, or too few questions.
    """
    dataset, settings = name.settings[0][1], _settings(name)
    max_rows = naming.DEFAULT_SIZE if name.size is None else name.size
    num_items = min(ITEMS_PER_ROW * max_rows + 100, MAX_ITEMS)
    # The library generates item i from seed + i, so adjacent seeds would give the same data set shifted by one row.
    seed = int.from_bytes(hashlib.blake2b(f"{name.seed}".encode(), digest_size=4).digest()) // 2
    recipe = {"dataset": dataset, "seed": seed, "size": num_items, "settings": settings}
    answers: dict[str, str] = {}  # by question
    try:
        generated = _generate(json.dumps(recipe))
        for index in range(num_items):
            question = str(generated[index]["question"])
            if question not in answers and selection.split_of(question) == name.split:
                payload = json.dumps(
                    {**recipe, "index": index, "digest": _digest(question)}, sort_keys=True, allow_nan=False
                )
                answers[question] = f"@{naming.GYM}:{payload}"
                if len(answers) == max_rows:
                    break
    except Exception as error:  # the library raises many kinds, often AssertionError, for settings that it refuses
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"data set {name.text}: reasoning-gym could not generate it ({reason}). Change its settings."
        ) from error
    if name.size is not None and len(answers) < name.size:
        raise ValueError(
            f"data set {name.text}: size={name.size}, but {num_items} items of {dataset} contain {len(answers)} different "
            f"questions of split={name.split}. Use size={len(answers)} or less."
        )
    return list(answers.items())


def reasoning_gym_score(payload: str, answer: str) -> float:
    """The library's score of an answer, from 0 to 1. Call it only in a worker of the sandbox, which limits what it can do.

    Raises:
      ValueError: the library is missing, or now generates another question than the recorded one, as another version may.
    """
    recipe = json.loads(payload)
    index, digest = recipe.pop("index"), recipe.pop("digest")
    generated = _generate(json.dumps(recipe))
    with _without_evaluation(generated.score_answer.__globals__):
        item = generated[index]
        if _digest(str(item["question"])) != digest:
            raise ValueError(
                f"item {index} of reasoning-gym's {recipe['dataset']} is now another question than in the data set, so its "
                "answer can't be scored. Use the version of reasoning-gym that generated the data set. If it was this one, "
                "the data set is not reproducible: set PYTHONHASHSEED=0, as workers do, or use another."
            )
        return float(generated.score_answer(answer, item))


@contextlib.contextmanager
def _without_evaluation(scope: dict[str, Any]) -> Iterator[None]:
    """Replaces `eval` and `parse_expr` by parsers that execute nothing, for the module with the global names `scope`."""
    import sympy  # a dependency of the library
    from sympy.parsing import sympy_parser  # `sympify` looks `parse_expr` up there

    replaced = [(scope, "eval", _literal)]
    original = sympy.parse_expr  # a scorer's module may define another function of that name
    replaced += [
        (names, "parse_expr", _expression)
        for names in (scope, vars(sympy), vars(sympy_parser))
        if names.get("parse_expr") is original
    ]
    before = [names.get(name) for names, name, _ in replaced]
    for names, name, parser in replaced:
        names[name] = parser
    try:
        yield
    finally:
        for (names, name, _), value in zip(replaced, before, strict=True):
            names[name] = value
        if scope["eval"] is None:
            del scope["eval"]


def _literal(text: str) -> Any:
    """The value of lists, tuples, text and arithmetic in Python's notation.

    Raises:
      SyntaxError, ValueError: the text is something else.
    """
    return _value(ast.parse(text.strip(), mode="eval").body, {})


def _expression(text: str, local_dict: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """The value that SymPy's `parse_expr` gives a formula; `transformations` is the only option that has an effect.

    Raises:
      SyntaxError, ValueError, tokenize.TokenError: the text is not a formula of operators, numbers, names and functions.
    """
    from sympy.parsing import sympy_parser

    local, known = dict(local_dict or {}), _names()
    transformations = options.get("transformations", sympy_parser.standard_transformations)
    code = sympy_parser.stringify_expr(text, local, known, transformations)
    return _value(ast.parse(code.strip(), mode="eval").body, {**known, **local})


@functools.cache
def _names() -> dict[str, Any]:
    """The names allowed in a formula, with their values: SymPy's constants, expression classes and roots."""
    import sympy

    classes = {
        name: value
        for name, value in vars(sympy).items()
        if isinstance(value, sympy.Basic) or (isinstance(value, type) and issubclass(value, sympy.Basic))
    }
    roots = {"sqrt": sympy.sqrt, "cbrt": sympy.cbrt, "root": sympy.root}
    return classes | roots | {"abs": sympy.Abs, "max": sympy.Max, "min": sympy.Min}


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """The value of an expression of numbers, text, lists, operators, and calls of functions in `names`.

    Raises:
      ValueError: it contains something else, such as an attribute or an unknown name.
    """
    match node:
        case ast.Constant():
            return node.value
        case ast.Name() if node.id in names:
            return names[node.id]
        case ast.List() | ast.Tuple():
            values = [_value(each, names) for each in node.elts]
            return values if isinstance(node, ast.List) else tuple(values)
        case ast.UnaryOp() if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](_value(node.operand, names))
        case ast.BinOp() if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](_value(node.left, names), _value(node.right, names))
        case ast.Call(keywords=[]):
            return _value(node.func, names)(*(_value(each, names) for each in node.args))
    raise ValueError(f"{type(node).__name__} is not allowed")


def _settings(name: naming.Name) -> dict[str, Any]:
    """The library settings in a data set's name, as numbers, booleans or text.

    Raises:
      ValueError: the library is missing, or has no such data set or setting.
    """
    (_, dataset), *pairs = name.settings
    known = _library(name.text).factory.DATASETS
    naming.check_known(name.text, "dataset", dataset, sorted(known))
    fields = [field.name for field in dataclasses.fields(known[dataset][1]) if field.name not in ("seed", "size")]
    settings: dict[str, Any] = {}
    for key, value in pairs:
        naming.check_known(name.text, "key", key, [*fields, "size", "seed", "split"])
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return settings


@functools.lru_cache(maxsize=8)
def _generate(recipe: str) -> Any:
    """The library's data set for a recipe in JSON; cached, because some take seconds to generate."""
    arguments = json.loads(recipe)
    library = _library(f"{naming.PREFIX}{naming.GYM},dataset={arguments['dataset']}")
    settings = arguments["settings"]
    return library.create_dataset(arguments["dataset"], seed=arguments["seed"], size=arguments["size"], **settings)


def _library(text: str) -> Any:
    try:
        import reasoning_gym  # an optional extra, needed only for its data sets
        import reasoning_gym.factory
    except ImportError as error:
        raise ValueError(
            f"data set {text} needs reasoning-gym, which can't be imported ({error}). "
            "Run: pip install 'reval-jax[reasoning-gym]'."
        ) from error
    return reasoning_gym


def _digest(question: str) -> str:
    return hashlib.blake2b(question.encode(), digest_size=8).hexdigest()
