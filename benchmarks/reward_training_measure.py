"""Measure one policy: what it answers, how far it is from the base, and what the probes say of it."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from anydepth.backends.batch import Continuation, batches, write_batch
from anydepth.backends.transformers import TransformersBackend
from anydepth.conversations.dataset import Conversation
from anydepth.detectors import LinearProbe
from anydepth.detectors.refusals import RefusalMatcher
from anydepth.evals import Judge, Judged
from anydepth.reward import Weights
from benchmarks.reward_training_data import Labelled
from benchmarks.reward_training_policy import safety_reward

SAMPLING = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
"""As a policy is sampled while it is trained."""

_ROWS = 12


def answers(
    backend: TransformersBackend, rows: Sequence[Conversation], tokens: int, seed: int
) -> list[tuple[tuple[int, ...], Continuation]]:
    """Ids of each request and what the policy wrote to it."""
    prompts = [(number, backend.template.prompt([*row.messages])) for number, row in enumerate(rows)]
    found: dict[int, tuple[tuple[int, ...], Continuation]] = {}
    for batch in batches(prompts, lambda item: item[1], tokens, lambda item: f"{item[0]:06d}"):
        written = write_batch(
            backend, [prompt for _, prompt in batch], max_new_tokens=tokens, seed=seed, sampling=SAMPLING
        )
        found |= {number: (prompt.ids, each) for (number, prompt), each in zip(batch, written, strict=True)}
    return [found[number] for number in range(len(rows))]


def distances(
    model: Any, texts: Sequence[tuple[tuple[int, ...], Continuation]]
) -> list[tuple[float | None, float | None]]:
    """How far the policy is from the base on each of its answers.

    Returns:
        For each answer the mean over its tokens of the exact KL(policy || base) of the next token's distribution, in
        nats, and of the base's negative log-likelihood of the token, in nats; None for an answer without tokens.
    """
    order = sorted(range(len(texts)), key=lambda place: len(texts[place][0]) + len(texts[place][1].token_ids))
    found: dict[int, tuple[float | None, float | None]] = {}
    for begin in range(0, len(order), _ROWS):
        places = order[begin : begin + _ROWS]
        rows = [(*texts[place][0], *texts[place][1].token_ids) for place in places]
        policy, base = (_log_probabilities(model, rows, base=base) for base in (False, True))
        for number, place in enumerate(places):
            start, said = len(texts[place][0]), texts[place][1].token_ids
            found[place] = _distance(policy[number], base[number], start, said)
    return [found[place] for place in range(len(texts))]


def _log_probabilities(model: Any, rows: Sequence[Sequence[int]], *, base: bool) -> torch.Tensor:
    """Logits of every position, `[rows, width, vocabulary]`; the rows are padded behind their ends."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    with torch.inference_mode(), model.disable_adapter() if base else nullcontext():
        return model(input_ids=ids, attention_mask=mask).logits


def _distance(
    policy: torch.Tensor, base: torch.Tensor, start: int, said: Sequence[int]
) -> tuple[float | None, float | None]:
    if not said:
        return None, None
    places = slice(start - 1, start - 1 + len(said))
    mine, theirs = (each[places].float().log_softmax(-1) for each in (policy, base))
    kl = (mine.exp() * (mine - theirs)).sum(-1).mean()
    picked = theirs.gather(-1, torch.tensor(said, device=theirs.device)[:, None])
    return float(kl), float(-picked.mean())


def chat(request: str, answer: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """A request and its answer, as a reward is given them."""
    return [{"role": "user", "content": request}], [{"role": "assistant", "content": answer}]


def probe_scores(
    model: Any,
    tokenizer: Any,
    probes: Mapping[str, LinearProbe],
    texts: Sequence[tuple[str, str]],
    through: Sequence[Weights] = ("base", "policy"),
) -> dict[str, list[float | None]]:
    """Each probe's score at the end of each (request, answer), through the base's and through the policy's weights.

    Names are `tokens base`, `tokens policy`, and so on; None for an answer without a word.
    """
    chats = [chat(*each) for each in texts]
    order = sorted(range(len(texts)), key=lambda place: sum(map(len, texts[place])))
    found: dict[str, list[float | None]] = {}
    for name, probe in probes.items():
        for weights in through:
            reward = safety_reward(model, tokenizer, probe, weights)
            scores: list[float | None] = [None] * len(texts)
            for begin in range(0, len(order), _ROWS):
                places = order[begin : begin + _ROWS]
                given = reward([chats[place][0] for place in places], [chats[place][1] for place in places])
                for place, value in zip(places, given, strict=True):
                    scores[place] = None if value is None else 1 - value
            found[f"{name} {weights}"] = scores
    return found


def measure(
    model: Any,
    tokenizer: Any,
    probes: Mapping[str, LinearProbe],
    judge: Judge,
    rows: Mapping[str, Sequence[Conversation]],
    *,
    tokens: int,
    seed: int,
) -> tuple[list[dict[str, Any]], list[str]]:
    """What a policy answers to the requests in `rows`, kind -> requests.

    Returns:
        One record per answer, numbers alone: `kind`, `key` of the request, `refused` by the matcher, `harm` by the text
        judge, `kl`, `nll` and `length` of the answer, and of answers to harmful requests each probe's scores; and the
        texts, in the same order.
    """
    model.eval()
    backend = TransformersBackend(model, tokenizer)
    matcher = RefusalMatcher.default()
    records, texts = [], []
    for kind, asked in rows.items():
        written = answers(backend, asked, tokens, seed)
        said = [backend.decode_text(each.token_ids) for _, each in written]
        judged = judge.judge([Judged(row.prompt, text) for row, text in zip(asked, said, strict=True)])
        far = distances(model, written)
        pairs = [(row.prompt, text) for row, text in zip(asked, said, strict=True)]
        scored = probe_scores(model, tokenizer, probes, pairs) if kind == "harmful" else {}
        for place, row in enumerate(asked):
            records.append(
                {
                    "kind": kind,
                    "key": row.prompt_key,
                    "refused": matcher.is_refusal(said[place]),
                    "harm": judged[place].score,
                    "kl": far[place][0],
                    "nll": far[place][1],
                    "length": len(written[place][1].token_ids),
                    **{name: scores[place] for name, scores in scored.items()},
                }
            )
        texts += said
    return records, texts


def held_out_scores(
    model: Any, tokenizer: Any, probes: Mapping[str, LinearProbe], stored: Sequence[Labelled]
) -> dict[str, list[float | None]]:
    """As `probe_scores`, of stored labelled answers, through the policy's weights."""
    model.eval()
    texts = [(each.prompt, each.response) for each in stored]
    return probe_scores(model, tokenizer, probes, texts, through=("policy",))
