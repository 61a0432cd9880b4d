"""One guarded engine under test."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams

from anydepth.audit.reading import read_records
from anydepth.audit.verify import AuditReport, verify_audit
from anydepth.settings import parse_settings
from anydepth.vllm.launch import engine_options
from anydepth.vllm.report_field import KEY, parse_stop_reason

OVERRIDES = {
    "interval": {"min": 1, "max": 100},
    "threshold": {"min": 0, "max": 1},
    "release": ["hold", "eager", "monitor"],
    "checks": True,
}
DEFAULTS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 16,
    "block_size": 32,
    "disable_log_stats": True,
}


@dataclass
class Told:
    """What a client got of one answer."""

    id: str
    token_ids: list[int] = field(default_factory=list)
    pieces: list[list[int]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: Any = None
    report: dict[str, Any] | None = None
    logprobs: list[Any] = field(default_factory=list)
    text: str = ""

    @property
    def halted(self) -> bool:
        return parse_stop_reason(self.stop_reason) is not None


class Engine:
    """A vLLM in this process, driven step by step."""

    def __init__(self, folder: Path, table: dict, audit: Path, extra: dict, options: dict) -> None:
        table = {"overrides": OVERRIDES, "audit": {"kind": "jsonl", "path": str(audit)}, **table}
        self.settings, self.audit = parse_settings(table), audit
        ours = engine_options(self.settings, allow_unguarded=True, **extra)
        self.llm = LLM(model=str(folder), **{**DEFAULTS, **options, **ours})
        self.engine = self.llm.llm_engine
        self.tokenizer = self.llm.get_tokenizer()
        self.count = 0

    @property
    def scheduler(self) -> Any:
        return self.engine.engine_core.engine_core.scheduler

    def ids(self, messages: Any) -> list[int]:
        if isinstance(messages, list) and messages and isinstance(messages[0], int):
            return messages
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )

    def add(self, messages: Any, *, guard: Any = None, **sampling: Any) -> str:
        self.count += 1
        name = f"answer{self.count}"
        extra = None if guard is None else {KEY: guard}
        params = SamplingParams(extra_args=extra, **{"max_tokens": 40, "temperature": 0.0, **sampling})
        self.engine.add_request(name, {"prompt_token_ids": self.ids(messages)}, params)
        return name

    def run(self, *names: str, each_step: Any = None) -> dict[str, Told]:
        """Step until nothing is left; the outputs of each request, cumulative as vLLM gives them."""
        told: dict[str, Told] = {}
        steps = 0
        while self.engine.has_unfinished_requests():
            steps += 1
            assert steps < 5000, "the engine does not come to an end"
            for output in self.engine.step():
                mine, last = told.setdefault(output.request_id, Told(output.request_id)), output.outputs[0]
                fresh = list(last.token_ids)[len(mine.token_ids) :]
                mine.pieces.append(fresh)
                mine.token_ids, mine.text = list(last.token_ids), last.text
                mine.finish_reason, mine.stop_reason = last.finish_reason, last.stop_reason
                mine.logprobs = last.logprobs or []
                if output.finished:
                    mine.report = (output.kv_transfer_params or {}).get(KEY)
            if each_step is not None:
                each_step(told)
        return told

    def answer(self, messages: Any, **options: Any) -> Told:
        name = self.add(messages, **options)
        return self.run()[name]

    def answers(self, many: list[Any], **options: Any) -> list[Told]:
        names = [self.add(messages, **options) for messages in many]
        told = self.run()
        return [told[name] for name in names]

    def stored(self) -> None:
        """Wait for the audit's thread: the record of an answer that was broken off is written there, unawaited."""
        self.scheduler._admission.audit.run(lambda: None)

    def records(self, name: str) -> list[dict[str, Any]]:
        self.stored()
        return [each for each in read_records(self.audit) if each.get("id") == name]

    def record(self, name: str) -> dict[str, Any]:
        return next(each for each in self.records(name) if each["kind"] == "answer")

    def verified(self) -> AuditReport:
        self.stored()
        report = verify_audit(self.audit)
        assert report.ok and not report.unfinished, report.violations
        return report


def monitor(**more: Any) -> str:
    return json.dumps({"release": "monitor", "checks": True, **more})
