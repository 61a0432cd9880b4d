"""Spliced answers: what stands where, which are pairs, at which depths the harm is, and what is trained on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anydepth.backends.protocol import Site
from anydepth.backends.transformers import TransformersBackend
from anydepth.conversations.dataset import Conversation
from anydepth.conversations.splice import splice
from anydepth.errors import ConfigError, RecordError
from anydepth.probes.fitting.check_labels import training_labels
from anydepth.probes.states.collect import collect_into
from anydepth.probes.states.plan import CollectPlan
from anydepth.probes.states.stretch import NOWHERE, in_tokens
from anydepth.schedule import Listed
from tests import tiny
from tests.conversations import conversation, words

HOSTS = [conversation(2 * n, 40 + n) for n in range(20)]
HARMFUL = [conversation(2 * n + 101, 30) for n in range(12)]
HARMLESS = [conversation(2 * n + 131, 25, label="benign") for n in range(12)]


def host_of(row: Conversation) -> Conversation:
    (found,) = (each for each in HOSTS if each.id == row.tags["spliced_under"])
    return found


@pytest.mark.parametrize("between", [False, True])
def test_an_answer_stands_behind_the_first_words_of_a_harmless_one(between: bool) -> None:
    found = splice(HARMFUL, HOSTS, words=(5, 15), between=between)
    for before, after in zip(HARMFUL, found, strict=True):
        host = host_of(after)
        assert after.messages == host.messages and after.prompt_key == before.prompt_key
        assert (after.label, after.source, after.licence) == (before.label, before.source, before.licence)
        assert after.id == f"{before.id}+splice" and after.tags["augmented"] == "splice"
        assert after.stretch is not None
        begin, end = after.stretch
        assert after.response[begin:end] == before.response
        first = after.response[:begin].split()
        assert 5 <= len(first) <= 15 and host.response.split()[: len(first)] == first
        rest = after.response[end:].split()
        assert [*first, *rest] == host.response.split() if between else not rest
        assert len(rest) >= 5 or not between
    assert len({len(row.response[: (row.stretch or NOWHERE)[0]].split()) for row in found}) > 3


def test_harmful_and_harmless_answers_make_pairs_that_differ_behind_the_joint_only() -> None:
    pairs = {row.tags["spliced_under"]: row for row in splice(HARMFUL, HOSTS)}
    others = {row.tags["spliced_under"]: row for row in splice(HARMLESS, HOSTS)}
    assert len(pairs) == 12 and pairs.keys() == others.keys()
    for host in pairs:
        one, other = pairs[host], others[host]
        assert one.stretch is not None and other.stretch is not None
        begin = one.stretch[0]
        assert one.messages == other.messages and other.stretch[0] == begin
        assert one.response[:begin] == other.response[:begin] and one.response[begin:] != other.response[begin:]


def test_the_order_of_answers_and_hosts_does_not_matter() -> None:
    assert splice(HARMFUL[::-1], HOSTS[::-1])[::-1] == splice(HARMFUL, HOSTS)


def test_an_answer_never_stands_under_its_own_prompt() -> None:
    again = [replace(row, id=f"{row.id} again", label="harmful") for row in HOSTS]
    for row, after in zip(again, splice(again, HOSTS), strict=True):
        assert after.prompt != row.prompt
    with pytest.raises(ConfigError, match="answer 'c2': there is no harmless answer to another prompt"):
        splice([conversation(2)], [conversation(2, 40)])


def test_only_harmless_answers_with_enough_words_are_hosts() -> None:
    short, harmful, long = conversation(2, 14), conversation(3, 50), conversation(4, 15)
    (found,) = splice([HARMFUL[0]], [short, harmful, long])
    assert found.tags["spliced_under"] == "c4"
    with pytest.raises(ConfigError, match="or fewer `words`"):
        splice([HARMFUL[0]], [short, harmful, long], between=True)
    with pytest.raises(ConfigError, match=r"words is \[9, 3\]; give the least and the largest"):
        splice([HARMFUL[0]], HOSTS, words=(9, 3))


@pytest.mark.parametrize("stretch", [(0, 9), (3, 3), (-1, 2)])
def test_a_stretch_lies_in_the_response(stretch: tuple[int, int]) -> None:
    with pytest.raises(RecordError, match=r"has the stretch .* in a response of 8 characters"):
        Conversation("c", ({"role": "user", "content": "w1"},), "w1 w2 w3", "harmful", stretch=stretch)


# -- in tokens ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backend() -> TransformersBackend:
    return TransformersBackend(tiny.tiny_model("Llama"), tiny.tiny_tokenizer())


def place(backend: TransformersBackend, row: Conversation) -> tuple[int, int]:
    prompt = backend.template.prompt(list(row.messages), prefill=row.response)
    return in_tokens(backend.template, row.messages, row.response, row.stretch, prompt.ids[prompt.start :])


def test_a_stretch_is_found_in_the_tokens(backend: TransformersBackend) -> None:
    plain = conversation(1, response=f"{words(0, 7)} {words(50, 5)} {words(90, 4)}", label="harmful")
    begin = plain.response.index("w50")
    assert place(backend, plain) == NOWHERE
    assert place(backend, replace(plain, stretch=(begin, plain.response.index(" w90")))) == (7, 12)
    assert place(backend, replace(plain, stretch=(0, len(plain.response)))) == (0, 16)
    lines = conversation(1, response="w1 w2\n\nw3 w4\n\nw5", label="harmful")
    assert place(backend, replace(lines, stretch=(7, 12))) == (4, 6), "a line end is a token"


def test_a_token_across_an_edge_belongs_to_the_stretch(backend: TransformersBackend) -> None:
    row = conversation(1, response="w1 w22 w33 w44", label="harmful")
    assert place(backend, replace(row, stretch=(5, 8))) == (1, 3)


def test_the_place_is_collected_and_read_again(backend: TransformersBackend, tmp_path: Path) -> None:
    (spliced,) = splice([HARMFUL[0]], HOSTS, words=(5, 9), between=True)
    assert spliced.stretch is not None
    plan = CollectPlan((Site(2),), tokens=(0,), schedule=Listed((4, 40)), longest=30)
    store, _ = collect_into(tmp_path / "s", backend, [spliced, HARMLESS[0]], plan)
    checks = store.read([(Site(2), 0)])
    of_one = checks["id"] == spliced.id
    begins, ends = place(backend, spliced)
    assert 5 <= begins <= 9 + 2 and ends == begins + 30, "the place is that in the whole answer, as far as it is read"
    for name, value in (("harm_begins", begins), ("harm_ends", ends)):
        assert set(checks[name][of_one].tolist()) == {value} and set(checks[name][~of_one].tolist()) == {-1}


# -- in training -------------------------------------------------------------------------------------------------------


def columns(label: str, begins: int, ends: int, *depths: int) -> dict[str, np.ndarray]:
    count = len(depths)
    return {
        "label": np.array([label] * count),
        "depth": np.array(depths),
        "harm_begins": np.full(count, begins),
        "harm_ends": np.full(count, ends),
    }


def test_each_check_of_a_harmful_stretch_has_its_own_label() -> None:
    found = training_labels(columns("harmful", 25, 100, 0, 24, 25, 26, 44, 45, 75, 100, 101, 150))
    assert found.tolist() == ["benign"] * 3 + [""] * 2 + ["harmful"] * 3 + [""] * 2
    few = {**columns("harmful", 25, 100, 25, 26, 29, 30, 101), "grace": np.full(5, 5)}
    assert training_labels(few).tolist() == ["benign", "", "", "harmful", ""]
    assert training_labels(columns("harmful", 25, 100, 0, 25, 50), 20).tolist() == ["", "benign", "harmful"]


def test_a_harmless_stretch_and_a_whole_answer_keep_their_label() -> None:
    assert training_labels(columns("benign", 25, 100, 0, 30, 120)).tolist() == ["benign"] * 3
    assert training_labels(columns("harmful", -1, -1, 0, 30, 120)).tolist() == ["harmful"] * 3
    assert training_labels(columns("", 25, 100, 0, 50)).tolist() == ["", ""]
