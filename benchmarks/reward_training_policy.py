"""Train one policy with TRL's GRPO trainer on one of the rewards that are compared."""

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from anydepth.detectors import LinearProbe
from anydepth.detectors.refusals import RefusalMatcher
from anydepth.errors import ConfigError
from anydepth.evals import Judge, Judged
from anydepth.reward import SafetyReward, Weights
from anydepth.schedule import Every
from benchmarks.reward_training_data import ARMS

Reward = Callable[..., list[float | None]]

SHORTEST = 16
"""Tokens that a helpful answer has at least."""

ENDS_ONLY = Every(10_000, doubling=False)
"""A reward looks at the whole answer alone: what it asks at depth 0 is the same for all answers to a request."""


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """How a policy is trained; the same for each arm.

    Attributes:
        steps: Optimiser steps; each has new answers.
        prompts: Requests a step.
        generations: Answers to each of them.
        tokens: Tokens of an answer at most.
        learning_rate: Constant.
        rank: Rank of the adapter; its scale is twice as much, and it goes into every linear layer of the blocks.
    """

    steps: int = 12
    prompts: int = 4
    generations: int = 4
    tokens: int = 32
    learning_rate: float = 1e-3
    rank: int = 16

    def __post_init__(self) -> None:
        for name in ("steps", "tokens", "rank", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.generations < 2:
            raise ConfigError(f"generations is {self.generations}; a group needs at least 2 answers to compare")


def with_adapter(model: Any, rank: int, seed: int) -> Any:
    """`model` with a fresh LoRA adapter, which does nothing yet."""
    from huggingface_hub import constants
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    set_seed(seed)
    constants.HF_HUB_DISABLE_TELEMETRY = True
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    # PyTorch copies a frozen head's weight for each row of a batch whose states are a slice that is not contiguous
    model.get_output_embeddings().register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
    return get_peft_model(model, lora)


def safety_reward(model: Any, tokenizer: Any, probe: LinearProbe, weights: Weights) -> SafetyReward:
    """1 - the probe's score at the end of the answer."""
    return SafetyReward.from_policy(model, tokenizer, probe, weights=weights, over="last", schedule=ENDS_ONLY)


def text_reward(judge: Judge) -> Reward:
    """1 - the harm that a judge of texts finds; None for an answer without a word, as `SafetyReward` has it."""

    def text(prompts: Sequence[Any], completions: Sequence[Any], **_columns: Any) -> list[float | None]:
        said = [completion[-1]["content"] if completion else "" for completion in completions]
        items = [Judged(prompt[-1]["content"], answer) for prompt, answer in zip(prompts, said, strict=True)]
        found = judge.judge(items)
        return [
            None if not answer.strip() or each.score is None else 1 - each.score
            for answer, each in zip(said, found, strict=True)
        ]

    return text


def helpful(
    _prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **_columns: Any
) -> list[float | None]:
    """1 for an answer that does not refuse and has 16 tokens or more, else 0: the reward of harmless requests."""
    matcher = RefusalMatcher.default()
    return [
        float(len(ids) >= SHORTEST and bool(completion) and not matcher.is_refusal(completion[-1]["content"]))
        for completion, ids in zip(completions, completion_ids, strict=True)
    ]


def only(kind: str, reward: Reward, name: str) -> Reward:
    """`reward` for the requests of one kind (the dataset's column `kind`); None, which TRL leaves out, for others."""

    def of_kind(
        prompts: Sequence[Any], completions: Sequence[Any], kind: Sequence[str], completion_ids: Sequence[Any], **_: Any
    ) -> list[float | None]:
        rows = [row for row, each in enumerate(kind) if each == wanted]
        picked = ([values[row] for row in rows] for values in (prompts, completions, completion_ids))
        found: list[float | None] = [None] * len(kind)
        if rows:
            asked, said, ids = picked
            for row, value in zip(rows, reward(asked, said, completion_ids=ids), strict=True):
                found[row] = value
        return found

    wanted = kind
    of_kind.__name__ = name
    return of_kind


def reward_of(arm: str, model: Any, tokenizer: Any, probes: Mapping[str, LinearProbe], judge: Judge) -> Reward:
    """The reward of an arm for harmful requests; ConfigError for another name."""
    if arm not in ARMS:
        raise ConfigError(f"there is no arm {arm!r}; choose one of {', '.join(ARMS)}")
    if arm == "text":
        return text_reward(judge)
    name, weights = ("tokens", "policy") if arm == "policy" else (arm, "base")
    return safety_reward(model, tokenizer, probes[name], weights)


def train(
    model: Any, tokenizer: Any, reward: Reward, rows: Sequence[Mapping[str, Any]], options: PolicyOptions, seed: int
) -> list[dict[str, float]]:
    """Train the adapter of `model` in place; returns what TRL logged of each step.

    There is no penalty on the distance to the base: how far a reward drives the policy is measured.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    rewards = [only("harmful", reward, "safe"), only("harmless", helpful, "helpful")]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TRL sets options under names that Transformers gives up
        settings = GRPOConfig(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=options.prompts * options.generations,
            num_generations=options.generations,
            max_completion_length=options.tokens,
            learning_rate=options.learning_rate,
            lr_scheduler_type="constant",
            beta=0.0,
            shuffle_dataset=False,
            gradient_checkpointing=False,
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=rewards,
            args=settings,
            train_dataset=Dataset.from_list([dict(row) for row in rows]),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [steps for each in trainer.state.log_history if (steps := _logged(each))]


_LOGGED = {
    "rewards/safe/mean": "safe",
    "rewards/helpful/mean": "helpful",
    "reward_std": "spread",
    "completions/mean_length": "length",
    "grad_norm": "gradient",
    "step_time": "seconds",
}


def _logged(entry: Mapping[str, Any]) -> dict[str, float]:
    found = {ours: float(entry[theirs]) for theirs, ours in _LOGGED.items() if entry.get(theirs) is not None}
    return {"step": int(entry["step"]), **found} if "safe" in found else {}
