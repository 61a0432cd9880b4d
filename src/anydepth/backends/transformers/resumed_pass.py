"""Read a finished answer behind the part of it whose cache another answer has left."""

from collections.abc import Sequence

import numpy as np
import torch

from anydepth.backends.protocol import FinishedAnswer, Site
from anydepth.backends.transformers.answer_states import mean_states
from anydepth.backends.transformers.header_copies import TOKENS_A_PASS, HeaderSuffix, copies, of_text, text_of
from anydepth.backends.transformers.passes import Passes
from anydepth.backends.transformers.read import read, to_numpy
from anydepth.backends.transformers.soft_tokens import fed_instead
from anydepth.templates.header import is_mean


def read_resumed(
    passes: Passes,
    answer: FinishedAnswer,
    sites: tuple[Site, ...],
    tokens: Sequence[int],
    suffix: HeaderSuffix,
) -> dict[Site, np.ndarray] | None:
    """States of `tokens` at the depths of an answer, per site `[depths, tokens, hidden_size]`, in one pass.

    What is run is the text behind what it shares with a kept text, the header behind each depth, and once more each
    token of the shared part whose own state is read. Means are read of states that were kept; if they were not, the
    text is run from the first token of a mean on.

    Args:
        passes: The model.
        answer: The answer.
        sites: Where to read.
        tokens: As in `Backend.read_batch`.
        suffix: What stands behind the answer.

    Returns:
        The states; None where there is nothing to go on from.
    """
    text, start, header = text_of(answer), answer.prompt.start, suffix.ids
    deep = min((depth for depth in answer.depths if depth), default=0)
    first = min((start + max(0, deep + token) for token in tokens if is_mean(token) and deep), default=len(text))
    found = passes.kept.longest(text, first, sites)
    if found is None or not passes.inputs.same_factors(len(found[0].ids), len(text) + len(passes.header.ids)):
        return None
    (kept, count), picked = found, list(of_text(passes, answer, tokens, suffix.own))
    rest, again = text[count:], sorted({position for *_, position in picked if position < count})
    behind = [place for place, depth in enumerate(answer.depths) if header and (depth or not suffix.own)]
    extra = len(again) + len(behind) * len(header)
    if extra > TOKENS_A_PASS:
        return None
    width = passes.identity.hidden_size
    out = {site: np.zeros((len(answer.depths), len(tokens), width), np.float32) for site in sites}
    nothing = torch.empty(1, 0, width, dtype=passes.model.dtype, device=passes.model.device)
    states = dict.fromkeys(sites, nothing)
    if rest or extra:
        ends = torch.tensor([[start + answer.depths[place] for place in behind]], dtype=torch.long)
        asked = [(position, text[position]) for position in again]
        inputs = copies(passes, kept.unwindowed(count), ends, header, len(text), rest, asked)
        begin = len(rest) + len(again)
        with fed_instead(passes.model, suffix.embeddings, range(begin, begin + len(behind) * len(header))):
            states = read(passes.model, sites, inputs)
    seen = kept.seen(sites, first, count)
    for site, values in states.items():
        of_rest, of_again, of_copies = values[0].split([len(rest), len(again), len(behind) * len(header)])
        if behind:
            by_copy = to_numpy(of_copies).reshape(len(behind), len(header), width)
            for index, token in enumerate(tokens):
                if token >= 0:
                    out[site][behind, index] = by_copy[:, token]
        for place, index, position in picked:
            state = of_again[again.index(position)] if position < count else of_rest[position - count]
            out[site][place, index] = to_numpy(state)
        if first < len(text):
            unseen = values.new_zeros(first - start, width)  # answer tokens that are in no mean
            known = [seen[site]] if site in seen else []
            answered = torch.cat([unseen, *known, of_rest[max(first - count, 0) :]])
            for index, token in enumerate(tokens):
                if is_mean(token):
                    out[site][:, index] = to_numpy(mean_states(answered, token, answer.depths))
    return out
