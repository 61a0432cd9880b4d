"""ClassifierJudge: a tiny trained classifier, read from a folder as a user's would be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from anydepth.errors import ConfigError, ModelError
from anydepth.evals.judges.classifier import ClassifierJudge
from anydepth.evals.judges.judge import EMPTY, Judged, Judgement
from anydepth.evals.judges.open import open_judge

BAD = "w7"
LONGEST = 32


def tokenizer() -> PreTrainedTokenizerFast:
    names = ["<pad>", "<cls>", "<sep>", "<unk>", *(f"w{n}" for n in range(40))]
    backend = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>", pair="<cls> $A <sep> $B <sep>", special_tokens=[("<cls>", 1), ("<sep>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", cls_token="<cls>", sep_token="<sep>", unk_token="<unk>",
        model_max_length=LONGEST,
    )  # fmt: skip


def config(**facts: Any) -> BertConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertConfig(vocab_size=44, max_position_embeddings=LONGEST + 2, **{**sizes, **facts})


def saved(folder: Path, labels: dict[int, str], **facts: Any) -> str:
    """A classifier that was trained to find the word w7: its last label."""
    torch.manual_seed(0)
    of_labels = {"id2label": labels, "label2id": {name: n for n, name in labels.items()}}
    model = BertForSequenceClassification(config(**of_labels, **facts)).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(1000):
        ids = torch.randint(4, 43, (32, 12))
        ids[ids == 11] = 12
        bad = torch.rand(32) < 0.5
        ids[bad, torch.randint(1, 11, (32,))[bad]] = 11  # w7
        ids[:, 0], ids[:, -1] = 1, 2
        logits = model(input_ids=ids).logits
        goal = torch.zeros_like(logits)
        goal[:, -1] = bad.float()
        if logits.shape[1] > 1:
            goal[:, 0] = 1 - bad.float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, goal)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if loss.item() < 0.01:  # how many steps that takes depends on the machine's arithmetic
            break
    assert loss.item() < 0.1
    model.eval().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("models") / "tiny-classifier", {0: "harmless", 1: "harmful"})


def opened(spec: str) -> Any:
    return open_judge(spec, tables=lambda name: [], folder=Path(), seed=0)


def test_it_finds_the_label_that_means_harm(folder: str) -> None:
    judge = opened(f"classifier:{folder}")
    bad, good, refusal, empty = judge.judge(
        [
            Judged("w1", f"w1 w2 {BAD} w3"),
            Judged("w1", "w1 w2 w3 w4"),
            Judged("w1", "I'm sorry, but I can't help with that."),
            Judged("w1", " "),
        ]
    )
    assert (bad.refused, bad.harmful) == (False, True)
    assert (good.refused, good.harmful) == (False, False)
    assert (refusal.refused, refusal.harmful) == (True, False)
    assert empty == EMPTY
    assert 0 <= good.score < 0.5 <= bad.score <= 1
    assert (judge.name, judge.says_harm) == ("classifier tiny-classifier", True)


def test_the_label_may_be_named(folder: str) -> None:
    item = Judged("w1", f"w1 {BAD} w2")
    given = opened(f"classifier:{folder}#harmful").judge([item])
    assert given == opened(f"classifier:{folder}").judge([item])
    (other,) = opened(f"classifier:{folder}#harmless").judge([item])
    assert other.harmful is False and other.score == pytest.approx(1 - given[0].score, abs=1e-4)
    (both,) = opened(f"classifier:{folder}#harmless,harmful").judge([item])
    assert both.score == pytest.approx(1.0)


def test_a_long_answer_is_read_to_its_end(folder: str) -> None:
    judge = opened(f"classifier:{folder}")
    benign = " ".join(f"w{1 + n % 6}" for n in range(300))
    early, late, never = judge.judge(
        [Judged("w1", f"{BAD} {benign}"), Judged("w1", f"{benign} {BAD}"), Judged("w1", benign)]
    )
    assert (early.harmful, late.harmful, never.harmful) == (True, True, False)


def test_the_request_is_read_only_if_it_is_asked_for(folder: str) -> None:
    item = Judged(f"w1 {BAD}", "w2 w3 w4")
    assert opened(f"classifier:{folder}").judge([item])[0].harmful is False
    assert opened(f"classifier-pair:{folder}").judge([item])[0].harmful is True


def test_a_long_request_leaves_room_for_the_answer(folder: str) -> None:
    long = " ".join(f"w{1 + n % 6}" for n in range(300))
    judge = opened(f"classifier-pair:{folder}")
    assert [each.harmful for each in judge.judge([Judged(long, f"{long} {BAD}"), Judged(long, "w2 w3")])] == [
        True,
        False,
    ]


def test_what_was_forced_is_not_held_against_the_model(folder: str) -> None:
    assert opened(f"classifier:{folder}").judge([Judged("w1", "w2 w3", prefill=BAD)])[0].harmful is False


def test_several_labels_may_hold_at_once(tmp_path: Path) -> None:
    labels = {0: "fine", 1: "severe_toxic", 2: "toxic"}
    judge = opened(f"classifier:{saved(tmp_path / 'multi', labels, problem_type='multi_label_classification')}")
    bad, good = judge.judge([Judged("w1", f"w1 {BAD} w2"), Judged("w1", "w1 w2 w3")])
    assert (bad.harmful, good.harmful) == (True, False)


def test_a_single_output_is_a_probability(tmp_path: Path) -> None:
    judge = opened(f"classifier:{saved(tmp_path / 'single', {0: 'unsafe'})}")
    bad, good = judge.judge([Judged("w1", f"w1 {BAD} w2"), Judged("w1", "w1 w2 w3")])
    assert (bad.harmful, good.harmful) == (True, False)


@pytest.mark.parametrize(
    ("labels", "given", "said"),
    [
        ({0: "LABEL_0", 1: "LABEL_1"}, (), "cannot be told from their names, it has LABEL_0, LABEL_1"),
        ({0: "toxic", 1: "hate"}, (), "cannot be told"),
        ({0: "safe", 1: "not_harmful"}, (), "cannot be told"),
        ({0: "safe", 1: "unsafe"}, ("bad",), "has no label 'bad'; it has safe, unsafe"),
    ],
)
def test_labels_that_do_not_say_are_an_error(labels: dict[int, str], given: tuple[str, ...], said: str) -> None:
    facts = {"id2label": labels, "label2id": {name: n for n, name in labels.items()}}
    with pytest.raises(ConfigError, match=said):
        ClassifierJudge(BertForSequenceClassification(config(**facts)), tokenizer(), "tiny", labels=given)


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        opened(f"classifier:{tmp_path}")


def test_a_model_that_was_never_made_a_classifier_is_an_error(tmp_path: Path) -> None:
    plain = BertForSequenceClassification(config(id2label={0: "safe", 1: "unsafe"}))
    plain.bert.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"judge .* lack weights .*classifier.* fine-tuned for sequence"):
        opened(f"classifier:{tmp_path}")


def test_a_tokenizer_without_padding_uses_its_end_of_text(folder: str) -> None:
    judge = ClassifierJudge.load(folder)
    bare = tokenizer()
    bare.pad_token, bare.eos_token = None, "<sep>"
    unpadded = ClassifierJudge(judge._model, bare, "tiny")
    found = unpadded.judge([Judged("w1", " ".join(["w1"] * 100 + [BAD]))])
    assert found == [Judgement(False, True, pytest.approx(found[0].score))]
