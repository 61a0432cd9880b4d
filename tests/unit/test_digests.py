"""Digests are those of SHA-256, whatever the text holds."""

import hashlib

from anydepth.digests import digest_number, short_digest


def test_digests_are_beginnings_of_sha_256() -> None:
    whole = hashlib.sha256(b"text").hexdigest()
    assert short_digest("text") == whole[:16]
    assert digest_number("text") == int(whole[:16], 16) and digest_number("text", 4) == int(whole[:8], 16)
    assert len(short_digest("half a pair: \ud800")) == 16
