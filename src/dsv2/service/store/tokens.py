"""Secrets that are shown once and known by their hash: API keys, sessions, redemption codes.

They are random, not chosen, so one round of SHA-256 is enough; only passwords need a slow hash.
"""

from __future__ import annotations

import hashlib
import secrets

TOKEN_BYTES = 32


def new_token(kind: str) -> str:
    """A secret of 256 random bits: ``kind``, a hyphen and 64 hexadecimal digits."""
    return f"{kind}-{secrets.token_hex(TOKEN_BYTES)}"


def hash_token(token: str) -> str:
    """SHA-256 of a secret in hexadecimal; anything a client can send has one."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def prefix_of(token: str) -> str:
    """What may be shown of a secret: its kind and four of its digits."""
    kind, _, digits = token.partition("-")
    return f"{kind}-{digits[:4]}"
