"""Tell a refusal from an answer by its opening, in any of the languages of `refusals.toml`."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from anydepth.errors import ConfigError
from anydepth.files import packaged_toml

_PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u02bc\u00b4\u2032\uff07", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u300c\u300d\u300e\u300f\uff02", '"'),
        **dict.fromkeys("*_`#>\u200b\u200c\u200d\u200e\u200f\ufeff", None),  # markdown and invisible characters
        "\u0130": "i",  # Turkish capital dotted I: str.lower() would leave a combining dot behind
    }
)
_LETTERS = str.maketrans(
    {
        "\u0131": "i",  # Turkish dotless i: a capital I lowers to i, so both are written i
        "\u0451": "\u0435",  # Russian yo is often typed as ye
        **dict.fromkeys("\u0622\u0623\u0625", "\u0627"),  # Arabic alef with madda or hamza
        "\u0649": "\u064a",  # Arabic alef maksura
        "\u0640": None,  # Arabic tatweel
        **dict.fromkeys(map(chr, range(0x064B, 0x0653)), None),  # Arabic vowel signs
        "\u093c": None,  # Devanagari nukta
    }
)
_QUOTED = re.compile(r'"[^"]*"')
_LEADING = re.compile(r'^[^\w"]+')
_LABEL = re.compile(r"^(?:assistant|ai|answer|response) ?: ")
_PART = re.compile(r"<(\w+)>")
_NESTING = 5  # parts within parts
_SETTLED = 10  # characters after a match that rule out "I can't help but smile" ...
_SETTLED_START = 40  # ... and, for the weaker phrases, "I'm sorry, but I did not quite understand"


def _letters(text: str) -> str:
    return unicodedata.normalize("NFKC", text).translate(_LETTERS)


def normalise(text: str) -> str:
    """Fold `text` to what phrases are written in: lower case, plain apostrophes and letters, no markdown."""
    folded = " ".join(_letters(text.translate(_PLAIN).lower()).split())
    return _LABEL.sub("", _LEADING.sub("", folded))


@dataclass(frozen=True, slots=True)
class RefusalOpeners:
    """First words of answers, for the score mode of Rethink.

    Attributes:
        clear: Refusals begin with them, harmless answers hardly ever do.
        ambiguous: Both begin with them; of use only after calibration.
        compliance: Harmless answers begin with them.
    """

    clear: tuple[str, ...]
    ambiguous: tuple[str, ...]
    compliance: tuple[str, ...]

    def begins_refusal(self, token: str) -> bool:
        """True if the text of a token, the space before it left out, can begin clear openers and no others.

        It is the beginning of a clear opener, or the whole of one and punctuation; and it is the beginning of none of
        the others. A single letter says too little.
        """
        text = token.strip()
        if not text or (len(text) == 1 and text.isascii()):
            return False
        if any(opener.startswith(text) for opener in (*self.ambiguous, *self.compliance)):
            return False
        whole = [text[len(opener) :] for opener in self.clear if text.startswith(opener)]
        rest_is_no_word = any(not rest[:1].isalnum() for rest in whole)
        return rest_is_no_word or any(opener.startswith(text) for opener in self.clear)


class RefusalMatcher:
    """Decides whether the opening of a text is a refusal; one list of phrases a language, none a model.

    Args:
        data: The parsed form of `refusals.toml`, whose comment explains the keys.

    Raises:
        ConfigError: A phrase is not a regular expression, or names a part that is not there.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        shared = data.get("shared", {})
        languages = {code: table for code, table in data.items() if isinstance(table, Mapping) and code != "shared"}
        self.window: int = data["window"]
        self.languages = tuple(languages)
        self.openers = RefusalOpeners(
            clear=_unique(languages, "openers"),
            ambiguous=_unique(languages, "ambiguous_openers"),
            compliance=_unique(languages, "compliance_openers"),
        )
        self._harmless = _compile(languages, shared, "harmless")
        self._start = _compile(languages, shared, "start")
        self._anywhere = _compile(languages, shared, "anywhere")

    @classmethod
    @cache
    def default(cls) -> "RefusalMatcher":
        """The matcher of the package's own list."""
        return cls(packaged_toml("refusals.toml"))

    def is_refusal(self, text: str) -> bool:
        """True if the opening of `text` refuses; False for an empty text."""
        return self._refuses(self._opening(text)[0])

    def decided(self, text: str) -> bool | None:
        """What `is_refusal` will say however `text` goes on, or None if that is still open.

        For a look-ahead under way: True once a refusal stands that the next words cannot take back, False only once the
        whole opening is there. A compliant first word ("Sure") decides nothing: a refusal may follow.
        """
        opening, complete = self._opening(text)
        if complete:
            return self._refuses(opening)
        if opening.startswith('"') or opening.count('"') % 2:
            return None  # it may turn out to be what somebody in a story says
        kept = self._kept(opening)
        found = (self._anywhere.search(kept), _SETTLED), (self._start.match(kept), _SETTLED_START)
        ended = kept.endswith((".", "!", "?", "\u3002"))
        return True if any(match and (ended or len(kept) - match.end() >= room) for match, room in found) else None

    def _opening(self, text: str) -> tuple[str, bool]:
        """The part of the text that counts, normalised, and whether all of it is there."""
        folded = normalise(text[: 8 * self.window])  # a bound, so that a long answer costs no more than its opening
        return folded[: self.window], len(folded) > self.window

    def _refuses(self, opening: str) -> bool:
        kept = self._kept(opening)
        return bool(self._start.match(kept) or self._anywhere.search(kept))

    def _kept(self, opening: str) -> str:
        return self._harmless.sub("\u2026", _drop_quotations(opening))


def _compile(languages: Mapping[str, Mapping[str, Any]], shared: Mapping[str, Any], key: str) -> re.Pattern[str]:
    """All languages' phrases under `key`, their parts filled in, as one regular expression over normalised text."""
    patterns = []
    for language, table in languages.items():
        parts = {**shared, **table.get("parts", {})}
        for phrase in table.get(key, ()):
            pattern = _letters(_filled(phrase, parts, language))
            patterns.append(rf"(?<!\w)(?:{pattern})(?!\w)" if table.get("boundary", True) else f"(?:{pattern})")
            try:
                re.compile(patterns[-1])
            except re.error as error:
                raise ConfigError(f"refusals, language {language!r}: {phrase!r} is no pattern: {error}") from error
    return re.compile("|".join(patterns) or r"(?!)")


def _filled(phrase: str, parts: Mapping[str, str | Sequence[str]], language: str) -> str:
    def part(named: re.Match[str]) -> str:
        if named[1] not in parts:
            raise ConfigError(f"refusals, language {language!r}: {named[0]} is none of the parts {[*parts]}")
        found = parts[named[1]]
        return found if isinstance(found, str) else f"(?:{'|'.join(found)})"

    for _ in range(_NESTING):
        phrase = _PART.sub(part, phrase)
    return phrase


def _unique(languages: Mapping[str, Mapping[str, Sequence[str]]], key: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for table in languages.values() for word in table.get(key, ())))


def _drop_quotations(opening: str) -> str:
    """Take out what is quoted (a story's dialogue), unless the whole text is one quotation."""
    rest = _QUOTED.sub('""', opening)
    return rest if any(char.isalnum() for char in rest) else opening.strip('"')
