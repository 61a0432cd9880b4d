"""Rewards over a real model: which weights are read, and a step of a real trainer."""

import asyncio
from typing import Any

import pytest
import torch
from datasets import Dataset

from anydepth import Every, Guard
from anydepth.backends.transformers import TransformersBackend
from anydepth.errors import ConfigError
from anydepth.reward import SafetyReward
from tests import tiny
from tests.contract.test_inside_prefill import probe_of

PROMPT = [{"role": "user", "content": "w1 w2 w3"}]
ANSWER = [{"role": "assistant", "content": " ".join(f"w{n}" for n in range(30))}]
SCHEDULE: dict[str, Any] = {"schedule": Every(5, doubling=False)}


def model_with_adapter() -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(
        target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=0.5, init_lora_weights=False
    )
    return get_peft_model(tiny.tiny_model("Llama"), lora)


def test_the_reward_is_that_of_a_scan() -> None:
    backend = TransformersBackend(tiny.tiny_model("Llama"), tiny.tiny_tokenizer())
    guard = Guard.from_backend(backend, probe_of(backend), **SCHEDULE)
    (result,) = guard.scan_many([(PROMPT, ANSWER[0]["content"])])
    scores = [check.score for check in result.checks]
    assert len(scores) == 7 and SafetyReward(guard)([PROMPT], [ANSWER]) == [pytest.approx(1 - max(scores))]


def test_base_weights_are_those_below_the_adapter_and_policy_weights_are_not() -> None:
    """While the model is being trained: dropout is off for the reading, and on again afterwards."""
    tokenizer, plain = tiny.tiny_tokenizer(), TransformersBackend(tiny.tiny_model("Llama"), tiny.tiny_tokenizer())
    probe = probe_of(plain)
    wanted = SafetyReward(Guard.from_backend(plain, probe, **SCHEDULE))([PROMPT], [ANSWER])
    model = model_with_adapter().train()
    base = SafetyReward.from_policy(model, tokenizer, probe, **SCHEDULE)
    policy = SafetyReward.from_policy(model, tokenizer, probe, weights="policy", **SCHEDULE)
    assert base([PROMPT], [ANSWER]) == pytest.approx(wanted, abs=1e-5)
    first, again = policy([PROMPT], [ANSWER]), policy([PROMPT], [ANSWER])
    assert first == again and first != pytest.approx(wanted, abs=1e-4)
    assert model.training and model.base_model.training
    with pytest.raises(ConfigError, match=r"weights is 'base', but LlamaForCausalLM has no PEFT adapter.*'policy'"):
        SafetyReward.from_policy(tiny.tiny_model("Llama"), tokenizer, probe)
    with pytest.raises(ConfigError, match="weights is 'frozen'; choose base or policy"):
        SafetyReward.from_policy(model, tokenizer, probe, weights="frozen")  # pyright: ignore[reportArgumentType]


def test_rewards_that_are_awaited_together_do_not_switch_the_weights_for_each_other() -> None:
    tokenizer = tiny.tiny_tokenizer()
    probe = probe_of(TransformersBackend(tiny.tiny_model("Llama"), tokenizer))
    model = model_with_adapter().train()
    one, other = (SafetyReward.from_policy(model, tokenizer, probe, **SCHEDULE) for _ in range(2))
    alone = one([PROMPT] * 8, [ANSWER] * 8)

    async def together() -> Any:
        both = one.asynchronous([PROMPT] * 8, [ANSWER] * 8), other.asynchronous([PROMPT], [ANSWER])
        return await asyncio.gather(*both)

    for _ in range(5):
        assert asyncio.run(together())[0] == pytest.approx(alone, abs=1e-6)
    assert model.training


@pytest.mark.slow
def test_a_trainer_of_trl_takes_it(tmp_path: Any) -> None:
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    tokenizer, model = tiny.tiny_tokenizer(), model_with_adapter()
    probe = probe_of(TransformersBackend(tiny.tiny_model("Llama"), tokenizer))
    reward = SafetyReward.from_policy(model, tokenizer, probe, scale="logit", **SCHEDULE)
    settings = GRPOConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, num_generations=4,
        max_completion_length=12, report_to=[], use_cpu=True, bf16=False, logging_steps=1, save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": PROMPT}] * 8)
    trainer = GRPOTrainer(
        model=model, reward_funcs=[reward], args=settings, train_dataset=data, processing_class=tokenizer
    )
    trainer.train()
    logged = [each for each in trainer.state.log_history if "rewards/safety/mean" in each]
    assert len(logged) == 2 and all(0 < each["safety/score"] < 1 for each in logged)
