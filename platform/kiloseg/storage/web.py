"""Reads files from web addresses."""

from __future__ import annotations

import base64
import http.client
import urllib.error
import urllib.parse
import urllib.request

from kiloseg.storage.credentials import shown

SCHEMES = ("http://", "https://")
MAX_BYTES = 2**29
"""Largest file that is read, in bytes."""
PATIENCE_S = 30.0
"""Seconds after which a server that sends nothing is given up."""


def is_web_address(location: str) -> bool:
    """Returns whether a location is an http or https URL."""
    return location.lower().startswith(SCHEMES)


def read_web(url: str) -> bytes:
    """Returns the content of the file at an http or https URL.

    Raises:
        ValueError: there is no such file, the server does not answer, or the file is larger than `MAX_BYTES`; the message names
            the URL without credentials and options.
    """
    name = shown(url).partition("?")[0]
    try:
        with urllib.request.urlopen(_request(url), timeout=PATIENCE_S) as answer:
            content: bytes = answer.read(MAX_BYTES + 1)
            length = answer.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        error.close()
        raise ValueError(f"{name} cannot be read (HTTP {error.code} {error.reason}); check the address") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: the URL itself is wrong
        reason = str(getattr(error, "reason", "") or error or type(error).__name__).replace(url, name)
        raise ValueError(f"{name} cannot be read ({reason}); check the address and the network") from error
    if len(content) > MAX_BYTES:
        raise ValueError(f"{name} is larger than {MAX_BYTES // 2**20:,} MiB: expected one image; download it first")
    if length is not None and length.isdecimal() and int(length) != len(content):
        raise ValueError(f"{name} broke off after {len(content):,} of {int(length):,} bytes; try again")
    return content


def _request(url: str) -> urllib.request.Request:
    """Returns the request for a URL; a user and password in it are sent as a header, since urllib takes them for a host name."""
    parts = urllib.parse.urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    headers = {"User-Agent": "kiloseg"}
    if at:
        headers["Authorization"] = "Basic " + base64.b64encode(urllib.parse.unquote(user).encode()).decode()
    return urllib.request.Request(parts._replace(netloc=host).geturl(), headers=headers)
