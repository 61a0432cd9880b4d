"""A model of Transformers gives what it was asked and has answered so far as text, and an external guard reads it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from anydepth import Cascade, Guard, LinearProbe, Rethink
from anydepth.backends.protocol import CheckPoint
from anydepth.backends.transformers import TransformersBackend, load
from anydepth.detectors import ExternalGuard
from anydepth.schedule import Every
from tests.fake_guard import FakeGuard
from tests.server import tiny_model

ASKED = [{"role": "user", "content": "w1 w2"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def backend(folder: Path) -> TransformersBackend:
    return load(folder)


@pytest.fixture
def endpoint() -> Iterator[FakeGuard]:
    found = FakeGuard()
    yield found
    found.close()


def test_rows_of_a_batch_have_their_own_messages_and_answers(backend: TransformersBackend) -> None:
    """The shorter prompt is padded, and one has a prefill."""
    long = [{"role": "system", "content": "w3 w4 w5 w6 w7"}, *ASKED]
    prompts = [backend.template.prompt(ASKED, prefill="w8 w9"), backend.template.prompt(long)]
    session = backend.open(prompts, max_new_tokens=6, do_sample=False)
    start = session.conversations([CheckPoint(0, prompts[0].prefill), CheckPoint(1, 0), CheckPoint(0, 0)])
    assert [list(each.messages) for each in start] == [ASKED, long, ASKED]
    assert [each.answer for each in start] == ["w8 w9", "", ""]
    first, second = session.decode(4)
    now = session.conversations([CheckPoint(0, prompts[0].prefill + 4), CheckPoint(1, 4)])
    forced = prompts[0].ids[prompts[0].start :]
    assert now[0].answer == backend.decode_text([*forced, *first.token_ids])
    assert now[1].answer == backend.decode_text(second.token_ids)
    session.close()


def test_a_replayed_answer_is_that_text(backend: TransformersBackend) -> None:
    prompt = backend.template.prompt(ASKED, prefill="w8 w9 w10 w11")
    session = backend.replay(prompt.question, prompt.ids[prompt.start :])
    session.decode(2)
    (found,) = session.conversations([CheckPoint(0, 2)])
    assert list(found.messages) == ASKED
    assert found.answer == backend.decode_text(prompt.ids[prompt.start : prompt.start + 2])
    session.close()


def test_look_aheads_tell_their_tokens(backend: TransformersBackend) -> None:
    session = backend.open([backend.template.prompt(ASKED)], max_new_tokens=4, do_sample=False)
    session.decode(2)
    (text,) = session.look_ahead([CheckPoint(0, 2)], 5, lambda text: False)
    assert getattr(text, "tokens", None) == 5
    (text,) = session.look_ahead([CheckPoint(0, 2)], 5, lambda text: True)
    assert getattr(text, "tokens", None) == 1
    session.close()


@pytest.mark.parametrize("ride", ["never", "auto"])
def test_three_stages_over_a_model(folder: Path, endpoint: FakeGuard, ride: str) -> None:
    """The probe is unsure everywhere and the look-ahead never refuses: the external guard reads every check's text."""
    backend = load(folder, ride=ride)
    detector = Cascade(
        LinearProbe.load(folder / tiny_model.PROBE), Rethink(max_new_tokens=3), 0.0, 1.0, unsure=(0.0, 1.0),
        third=ExternalGuard(endpoint.url, "g", form="moderations", retries=0),
    )  # fmt: skip
    endpoint.verdict = lambda text: False
    guard = Guard.from_backend(backend, detector, schedule=Every(2, doubling=False))
    answer = guard.generate(ASKED, max_new_tokens=5, do_sample=False)
    assert [check.depth for check in answer.checks] == [0, 2, 4, 5] and not answer.halted
    said = [body["input"].partition("assistant: ")[2] for body in endpoint.asked]
    assert said == [backend.decode_text(answer.token_ids[:depth]) for depth in (0, 2, 4, 5)]
    assert answer.text == guard.unguarded(ASKED, max_new_tokens=5, do_sample=False)
    stages = answer.stages
    assert stages is not None and {name: each["decided"] for name, each in stages.items()} == {
        "probe": 0,
        "rethink": 0,
        "external": 4,
    }
    assert stages["rethink"]["look_ahead_tokens"] == 12 and stages["external"]["requests"] == 4


def test_a_prefill_is_read_inside_too(folder: Path, backend: TransformersBackend, endpoint: FakeGuard) -> None:
    detector = Cascade(
        LinearProbe.load(folder / tiny_model.PROBE), Rethink(max_new_tokens=3), 0.0, 1.0, unsure=(0.0, 1.0),
        third=ExternalGuard(endpoint.url, "g", form="moderations", retries=0),
    )  # fmt: skip
    endpoint.verdict = lambda text: text.endswith("assistant: w8 w9")
    guard = Guard.from_backend(backend, detector, schedule=Every(2, doubling=False))
    answer = guard.generate(ASKED, prefill="w8 w9 w10 w11 w12", max_new_tokens=3, do_sample=False)
    assert answer.halted and answer.verdict.depth == 2 and answer.generated_tokens == 0
