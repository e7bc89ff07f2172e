"""Keeping users and keys out of URLs that are stored or shown."""

from __future__ import annotations

import urllib.parse


def require_no_credentials(name: str, location: str) -> None:
    """Of a path or URL that is a setting, and so is logged.

    Raises:
        ValueError: a URL with a user or password, which the message does not repeat.
    """
    user = urllib.parse.urlsplit(location).netloc.rpartition("@")[0] if "://" in location else ""
    if user:
        shown = location.replace(f"{user}@", "...@")
        raise ValueError(
            f"{name} = {shown!r}: expected a URL without user and password, since settings are logged; they come from the "
            "environment"
        )
