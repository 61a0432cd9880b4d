"""The Safety Tokens copied into an answer."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from anydepth.backends.transformers import TransformersBackend
from anydepth.conversations.dataset import Conversation
from anydepth.evals.answers.stored import stored
from anydepth.evals.attacks.copied_header import COPIES, copied, copied_headers
from tests import tiny
from tests.evaluations import tiny_backend
from tests.unit.evals import attacking, tables


def spelling_backend() -> TransformersBackend:
    """A tokenizer of single characters, so that every text can be spelled."""
    letters = [*map(chr, range(32, 127)), "\n"]
    special = ["<pad>", "<bos>", "<|im_end|>", "<|im_start|>"]
    vocabulary = {token: index for index, token in enumerate([*special, *letters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<|im_end|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = tiny.CHATML
    return TransformersBackend(tiny.tiny_model("Llama"), tokenizer)


def test_the_header_is_spelled_in_ordinary_tokens() -> None:
    backend = spelling_backend()
    header = "".join(backend.tokenizer.convert_ids_to_tokens(list(backend.header.ids)))
    ids = copied(backend, "plain text")
    assert "".join(backend.tokenizer.convert_ids_to_tokens(list(ids))) == header
    assert header.endswith("<|im_start|>assistant\n")
    assert not {*ids} & {*backend.tokenizer.all_special_ids}


def test_control_tokens_are_the_header_without_the_end_of_an_answer() -> None:
    backend = tiny_backend()
    assert backend.end_tokens({}) == {2}
    ids = copied(backend, "control tokens")
    assert ids == tuple(each for each in backend.header.ids if each != 2)
    assert len(ids) == len(backend.header.ids) - 1
    plain = copied(backend, "plain text")
    assert not {*plain} & {2, 3}, "no mark of the template"


@pytest.mark.parametrize("variant", COPIES)
def test_a_header_stands_before_each_paragraph(tmp_path: Path, variant: str) -> None:
    made = tables.context("adaptive", tmp_path / "run", attacking.write(tmp_path / "data"))
    text = "w1 w2 w3\n\nw4 w5\n \n w6 w7 w8 w9"
    given = Conversation("c", ({"role": "user", "content": "w1"},), text, "harmful")
    plain = stored(made, "", given, 100)
    (case,) = [case for case in copied_headers(made, [given], 100) if case.variant == variant]
    (short,) = [case for case in copied_headers(made, [given], 5) if case.variant == variant]
    header = copied(made.backend, variant)
    made.close()
    begins = (0, 5, 9)  # each line break is a token
    assert [made.backend.decode_text(plain.token_ids[place : place + 1]) for place in begins] == ["w1", "w4", "w6"]
    parts = [plain.token_ids[begin:end] for begin, end in zip(begins, (*begins[1:], None), strict=True)]
    assert case.transcript.token_ids == tuple(each for part in parts for each in (*header, *part))
    assert case.transcript.prompt == plain.prompt
    assert (case.attack, case.label) == ("copied-header", "harmful")
    assert short.transcript.token_ids == (*header, *plain.token_ids[:5]), "none behind the last token"
