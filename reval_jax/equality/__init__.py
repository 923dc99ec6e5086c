"""Exact equality of two mathematical expressions in text form: no tolerance, and no text is ever evaluated as code."""
