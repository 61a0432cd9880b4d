"""Run by a test: vLLM with its engine in a process of its own, guarded by the plugin alone."""

import json
import sys

from anydepth.vllm.plugin import register
from tests.vllm.engine import DEFAULTS
from tests.vllm.model import PROMPTS


def main() -> None:
    from vllm import LLM, SamplingParams

    register()  # what vLLM does for an installed plugin
    llm = LLM(model=sys.argv[1], **DEFAULTS)
    ids = llm.get_tokenizer().apply_chat_template(PROMPTS[0], add_generation_prompt=True, return_dict=False)
    told = []
    for guard in ({"checks": True, "threshold": 1.0}, {"threshold": 0.0}):
        params = SamplingParams(max_tokens=10, temperature=0, ignore_eos=True, extra_args={"anydepth": guard})
        told += llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
    first, second = told
    report = first.kv_transfer_params["anydepth"]
    told = {"tokens": len(first.outputs[0].token_ids), "halted": second.outputs[0].stop_reason, "report": report}
    print(json.dumps(told))  # noqa: T201


if __name__ == "__main__":
    main()
