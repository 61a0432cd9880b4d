"""Read the header at every depth of finished answers in one packed pass.

The texts are run once, a batch at a time. Then one copy of the header per depth is run over their cache, all copies in
one forward: copy k has the positions that follow depth d_k, and a mask that lets it see the text up to d_k and itself.
Every state is what a fork at that depth would have given, and nothing is computed twice.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache, DynamicCache, DynamicSlidingWindowLayer

from anydepth.backends.protocol import FinishedAnswer, Site
from anydepth.backends.transformers.answer_states import mean_states
from anydepth.backends.transformers.blocks import text_config
from anydepth.backends.transformers.fork import fork
from anydepth.backends.transformers.growing import GrowingLayer
from anydepth.backends.transformers.header_copies import TOKENS_A_PASS, HeaderSuffix, copies, of_text, text_of
from anydepth.backends.transformers.passes import Passes
from anydepth.backends.transformers.read import read, to_numpy
from anydepth.backends.transformers.resumed_pass import read_resumed
from anydepth.backends.transformers.soft_tokens import fed_instead
from anydepth.errors import PromptError, UnsupportedModel
from anydepth.templates.header import is_mean


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
    behind = HeaderSuffix.of(passes, tokens, suffix, embeddings)
    header, own = behind.ids, behind.own
    _require_room(passes, answers)
    if len(answers) == 1 and answers[0].resumes and _model_refusal(passes) is None:
        resumed = read_resumed(passes, answers[0], sites, tokens, behind)
        if resumed is not None:
            return [resumed]
    length, cache, at_text = _run(passes, answers, sites)
    out = [
        {site: np.zeros((len(answer.depths), len(tokens), passes.identity.hidden_size), np.float32) for site in sites}
        for answer in answers
    ]
    size = max(1, TOKENS_A_PASS // max(1, len(header)))
    of_header = [token >= 0 for token in tokens]
    picked = [token for token in tokens if token >= 0]
    for begin in range(0, max(len(answer.depths) for answer in answers), size) if header else ():
        ends = [[each.prompt.start + depth for depth in each.depths[begin : begin + size]] for each in answers]
        padded = pad_sequence([torch.tensor(row, dtype=torch.long) for row in ends], batch_first=True)
        inputs = copies(passes, fork(cache), padded, header, length)
        with fed_instead(passes.model, behind.embeddings, range(padded.shape[1] * len(header))):
            states = read(passes.model, sites, inputs)
        for site, found in states.items():
            for row, values in enumerate(to_numpy(found).reshape(*padded.shape, len(header), -1)):
                # the text's own pass gives the other tokens, below
                out[row][site][begin : begin + size, of_header] = values[: len(ends[row])][:, picked]
    for row, answer in enumerate(answers):
        for site, found in at_text.items():
            for index, token in enumerate(tokens):
                if is_mean(token):
                    means = mean_states(found[row, answer.prompt.start :], token, answer.depths)
                    out[row][site][:, index] = to_numpy(means)
            for place, index, position in of_text(passes, answer, tokens, own):
                out[row][site][place, index] = to_numpy(found[row, position])
    return out


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
    texts = [text_of(answer) for answer in answers]
    text = pad_sequence([torch.tensor(each) for each in texts], batch_first=True, padding_value=passes.pad_id)
    text = text.to(passes.model.device)
    cache = DynamicCache()  # keeps every token, also where a sliding layer would forget the ones an early depth needs
    # no mask: what pads a text on the right comes after all that is read of it
    states = read(passes.model, sites, passes.inputs.build(text, cache, torch.ones_like(text)))
    return text.shape[1], cache, states


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
