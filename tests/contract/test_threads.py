"""Several answers at once on one model, from threads and from asyncio: each is what it would have been alone."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from anydepth import Every, Guard, Threshold
from anydepth.backends.protocol import Read
from anydepth.backends.transformers.read import captured
from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.types import Finished
from tests import tiny
from tests.contract.contract import backend_of, watcher_for

QUESTIONS = ["w1 w2", "w3 w4 w5", "w6", "w7 w8 w9 w10", "w11 w12"]
OPTIONS = {"max_new_tokens": 40, "do_sample": True, "temperature": 0.9}


def tiny_guard() -> Guard:
    backend = backend_of("Llama")
    header = backend.header
    card = ProbeCard(backend.identity, header.ids, (Read(watcher_for(backend).site, header.read_index),))
    weight = np.random.default_rng(0).normal(size=backend.identity.hidden_size).astype(np.float32)
    return Guard.from_backend(backend, LinearProbe(weight, 0.0, card), policy=Threshold(1.0), schedule=Every(5))


def account(answer):
    return answer.token_ids, [(check.depth, round(check.score, 5)) for check in answer.checks]


def test_threads_do_not_mix_their_states_or_their_random_numbers():
    guard = tiny_guard()
    alone = [account(guard.generate(q, seed=n, **OPTIONS)) for n, q in enumerate(QUESTIONS)]
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        together = pool.map(
            lambda item: account(guard.generate(item[1], seed=item[0], **OPTIONS)), enumerate(QUESTIONS)
        )
        assert list(together) == alone


async def test_streams_of_asyncio_do_not_mix():
    guard = tiny_guard()
    alone = [account(guard.generate(q, seed=n, **OPTIONS)) for n, q in enumerate(QUESTIONS)]

    async def answer(number: int, question: str):
        events = [event async for event in guard.astream(question, seed=number, **OPTIONS)]
        assert isinstance(events[-1], Finished)
        return account(events[-1].answer)

    assert await asyncio.gather(*(answer(n, q) for n, q in enumerate(QUESTIONS))) == alone


def test_a_reading_does_not_see_the_pass_of_another_thread():
    model = tiny.tiny_model("Llama")
    site = watcher_for(backend_of("Llama")).site
    ids = torch.tensor([[5, 6, 7]])
    with captured(model, (site,), stop=True) as seen, ThreadPoolExecutor(1) as pool:
        logits = pool.submit(lambda: model(ids).logits).result()
    assert seen[site] == []
    assert logits.shape[:2] == (1, 3)
