"""Defines the error for input that cannot be used."""


class DataError(ValueError):
    """Raised if a data set is wrong. The message names the file or sample, what was expected and how to fix it."""
