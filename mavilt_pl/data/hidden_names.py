"""Names of studies for logs and pages, which nobody can trace without the corpus and its secret."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

SECRET_FILE = "secret.key"
SECRET_BYTES = 32
# 48 bits: two of 10,000 studies share a name with a probability of 2e-7, and pages stay readable.
NAME_LENGTH = 12


def write_secret(folder: Path) -> None:
    """Write a new secret into a corpus, unless it has one: prepared again, its names stay."""
    try:
        with (folder / SECRET_FILE).open("x", encoding="ascii") as file:
            file.write(secrets.token_hex(SECRET_BYTES) + "\n")
    except FileExistsError:
        pass


def read_secret(folder: Path) -> bytes:
    """The secret of a corpus; a new one if its file is missing, unreadable or damaged."""
    try:
        secret = bytes.fromhex((folder / SECRET_FILE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        secret = b""
    # A corpus may be passed on without its secret. Names then differ from run to run, which is
    # safe; a default secret would not be.
    return secret if len(secret) == SECRET_BYTES else secrets.token_bytes(SECRET_BYTES)


def hidden_name(secret: bytes, name: str) -> str:
    """HMAC-SHA256 of an identifier, 12 hexadecimal digits.

    Identifiers have few digits, so anybody could hash all of them. The key prevents that.

    >>> hidden_name(bytes(32), "s50000014") == hidden_name(bytes(31) + b"1", "s50000014")
    False
    """
    return hmac.new(secret, name.encode(), hashlib.sha256).hexdigest()[:NAME_LENGTH]
