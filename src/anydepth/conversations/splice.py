"""Put an answer behind the first words of a harmless answer to another request, so that the request says nothing of it.

`splice` made of harmful and of harmless answers gives minimal pairs: the same request, the same first words, then a
harmful or a harmless answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from anydepth.conversations.augment import first_words, host_tags, same_prompt
from anydepth.conversations.dataset import Conversation
from anydepth.digests import digest_number, short_digest
from anydepth.errors import ConfigError

WORDS = (15, 75)
"""How many words of the harmless answer come first, at least and at most."""

_JOINTS = (" ", "\n", "\n\n")


@dataclass(frozen=True, slots=True)
class _Host:
    """A harmless answer cut in two: what is put before an answer, and what can be put behind it."""

    conversation: Conversation
    first: str
    joint: str
    rest: str

    @classmethod
    def of(cls, conversation: Conversation, words: tuple[int, int], behind: int) -> "_Host | None":
        """The answer cut where the digest of its conversation says; None if it has too few words.

        `behind` words at least stay for the rest.
        """
        least, most = words
        most = min(most, len(conversation.response.split()) - behind)
        if most < least:
            return None
        count = least + digest_number(f"splice words/{conversation.id}") % (most - least + 1)
        joint = _JOINTS[digest_number(f"splice joint/{conversation.id}") % len(_JOINTS)]
        first = first_words(conversation.response, count)
        return cls(conversation, first, joint, conversation.response[len(first) :].lstrip())


def splice(
    answers: Sequence[Conversation],
    hosts: Sequence[Conversation],
    *,
    words: tuple[int, int] = WORDS,
    between: bool = False,
) -> list[Conversation]:
    """Each of `answers` behind the first words of a harmless answer of `hosts`, under the messages of the latter.

    Label and source are the answer's. `Conversation.stretch` says where the answer lies in the new response, and the
    tag `spliced_under` has the id of the host. The digest of the host decides how many of its words come first and what
    stands at the joint (a space, a new line or an empty line). Answers and hosts are put in the order of their digests
    and taken one by one, an answer never under its own prompt: harmful and harmless answers that are spliced into the
    same hosts therefore make pairs, which differ behind the joint only.

    Args:
        answers: Conversations whose answers are used, of either label.
        hosts: Conversations to put them in; those that are labelled benign and have enough words are used.
        words: How many words of the host come first, at least and at most.
        between: Put the rest of the host's answer, `words[0]` words at least, behind the answer.

    Raises:
        ConfigError: `words` is no range, or there is no host for an answer.
    """
    if not 1 <= words[0] <= words[1]:
        raise ConfigError(f"words is {list(words)}; give the least and the largest number of words, e.g. [15, 75]")
    behind = words[0] if between else 0
    rows = sorted(
        (row for row in hosts if row.label == "benign"), key=lambda row: short_digest(f"splice host/{row.id}")
    )
    cut = [host for row in rows if (host := _Host.of(row, words, behind)) is not None]
    order = sorted(range(len(answers)), key=lambda place: short_digest(f"splice/{answers[place].id}"))
    found = {place: _spliced(answers[place], cut, rank, between) for rank, place in enumerate(order)}
    return [found[place] for place in range(len(answers))]


def _spliced(answer: Conversation, hosts: Sequence[_Host], rank: int, between: bool) -> Conversation:
    own, turned = same_prompt(answer), rank % len(hosts) if hosts else 0
    every = (*hosts[turned:], *hosts[:turned])
    host = next((each for each in every if own.isdisjoint(same_prompt(each.conversation))), None)
    if host is None:
        raise ConfigError(
            f"answer {answer.id!r}: there is no harmless answer to another prompt with enough words to put it behind; "
            "select harmless conversations with longer answers, or fewer `words`"
        )
    before = host.first + host.joint
    response = before + answer.response + (host.joint + host.rest if between else "")
    tags = {
        **answer.tags,
        "augmented": "splice",
        "spliced_under": host.conversation.id,
        **host_tags(host.conversation),
        "prompt_key": answer.prompt_key,  # a split by prompt keeps the variants of an answer together
    }
    return replace(
        answer,
        id=f"{answer.id}+splice",
        messages=host.conversation.messages,
        response=response,
        tags=tags,
        stretch=(len(before), len(before) + len(answer.response)),
    )
