"""Whether two mathematical expressions, written by a model or a person, are equal: exactly, without tolerance or evaluation."""
