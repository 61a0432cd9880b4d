"""Both contracts on one loaded model, and in which way it breaks them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from anydepth import Guard, LinearProbe, Rethink, Threshold
from anydepth.backends.protocol import CheckPoint, FinishedAnswer, Site
from anydepth.backends.transformers import TransformersBackend
from anydepth.backends.transformers.blocks import default_site
from anydepth.backends.transformers.read import read
from anydepth.errors import AnydepthError, UnsupportedModel
from anydepth.templates.template import Prompt
from tests import tiny
from tests.contract.contract import MAX_NEW_TOKENS, LooksAhead, Watcher, run

TOLERANCE = 1e-4
"""Largest difference of two states over the state's largest number."""

GREEDY = {"do_sample": False}
SAMPLED = {"do_sample": True, "temperature": 0.9, "top_k": 40}


class Broken(Exception):
    """A contract does not hold; the message says which."""


def trial(model: Any) -> dict[str, Any]:
    """Guard `model` as a user would, and compare; `outcome` is passes, refused, or silent with the contracts broken."""
    tokenizer = tiny.tiny_tokenizer()
    try:
        backend = TransformersBackend(model, tokenizer)
    except AnydepthError as error:
        return {"outcome": "refused", "note": str(error)}
    facts: dict[str, Any] = {}
    try:
        site = default_site(backend.model)
        facts["site"] = str(site)
        Guard.from_backend(backend, _probe(backend, site), policy=Threshold(1.0))
    except AnydepthError as error:
        return {"outcome": "refused", "note": str(error), **facts, **_remedy(backend)}
    facts["packed"] = backend.packs
    if backend.packing_refused:
        facts["note"] = backend.packing_refused
    broken = list(_broken(backend, site))
    if limits := [text for text in broken if text.startswith("limit: ")]:
        facts["note"] = "; ".join([*filter(None, [facts.get("note")]), *limits])
        broken = [text for text in broken if text not in limits]
    if broken:
        return {**facts, "outcome": "silent", "note": "; ".join(broken)}
    return {"outcome": "passes", **facts}


def _probe(backend: TransformersBackend, site: Site) -> LinearProbe:
    from tests.contract.test_inside_prefill import probe_of

    return probe_of(backend)


def _remedy(backend: TransformersBackend) -> dict[str, Any]:
    """Whether a look-ahead detector works where reading a state does not."""
    try:
        answer = Guard.from_backend(backend, Rethink()).generate("w1", max_new_tokens=4, **GREEDY)
    except AnydepthError:
        return {"look_ahead": False}
    return {"look_ahead": not answer.verdict.errors}


def _broken(backend: TransformersBackend, site: Site) -> Any:
    for name, check in (
        ("stream or states", _alone), ("look-ahead", _looking), ("padded batch", _batch), ("packed", _packed),
    ):  # fmt: skip
        try:
            check(backend, site)
        except Broken as error:
            yield f"{name}: {error}"
        except UnsupportedModel as error:  # said by name, before the first token
            yield f"limit: {name}: {error}"
        except Exception as error:
            yield f"{name}: {type(error).__name__}: {error}"


def _prompt(backend: TransformersBackend, words: int, prefill: str | None) -> Prompt:
    return backend.template.prompt(" ".join(f"w{n}" for n in range(words)), prefill=prefill)


def _alone(backend: TransformersBackend, site: Site) -> None:
    prompt = _prompt(backend, 7, "w11 w12 w13")
    (plain,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, **GREEDY)
    watcher = Watcher(site, backend.header.read_index)
    (released,), _ = run(backend, [prompt], watcher, **GREEDY)
    if released != plain:
        raise Broken("the stream is another")
    _compare(backend, prompt, released, watcher)


def _looking(backend: TransformersBackend, site: Site) -> None:
    prompt = _prompt(backend, 7, None)
    (plain,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, seed=3, **SAMPLED)
    (released,), _ = run(backend, [prompt], LooksAhead(), **SAMPLED)
    if released != plain:
        raise Broken("the stream is another")


def _batch(backend: TransformersBackend, site: Site) -> None:
    prompts = [_prompt(backend, 3, None), _prompt(backend, 12, "w11 w12 w13")]
    watcher = Watcher(site, backend.header.read_index)
    released, _ = run(backend, prompts, watcher, **GREEDY)
    plain = _plain_batch(backend, prompts)
    if any(mine != theirs[: len(mine)] for mine, theirs in zip(released, plain, strict=True)):
        raise Broken("the stream is another")
    alone = [backend.unguarded([each], max_new_tokens=MAX_NEW_TOKENS, **GREEDY)[0] for each in prompts]
    if list(released) != alone:
        return  # the library's own padded rows are other rows: there is no state to compare with
    for row, prompt in enumerate(prompts):
        own = Watcher(site, backend.header.read_index)
        own.seen = [(point, state) for point, state in watcher.seen if point.row == row]
        width = max(len(each.ids) for each in prompts)
        try:
            _compare(backend, prompt, released[row], own)
        except Broken:  # where the library counts padding, a row of a batch has other states than alone
            _compare(backend, prompt, released[row], own, padding=width - len(prompt.ids))


def _plain_batch(backend: TransformersBackend, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    width = max(len(prompt.ids) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt.ids)) + list(prompt.ids) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt.ids)) + [1] * len(prompt.ids) for prompt in prompts])
    with torch.no_grad():
        out = backend.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS, pad_token_id=0, **GREEDY
        )
    return [tuple(row[width:]) for row in out.tolist()]


def _packed(backend: TransformersBackend, site: Site) -> None:
    if not backend.packs:
        return
    prompt = _prompt(backend, 7, " ".join(f"w{n}" for n in range(60, 120)))
    question, answer = Prompt(prompt.ids[: prompt.start]), prompt.ids[prompt.start :]
    depths = (0, 1, 7, 25, 40, len(answer))
    (states,) = backend.read_batch(
        [FinishedAnswer(question, tuple(answer), depths)], [site], tokens=[backend.header.read_index]
    )
    watcher = Watcher(site, backend.header.read_index)
    watcher.seen = [(CheckPoint(0, depth), states[site][place, 0]) for place, depth in enumerate(depths)]
    _compare(backend, question, answer, watcher)


def _compare(
    backend: TransformersBackend, prompt: Prompt, answer: Sequence[int], watcher: Watcher, *, padding: int = 0
) -> None:
    worst = max(_off(backend, prompt, answer, point.depth, state, watcher, padding) for point, state in watcher.seen)
    if worst[0] > TOLERANCE:
        raise Broken(f"a state differs from a recompute by {worst[0]:.1%} at depth {worst[1]}")


def _off(
    backend: TransformersBackend,
    prompt: Prompt,
    answer: Sequence[int],
    depth: int,
    state: np.ndarray,
    watcher: Watcher,
    padding: int,
) -> tuple[float, int]:
    """Relative difference to the nearer of two recomputes: without a cache, and in one pass that fills one."""
    header = backend.header.ids[: watcher.read_index + 1]
    whole = [*prompt.ids[: prompt.start], *(*prompt.ids[prompt.start :], *answer)[:depth], *header]
    if depth == 0 and (index := backend.template.start_index(prompt, watcher.read_index)) is not None:
        whole = whole[: index + 1]
    ids = torch.tensor([[*[0] * padding, *whole]])
    inputs = backend.inputs.build(ids, None, torch.tensor([[*[0] * padding, *[1] * len(whole)]]))
    cached = {**inputs, backend.inputs.cache_name: backend.new_cache(ids.shape[1], {})}
    found = []
    for given in ({**inputs, "use_cache": False}, cached):
        true = read(backend.model, (watcher.site,), given)[watcher.site][0, -1].numpy()
        found.append(float(np.abs(true - state).max() / max(np.abs(true).max(), 1e-12)))
    return min(found), depth
