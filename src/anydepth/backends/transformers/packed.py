"""Read the header at every depth of finished answers in one packed pass.

The texts are run once, a batch at a time. Then one copy of the header per depth is run over their cache, all copies in
one forward: copy k has the positions that follow depth d_k, and a mask that lets it see the text up to d_k and itself.
Every state is what a fork at that depth would have given, and nothing is computed twice.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache, DynamicCache, DynamicSlidingWindowLayer

from anydepth.backends.protocol import CONTENT, FinishedAnswer, Site
from anydepth.backends.transformers.answer_states import mean_states
from anydepth.backends.transformers.blocks import text_config
from anydepth.backends.transformers.fork import fork
from anydepth.backends.transformers.growing import GrowingLayer
from anydepth.backends.transformers.passes import Passes
from anydepth.backends.transformers.read import read, to_numpy
from anydepth.backends.transformers.soft_tokens import fed_instead
from anydepth.errors import PromptError, UnsupportedModel
from anydepth.templates.header import is_mean

_TOKENS_A_PASS = 1024
"""Header tokens of one text in one forward at most: bounds the mask's memory, which grows with this times the context.
"""


def refusal(passes: Passes) -> str | None:
    """Why this model cannot take the packed pass, or None if it can."""
    why = _model_refusal(passes)
    if why is not None:
        return why
    kinds = {type(layer) for layer in passes.new_cache(1, {}).layers}
    other = kinds - {GrowingLayer, DynamicSlidingWindowLayer}
    if other:
        return f"its cache has {', '.join(sorted(kind.__name__ for kind in other))}, which no attention mask can rewind"
    return None


def _model_refusal(passes: Passes) -> str | None:
    """As `refusal`, whatever its cache is."""
    if passes.packing_refused is not None:
        return passes.packing_refused
    attention = passes.model.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        return f"its attention implementation {attention!r} takes no 4-D mask; load it with attn_implementation='sdpa'"
    if passes.inputs.masks_by_index:
        return "it has layers that mask by the index of a token in the text, and not with the mask they are given"
    if "chunked_attention" in (getattr(text_config(passes.model), "layer_types", None) or ()):
        return "it has chunked attention layers, whose mask depends on chunk borders"
    return None


def read_batch(
    passes: Passes,
    answers: Sequence[FinishedAnswer],
    sites: tuple[Site, ...],
    *,
    tokens: Sequence[int],
    suffix: Sequence[int] | None = None,
    embeddings: np.ndarray | None = None,
) -> list[dict[Site, np.ndarray]]:
    """States of `tokens` at the depths of each answer, per site `[depths, tokens, hidden_size]`.

    See `Backend.read_batch` and `EmbeddingReader.read_batch`. The caller holds the lock and has entered
    `Passes.reading_weights`.
    """
    if embeddings is not None:
        suffix = passes.stand_ins(embeddings)
    own = suffix is None
    header = tuple(passes.header.ids if suffix is None else suffix)[: max((*tokens, CONTENT)) + 1]
    _require_room(passes, answers)
    out = [
        {site: np.zeros((len(answer.depths), len(tokens), passes.identity.hidden_size), np.float32) for site in sites}
        for answer in answers
    ]
    size = max(1, _TOKENS_A_PASS // max(1, len(header)))
    kept = _kept_part(passes, answers, sites, tokens, own) if len(answers[0].depths) <= size else None
    rest: tuple[int, ...] = ()
    if kept is None:
        length, cache, at_text = _run(passes, answers, sites)
    else:
        length, cache, at_text, rest = kept
    of_header = [token >= 0 for token in tokens]
    picked = [token for token in tokens if token >= 0]
    for begin in range(0, max(len(answer.depths) for answer in answers), size) if header or rest else ():
        ends = [[each.prompt.start + depth for depth in each.depths[begin : begin + size]] for each in answers]
        padded = pad_sequence([torch.tensor(row, dtype=torch.long) for row in ends], batch_first=True)
        inputs = copies(passes, fork(cache), padded, header, length, rest)
        cut = None if embeddings is None else embeddings[: len(header)]
        with fed_instead(passes.model, cut, range(len(rest), len(rest) + padded.shape[1] * len(header))):
            states = read(passes.model, sites, inputs)
        for site, found in states.items():
            if rest:
                fresh = found[:, : len(rest)]
                at_text[site] = torch.cat([at_text[site], fresh], 1) if site in at_text else fresh
            of_copies = to_numpy(found[:, len(rest) :]).reshape(*padded.shape, len(header), found.shape[-1])
            for row, values in enumerate(of_copies):
                # the text's own pass gives the other tokens, below
                out[row][site][begin : begin + size, of_header] = values[: len(ends[row])][:, picked]
    for row, answer in enumerate(answers):
        own_states = {site: states[row] for site, states in at_text.items()}
        _from_text(passes, answer, tokens, own, own_states, out[row], length)
    return out


def _kept_part(
    passes: Passes, answers: Sequence[FinishedAnswer], sites: tuple[Site, ...], tokens: Sequence[int], own: bool
) -> tuple[int, Cache, dict[Site, torch.Tensor], tuple[int, ...]] | None:
    """What `_run` would give of the part of a text that is kept, and the tokens behind it, which are still to be run.

    The states are those of its last tokens, as many as are read. None where the text is to be run whole.
    """
    if len(answers) != 1 or not answers[0].resumes or _model_refusal(passes) is not None:
        return None  # what is kept is of no kind of cache that `refusal` has something against
    text, first = _text(answers[0]), _first_needed(passes, answers[0], tokens, own)
    found = passes.kept.longest(text, first, sites)
    if found is None or not passes.inputs.same_factors(len(found[0].ids), len(text) + len(passes.header.ids)):
        return None
    kept, count = found
    seen = {site: states[None] for site, states in kept.seen(sites, first, count).items()}
    return len(text), kept.unwindowed(count), seen, text[count:]


def run_texts(
    passes: Passes, answers: Sequence[FinishedAnswer], sites: tuple[Site, ...]
) -> tuple[int, Cache, dict[Site, torch.Tensor]]:
    """Run prompts and answers once, up to the last of `sites`.

    Returns:
        The length of the longest text, the cache `[answers, length]`, and the states `[answers, length, hidden_size]`
        per site; what stands behind the end of a shorter text means nothing.

    Raises:
        UnsupportedModel: The model cannot take the packed pass; the reason is named.
        PromptError: A depth is outside its answer, or a text does not fit the context.
    """
    _require_room(passes, answers)
    return _run(passes, answers, sites)


def _require_room(passes: Passes, answers: Sequence[FinishedAnswer]) -> None:
    for answer in answers:
        _check(answer, passes.context_length, len(passes.header.ids))
        if passes.inputs.starts_anew(1, answer.prompt.start + answer.deepest + len(passes.header.ids)):
            raise UnsupportedModel(
                f"{passes.identity.name} cannot be read in a packed pass beyond {passes.inputs.switches_at} tokens: "
                "position factors change there for the whole text, also for what comes before"
            )


def _run(
    passes: Passes, answers: Sequence[FinishedAnswer], sites: tuple[Site, ...]
) -> tuple[int, Cache, dict[Site, torch.Tensor]]:
    reason = refusal(passes)
    if reason is not None:
        raise UnsupportedModel(f"{passes.identity.name} cannot be read in a packed pass: {reason}")
    texts = [_text(answer) for answer in answers]
    text = pad_sequence([torch.tensor(each) for each in texts], batch_first=True, padding_value=passes.pad_id)
    text = text.to(passes.model.device)
    cache = DynamicCache()  # keeps every token, also where a sliding layer would forget the ones an early depth needs
    # no mask: what pads a text on the right comes after all that is read of it
    states = read(passes.model, sites, passes.inputs.build(text, cache, torch.ones_like(text)))
    return text.shape[1], cache, states


def _text(answer: FinishedAnswer) -> tuple[int, ...]:
    return (*answer.prompt.ids[: answer.prompt.start], *answer.answer_ids[: answer.deepest])


def _first_needed(passes: Passes, answer: FinishedAnswer, tokens: Sequence[int], own: bool) -> int:
    """The first position whose state `_from_text` takes from the text's own pass; behind the text if it takes none."""
    start, end = answer.prompt.start, answer.prompt.start + answer.deepest
    deep = [depth for depth in answer.depths if depth]
    begins = [start + max(0, min(deep) + token) for token in tokens if is_mean(token) and deep]
    picked = [position for *_, position in _picked(passes, answer, tokens, own)]
    return min((*begins, *picked), default=end)


def _check(answer: FinishedAnswer, limit: int | None, header: int) -> None:
    length = answer.prompt.start + answer.deepest
    if limit is not None and length + header > limit:
        raise PromptError(
            f"prompt and answer have {length} tokens, which with a check of {header} do not fit the model's context of "
            f"{limit}; shorten them"
        )
    for depth in answer.depths:
        if not 0 <= depth <= len(answer.answer_ids):
            raise PromptError(f"depth {depth} is outside the answer, which has {len(answer.answer_ids)} tokens")


def copies(
    passes: Passes,
    cache: Cache,
    ends: torch.Tensor,
    header: tuple[int, ...],
    length: int,
    rest: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Arguments of the pass that runs, in each row, a copy of the header per entry of `ends` over `length` tokens.

    The last of these tokens are run in it too, before the copies, if they are given as `rest`.
    """
    device = passes.model.device
    width, rows = len(header), len(ends)
    copy = torch.arange(ends.shape[1], device=device).repeat_interleave(width)
    within = torch.arange(width, device=device).repeat(ends.shape[1])
    text = torch.arange(length, device=device).expand(rows, -1)
    ends_of = ends.to(device)[:, copy]
    positions = torch.cat([text[:, length - len(rest) :], ends_of + within], 1)
    sees_text = text[:, None, :] < torch.cat([text[:, length - len(rest) :] + 1, ends_of], 1)[:, :, None]
    sees_copy = (copy[None, :] == copy[:, None]) & (within[None, :] <= within[:, None])
    sees_copy = torch.cat([sees_copy.new_zeros(len(rest), len(copy)), sees_copy])
    seen = torch.cat([sees_text, sees_copy.expand(rows, -1, -1)], 2)
    distance = positions[:, :, None] - torch.cat([text, positions[:, len(rest) :]], 1)[:, None, :]
    arguments: dict[str, Any] = {
        "input_ids": torch.tensor([[*rest, *header * ends.shape[1]]] * rows, device=device),
        "attention_mask": _masks(passes, seen, distance),
        passes.inputs.cache_name: cache,
        "use_cache": True,
    }
    if passes.inputs.takes_positions:
        arguments["position_ids"] = positions
    return arguments


def _masks(passes: Passes, seen: torch.Tensor, distance: torch.Tensor) -> Any:
    """An additive mask `[b, 1, new, all]`, or one per layer type where the model has several."""
    config, dtype = text_config(passes.model), passes.model.dtype

    def additive(allowed: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]

    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    near = seen if window is None else seen & (distance < window)
    if kinds == {"sliding_attention"} or (not kinds and window is not None):
        return additive(near)
    if "sliding_attention" in kinds:
        return {"full_attention": additive(seen), "sliding_attention": additive(near)}
    return additive(seen)


def _picked(passes: Passes, answer: FinishedAnswer, tokens: Sequence[int], own: bool) -> Iterator[tuple[int, int, int]]:
    """What is read of the text itself but means: places among the depths and the tokens, and the position.

    It is what is no header token and, at depth 0, the header, which the prompt ends with.
    """
    for place, depth in enumerate(answer.depths):
        for index, token in enumerate(tokens):
            if is_mean(token) or (token != CONTENT and (depth or not own)):
                continue  # a mean, or in a copy of the header
            position = passes.template.position(answer.prompt, token, depth) if own else None
            if not own:
                position = answer.prompt.start + depth + token
            if position is not None:
                yield place, index, position


def _from_text(
    passes: Passes,
    answer: FinishedAnswer,
    tokens: Sequence[int],
    own: bool,
    at_text: dict[Site, torch.Tensor],
    out: dict[Site, np.ndarray],
    length: int,
) -> None:
    """Take what is read of the text itself from its own pass, which ends at `length` and may begin behind 0."""
    for site, states in at_text.items():
        begin = length - len(states)
        for index, token in enumerate(tokens):
            if is_mean(token):
                start = answer.prompt.start
                unseen = states.new_zeros(max(begin - start, 0), states.shape[-1])  # tokens that are in no mean
                whole = torch.cat([unseen, states[max(start - begin, 0) :]])
                out[site][:, index] = to_numpy(mean_states(whole, token, answer.depths))
        for place, index, position in _picked(passes, answer, tokens, own):
            out[site][place, index] = to_numpy(states[position - begin])
