"""The error for input that cannot be used."""


class DataError(ValueError):
    """Something is wrong with a data set; the message names the file or sample, what was expected and how to fix it."""
