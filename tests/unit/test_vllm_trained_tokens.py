"""Trained Safety Tokens in vLLM, as far as no engine is needed."""

from types import SimpleNamespace

import numpy as np
import pytest

from anydepth import Threshold
from anydepth.backends.protocol import Read, Site
from anydepth.errors import BadRequest, UnsupportedModel
from anydepth.templates.template import ChatTemplate
from anydepth.vllm.additional_config import EngineOptions
from anydepth.vllm.engine.admission import Admission
from anydepth.vllm.engine.check_requests import places_in
from anydepth.vllm.served_model import ServedModel
from anydepth.vllm.setup import Setup
from tests import tiny


def with_own_tokens(count, rows):
    """The guard of a probe with `count` trained Safety Tokens, of a model with `rows` embeddings."""
    model = ServedModel.__new__(ServedModel)
    model._config = SimpleNamespace(get_vocab_size=lambda: rows)
    model.tokenizer = tiny.tiny_tokenizer()
    model.template = ChatTemplate(model.tokenizer)
    setup = Setup(EngineOptions(), model=model)
    setup.__dict__["detector"] = SimpleNamespace(
        name="p", reads=(Read(Site(1), count - 1),), policy=Threshold(0.5), embeddings=np.ones((count, 4), np.float32),
        needs=frozenset(), bind=lambda *_: None, check=lambda *_: None, score_each=lambda *_: None,
    )  # fmt: skip
    return setup


def test_trained_safety_tokens_stand_under_ids_that_are_no_tokens():
    setup = with_own_tokens(2, tiny.VOCABULARY + 3)
    last = tiny.VOCABULARY + 2
    assert setup.header_ids == (last - 1, last)
    assert setup.embeddings is not None and setup.embeddings.shape == (2, 4)
    assert places_in(setup, setup.model.template.prompt("w1")) is None, "at depth 0 they are appended too"
    assert with_own_tokens(1, tiny.VOCABULARY).header_ids == (tiny.VOCABULARY,), "the first id behind the table"
    with pytest.raises(UnsupportedModel, match=rf"4 trained.*has {last + 1} rows, and the tokenizer's ids go to 255"):
        _ = with_own_tokens(4, tiny.VOCABULARY + 3).header_ids
    request = SimpleNamespace(
        request_id="a", prompt_token_ids=[5, last], num_prompt_tokens=2, prompt_embeds=None, resumable=False,
        max_tokens=8, sampling_params=SimpleNamespace(extra_args=None),
    )  # fmt: skip
    with pytest.raises(BadRequest, match=rf"the ids \[{last}\], which are the guard's own"):
        Admission(setup, 512, "m").admit(request)
