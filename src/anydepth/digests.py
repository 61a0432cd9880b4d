"""Digests of texts, the same on every machine and in every run."""

import hashlib


def short_digest(text: str) -> str:
    """SHA-256 of `text`, its first 16 hex digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def digest_number(text: str, size: int = 8) -> int:
    """SHA-256 of `text`, its first `size` bytes as a number: a choice that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:size])
