"""Keeps users, passwords and keys out of URLs that are stored or shown."""

from __future__ import annotations

import re

_USER = re.compile(
    r"""^(?P<scheme>[^:/?#]+://)
    (?: [^/?#]*                             # a user, as a URL has it
      | (?![^/?#@:]*:\d+/) [^/?#@:]*:[^@]*  # a user with a password that holds slashes, which SQLAlchemy takes
    )@""",
    re.VERBOSE,
)


def shown(location: str) -> str:
    """Returns a path or URL as messages and records may show it: without the user and password that a URL may contain."""
    return _USER.sub(r"\g<scheme>", location)


def require_no_credentials(name: str, location: str) -> None:
    """Checks that the path or URL of a setting has no credentials, since settings are logged.

    Raises:
        ValueError: the URL has a user or password, which the message does not repeat.
    """
    if _USER.match(location):
        hidden = _USER.sub(r"\g<scheme>...@", location)
        raise ValueError(
            f"{name} = {hidden!r}: expected a URL without user and password, since settings are logged; set them in the "
            "environment"
        )
