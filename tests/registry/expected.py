"""What is right for each template: its Safety Tokens as text, its read token and its answer opener, or a refusal.

`expected.json` has the strings. They were judged by one definition: the header is what stands in a conversation between
the end of an answer and the next answer, the next question left out: the end of turn as the template writes it where
the conversation goes on, then the whole generation prompt. The answer opener is what the template writes between the
generation prompt and an answer without thoughts, or what closes the thoughts that the prompt has opened.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("expected.json")


@dataclass(frozen=True, slots=True)
class Expected:
    """What is right for one template.

    Attributes:
        name: Archive and template, as in `llamacpp/openai-gpt-oss-120b`.
        header: Safety Tokens as text, or `sha256:` and the digest of that text if the text is long.
        read: What the read token ends: the assistant's role or another word or marker of the header.
        answer: Answer opener as text.
        refused: Why nothing can be derived, in a few words; empty for a template that is served.
    """

    name: str
    header: str = ""
    read: str = ""
    answer: str = ""
    refused: str = ""

    @property
    def archive(self) -> str:
        """Name of the archive that holds the template."""
        return self.name.partition("/")[0]

    @property
    def template(self) -> str:
        """Name of the template in its archive."""
        return self.name.partition("/")[2]


@cache
def table() -> tuple[Expected, ...]:
    """Return what is right for every template, in the order of the file."""
    return tuple(_entries())


def _entries() -> Iterator[Expected]:
    content = json.loads(FILE.read_text(encoding="utf-8"))
    for row in content["served"]:
        for name in row["templates"]:
            yield Expected(name, row["header"], row["read"], row["answer"])
    for row in content["refused"]:
        for name in row["templates"]:
            yield Expected(name, refused=row["why"])
