"""Rows of procedural data sets, and exact values of their expressions."""

from __future__ import annotations

import ast
import operator
from fractions import Fraction

from reval_jax import procedural

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def rows(task: str, level: int, **keys: object) -> list[tuple[str, str]]:
    """Question and gold answer of each row of a data set; `keys` are the other keys of its name."""
    settings = "".join(f",{key}={value}" for key, value in keys.items())
    return procedural.rows(f"procedural:{task},level={level}{settings}")


def value_of(expression: str) -> Fraction:
    """The exact value of an expression, by Python's parser and without evaluation."""

    def walk(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            if isinstance(node.op, ast.Pow):
                return walk(node.left) ** int(walk(node.right))
            return OPERATIONS[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.UnaryOp):
            return -walk(node.operand) if isinstance(node.op, ast.USub) else walk(node.operand)
        assert isinstance(node, ast.Constant)
        return Fraction(node.value)

    return walk(ast.parse(expression.strip(), mode="eval").body)
