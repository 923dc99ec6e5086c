"""A reward function whose results are numbers of many types; tests run it in the sandbox."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np


def kind_of_number(response: str, answer: str) -> object:
    """Returns the gold answer as the type that the response names."""
    kinds = {
        "bool_": np.bool_(answer == "1"),
        "Decimal": Decimal(answer),
        "array": np.array(float(answer)),
        "float16": np.float16(answer),
        "int64": np.int64(float(answer)),
        "Fraction": Fraction(answer),
        "complex": np.array(1j),
        "vector": np.array([1.0]),
        "None": None,
    }
    return kinds[response]
