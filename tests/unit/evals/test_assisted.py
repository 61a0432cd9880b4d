"""A steered answer takes the tokens that it says it takes."""

import numpy as np
import pytest
import torch

from anydepth.detectors import LinearProbe
from anydepth.errors import ConfigError
from anydepth.evals.arms.replay import Point, packed_scores
from anydepth.evals.attacks.ranked_prefill import Steering, steer
from anydepth.evals.transcript import Transcript
from anydepth.schedule import Every
from anydepth.templates.template import Prompt
from tests.evaluations import random_probe, tiny_backend
from tests.unit.evals import tables

SCHEDULE = Every(8)


def prompt() -> Prompt:
    return tables.backend().template.prompt("w1 w2 w3", prefill="w7 w8 w9")


def likeliest(ids: tuple[int, ...], count: int) -> list[int]:
    with torch.no_grad():
        logits = tables.backend().model(torch.tensor([ids])).logits[0, -1]
    return logits.topk(count).indices.tolist()


def steered(choice, tokens: int = 20, top: int = 6, probe: LinearProbe | None = None):  # type: ignore[no-untyped-def]
    return steer(
        tables.backend(), prompt(), choice, Steering(tokens, top), schedule=SCHEDULE, probe=probe or tables.probe()
    )


def test_the_likeliest_tokens_are_the_models_own_answer() -> None:
    (plain,) = tables.backend().unguarded([prompt()], max_new_tokens=20, do_sample=False)
    assert steered("likely") == plain


def test_the_low_ranked_choice_takes_the_last_candidate_at_each_window() -> None:
    answer = steered("low-rank")
    whole = (*prompt().ids, *answer)
    begin = len(prompt().ids)
    for depth in (0, 1, 2, 4, 8, 16):  # the first token of each window of the schedule
        assert whole[begin + depth] == likeliest(whole[: begin + depth], 6)[-1]
    for depth in (3, 5, 6, 7, 9, 17):  # the others are greedy
        assert whole[begin + depth] == likeliest(whole[: begin + depth], 1)[0]


@pytest.mark.parametrize("content", [False, True])
def test_the_probes_choice_scores_lowest_at_the_next_check(content: bool) -> None:
    backend = tables.backend()
    probe = random_probe(backend, 3, content=content)
    answer = steered("probe", probe=probe)
    begin, prefill = prompt().start, prompt().prefill
    for done, goal in ((0, 1), (1, 2), (4, 8), (16, 20)):
        ids = (*prompt().ids, *answer[:done])
        points = []
        for candidate in likeliest(ids, 6):
            window = [candidate]
            while len(window) < goal - done:
                window.append(likeliest((*ids, *window), 1)[0])
            tried = Transcript(
                f"{done}-{candidate}", Prompt((*ids[:begin], *ids[begin:], *window), len(ids) - begin), ()
            )
            tried = Transcript(tried.id, Prompt(ids[:begin]), (*ids[begin:], *window))
            points.append(Point(tried, prefill + goal))
        scores = [score.value for score in packed_scores(backend, probe, points)]  # type: ignore[union-attr]
        best = points[int(np.argmin(scores))].transcript.token_ids
        assert answer[done:goal] == best[prefill + done :]


def test_no_candidate_ends_the_turn() -> None:
    backend = tiny_backend()
    ends = backend.end_tokens({})
    assert ends
    answer = steer(
        backend,
        backend.template.prompt("w1 w2"),
        "low-rank",
        Steering(24, 200),
        schedule=SCHEDULE,
        probe=random_probe(backend),
    )
    assert answer
    assert not ends & set(answer)


def test_a_steered_answer_without_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one token"):
        Steering(0)
