"""Defences by name, and a model that is asked in words."""

import math
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from anydepth.config import GuardConfig
from anydepth.detectors import LinearProbe
from anydepth.errors import CheckError, ConfigError, ModelError
from anydepth.evals.arms.arms import ARMS, DeepAligned, GuardModel, SelfDefence, chosen_arms, defence, late_to_halt
from anydepth.evals.arms.model_as_judge import AskedModel, Wording, guard_wording, own_wording
from anydepth.evals.arms.replay import Detecting, Point, replay
from anydepth.evals.context import Context
from anydepth.evals.transcript import Transcript
from anydepth.policy import Ewma, Threshold
from anydepth.types import Score
from tests import tiny
from tests.evaluations import random_probe, tiny_backend, tiny_context

WORDS = {"harmful": ("w1", "w2"), "harmless": ("w3",)}


def saved(folder: Path, model: torch.nn.Module | None = None) -> str:
    (model or tiny.tiny_model("Llama")).save_pretrained(folder)  # type: ignore[operator]
    tiny.tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def transcript(context: Context, text: str = "w5 w6 w7", prefill: str | None = "w8 w9") -> Transcript:
    return Transcript("t", context.backend.template.prompt(text, prefill=prefill), (30, 31, 32, 33))


def asked_of(context: Context, **wording: object) -> AskedModel:
    return AskedModel(context.backend.model, context.backend.tokenizer, Wording(**{**WORDS, **wording}))  # type: ignore[arg-type]


# -- arms --------------------------------------------------------------------------------------------------------------


def test_every_arm_has_its_own_name_and_scores_what_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = saved(tmp_path / "guard")
    probe = tmp_path / "content.safetensors"
    random_probe(tiny_backend(), content=True).save(probe)
    (tmp_path / "adapter").mkdir()
    settings = {"deep-prefill.content_probe": str(probe), "deep-prefill.deep_aligned": str(tmp_path / "adapter")}
    context = tiny_context(tmp_path, "deep-prefill", options={"guard_model": guard, "settings": settings})
    wording = Wording(**WORDS)  # the tiny vocabulary has no Yes and No
    monkeypatch.setattr("anydepth.evals.arms.model_as_judge.own_wording", lambda: wording)
    monkeypatch.setattr("anydepth.evals.arms.model_as_judge.guard_wording", lambda name: wording)
    monkeypatch.setattr("anydepth.detectors.rethink._first_tokens", lambda openers, backend: ((30, 31), (30, 31)))
    points = [Point(transcript(context), depth) for depth in (0, 2, 4)]
    for name in ARMS:
        arm = defence(name, context)
        assert arm.name == name
        scores = arm.scores(points)
        assert [type(score) for score in scores] == [Score] * 3, name
        assert all(0 <= score.value <= 1 for score in scores if isinstance(score, Score))
        assert isinstance(arm.config(GuardConfig()), GuardConfig)


def test_base_never_halts(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, "deep-prefill")
    found = replay(defence("base", context), [transcript(context)], GuardConfig(policy=Threshold(0.0)))["t"]
    assert not found.verdict.halt


def test_the_probe_brings_its_policy_and_reads_inside_unless_it_must_not(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, "deep-prefill")
    probe, end = defence("probe", context), defence("probe-end", context)
    assert isinstance(probe, Detecting) and isinstance(end, Detecting)
    assert (probe.reads_inside, end.reads_inside) == (True, False)
    assert probe.config(GuardConfig()) == GuardConfig(policy=Threshold(0.7))
    assert end.config(GuardConfig()) == GuardConfig(policy=Threshold(0.7), prefill="end")
    long = transcript(context, prefill=" ".join(f"w{n}" for n in range(12)))
    depths = [
        [check.depth for check in replay(arm, [long], GuardConfig(release="monitor"))["t"].checks]
        for arm in (probe, end)
    ]
    assert depths == [[0, 1, 2, 4, 8, 12, 13, 14, 16], [0, 12, 13, 14, 16]]


def test_an_unknown_arm_is_refused_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no defence 'shield'; choose from base, probe"):
        defence("shield", tiny_context(tmp_path, "deep-prefill"))


@pytest.mark.parametrize(
    ("arm", "remedy"),
    [
        ("no-header", r"--set deep-prefill\.content_probe=PATH"),
        ("deep-aligned", r"--set deep-prefill\.deep_aligned=PATH"),
        ("guard-model", "--guard-model MODEL"),
    ],
)
def test_what_an_arm_lacks_is_an_error_if_it_was_asked_for_and_a_note_otherwise(
    tmp_path: Path, arm: str, remedy: str
) -> None:
    context = tiny_context(tmp_path, "deep-prefill")
    with pytest.raises(ConfigError, match=remedy):
        defence(arm, context)
    arms, notes = chosen_arms(context, ("base", arm))
    assert arms == ("base",)
    (note,) = notes
    assert arm in note and "was left out" in note
    with pytest.raises(ConfigError, match=remedy):
        chosen_arms(tiny_context(tmp_path, "deep-prefill", options={"arms": (arm,)}), ("base",))


def test_the_user_chooses_the_arms(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, "deep-prefill", options={"arms": ("rethink", "base", "rethink")})
    assert chosen_arms(context, ("probe",)) == (("rethink", "base"), ())


def test_no_header_takes_a_probe_of_the_content_token_only(tmp_path: Path) -> None:
    path = tmp_path / "header.safetensors"
    random_probe(tiny_backend()).save(path)
    context = tiny_context(tmp_path, "deep-prefill", options={"settings": {"deep-prefill.content_probe": str(path)}})
    with pytest.raises(ConfigError, match="takes one that reads @content only"):
        defence("no-header", context)


def test_a_missing_adapter_is_found_before_anything_is_measured(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, "deep-prefill", options={"settings": {"deep-prefill.deep_aligned": "/nowhere"}})
    with pytest.raises(ConfigError, match=r"deep_aligned is /nowhere"):
        defence("deep-aligned", context)


def test_a_deep_aligned_model_writes_with_its_adapter(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = saved(tmp_path / "model")
    adapted = peft.get_peft_model(
        tiny.tiny_model("Llama"), peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    arm = DeepAligned(base, tmp_path / "adapter", "float32")
    prompt = arm.writer.template.prompt("w1 w2")
    plain = tiny_backend().unguarded([prompt], max_new_tokens=12, do_sample=False)
    assert arm.writer.unguarded([prompt], max_new_tokens=12, do_sample=False) != plain
    assert arm.writer.identity.fingerprint == tiny_backend().identity.fingerprint


def test_a_policy_that_only_its_first_check_can_trip_is_named() -> None:
    assert late_to_halt(Threshold(0.99)) is None
    assert late_to_halt(Ewma(0.5, 0.9)) is None
    slow = late_to_halt(Ewma(0.2, 0.98))  # 1 - 0.5 * 0.8 ** 15 is above it, 0.8 ** 14 is not
    assert slow is not None and "takes 15 checks" in slow and "Ewma, threshold 0.98" in slow
    assert "more than 40 checks" in (late_to_halt(Ewma(0.01, 0.9997)) or "")


# -- asking ------------------------------------------------------------------------------------------------------------


def test_the_score_is_the_share_of_the_harmful_words(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, "deep-prefill")
    asked = asked_of(context)
    ids = context.backend.template.prompt("w1 w9 w20").ids
    with torch.no_grad():
        logits = context.backend.model(torch.tensor([ids])).logits[0, -1].double()
    one, two, three = (context.backend.tokenizer(word)["input_ids"][0] for word in ("w1", "w2", "w3"))
    expected = logits[[one, two]].exp().sum() / logits[[one, two, three]].exp().sum()
    (score,) = asked.scores([ids])
    assert isinstance(score, Score) and score.value == pytest.approx(float(expected), abs=1e-5)


def test_a_question_scores_the_same_alone_and_beside_longer_ones(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, "deep-prefill")
    asked = asked_of(context)
    questions = [tuple(range(9, 9 + n)) for n in (3, 40, 11)]
    together = asked.scores(questions)
    for question, score in zip(questions, together, strict=True):
        (alone,) = asked.scores([question])
        assert isinstance(score, Score) and isinstance(alone, Score)
        assert score.value == pytest.approx(alone.value, abs=1e-5)


def test_logits_of_nan_and_questions_too_long_fail_their_check_alone(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, "deep-prefill")
    asked = asked_of(context)
    good, long = asked.scores([(9, 10), tuple([9] * 600)])
    assert isinstance(good, Score)
    assert isinstance(long, CheckError) and "context of 512" in str(long)
    context.backend.model.lm_head.weight.data.fill_(math.nan)
    (failed,) = asked.scores([(9, 10)])
    assert isinstance(failed, CheckError)


def test_words_that_begin_alike_are_refused(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, "deep-prefill")
    with pytest.raises(ConfigError, match="begin with the same token"):
        asked_of(context, harmless=("w2",)).scores([(9, 10)])


def test_self_defence_asks_in_a_turn_behind_the_answer_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = tiny_context(tmp_path, "deep-prefill")
    wording = Wording(**WORDS, question="w90 w91")
    monkeypatch.setattr("anydepth.evals.arms.model_as_judge.own_wording", lambda: wording)
    seen: list[str] = []
    monkeypatch.setattr(
        AskedModel, "scores", lambda self, rows: [seen.append(context.backend.tokenizer.decode(r)) for r in rows]
    )
    SelfDefence(context.backend).scores([Point(transcript(context), depth) for depth in (0, 3)])
    assert [text.replace("\n", " ").split() for text in seen] == [
        f"<|im_start|> user w5 w6 w7 <|im_end|> <|im_start|> assistant {answer} <|im_end|> <|im_start|> user w90 w91 "
        "<|im_end|> <|im_start|> assistant".split()
        for answer in ("", "w8 w9 " + context.backend.tokenizer.decode([30]))
    ]


def test_a_guard_model_is_shown_request_and_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = tiny_context(tmp_path, "deep-prefill")
    arm = GuardModel(context.backend, "unused")
    seen: list[tuple[str, str]] = []

    class Showing:
        def about(self, request: str, answer: str) -> tuple[int, ...]:
            seen.append((request, answer))
            return (9,)

        def scores(self, rows: list[tuple[int, ...]]) -> list[Score]:
            return [Score(0.5) for _ in rows]

    monkeypatch.setattr(GuardModel, "asked", Showing())
    arm.scores([Point(transcript(context), depth) for depth in (0, 2)])
    assert seen == [("w5 w6 w7", ""), ("w5 w6 w7", "w8 w9")]
    talk = [
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "w2"},
        {"role": "user", "content": "w3"},
    ]
    longer = Transcript("t", context.backend.template.prompt(talk), (30,))
    arm.scores([Point(longer, 0)])
    assert [word for word in seen[-1][0].split() if word.startswith("w")] == ["w1", "w2", "w3"]


def test_a_message_holds_what_is_asked_about_even_if_that_looks_like_a_blank(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, "deep-prefill")
    asked = asked_of(context, question="w60 {request} w61 {answer} w62")
    text = context.backend.tokenizer.decode(asked.about("w1 w2", "w3"))
    assert "user \n w60 w1 w2 w61 w3 w62" in text
    asked_twice = asked_of(context, question="{request}|{answer}")
    calls: list[str] = []
    asked_twice.tokenizer = type(
        "Recording",
        (),
        {
            "apply_chat_template": lambda self, turns, **_: calls.append(turns[0]["content"]) or "",
            "__call__": lambda self, text, **_: {"input_ids": []},
        },
    )()
    asked_twice.about("{answer}", "no")
    assert calls == ["{answer}|no"]


def test_a_guard_classifier_gets_the_turns_and_a_lead(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, "deep-prefill")
    asked = asked_of(context, form="turns", lead="w70")
    words = context.backend.tokenizer.decode(asked.about("w1", "w2")).replace("\n", " ").split()
    expected = "<|im_start|> user w1 <|im_end|> <|im_start|> assistant w2 <|im_end|> <|im_start|> assistant w70"
    assert words == expected.split()


def test_wordings_are_chosen_by_the_models_name() -> None:
    classifier = guard_wording("meta-llama/Llama-Guard-3-8B")
    assert (classifier.form, classifier.harmful, classifier.harmless) == ("turns", ("unsafe",), ("safe",))
    assert guard_wording("/models/llama-guards/qwen2.5-7b").form == "message"
    assert "{request}" in guard_wording("org/chat").question and "{answer}" in guard_wording("org/chat").question
    assert own_wording().question and not set(own_wording().harmful) & set(own_wording().harmless)


def test_a_guard_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="guard model '/no/such'"):
        AskedModel.load("/no/such")
    folder = saved(tmp_path / "guard")
    (tmp_path / "guard" / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        AskedModel.load(folder)


def test_a_guard_model_that_is_an_adapter_is_its_base_with_the_adapter_on(tmp_path: Path) -> None:
    base, folder = saved(tmp_path / "base"), tmp_path / "adapter"
    adapted = peft.get_peft_model(tiny.tiny_model("Llama"), peft.LoraConfig(r=4, target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(str(folder))
    tiny.tiny_tokenizer().save_pretrained(folder)
    assert any("lora_A" in name for name, _ in AskedModel.load(str(folder)).model.named_parameters())


def test_a_guard_model_with_random_weights_is_refused(tmp_path: Path) -> None:
    folder = Path(saved(tmp_path / "guard"))
    held = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in held.items() if "layers.1.mlp" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"guard model .* lack weights .* random values"):
        AskedModel.load(str(folder))


def test_a_halt_of_a_guard_model_is_its_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: a planted output layer makes the guard find harm as soon as the answer's last word is there."""
    context = tiny_context(tmp_path, "deep-prefill")
    arm = GuardModel(context.backend, "unused")
    harm = context.backend.decode_text([32])

    class Planted(AskedModel):
        def scores(self, questions: object) -> list[Score | Exception]:
            return [Score(float(harm in self.tokenizer.decode(ids).split())) for ids in questions]  # type: ignore[union-attr]

    asked = Planted(context.backend.model, context.backend.tokenizer, Wording(**WORDS, question="{request} {answer}"))
    monkeypatch.setattr(GuardModel, "asked", asked)
    found = replay(arm, [transcript(context)], arm.config(GuardConfig()))["t"]
    assert found.verdict.halt and found.verdict.depth == 6


def test_a_probe_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    probe = random_probe(tiny_backend("Qwen2"), content=True)
    probe.save(path)
    assert np.array_equal(LinearProbe.load(path).weight, probe.weight)
    context = tiny_context(tmp_path, "deep-prefill", options={"settings": {"deep-prefill.content_probe": str(path)}})
    with pytest.raises(Exception, match="does not belong to this model"):
        defence("no-header", context)
