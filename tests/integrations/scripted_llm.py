"""A plugin for tests of the llm plugin: guards over a script, in place of models that are loaded.

The name of an entry's model is what the model writes; checks fail from the word `harm` on.
"""

from typing import Any

import llm

from anydepth import Guard
from anydepth.integrations import llm_plugin
from anydepth.schedule import Every
from anydepth.testing import ScriptedBackend, ScriptedDetector


def load_guard(entry: dict[str, Any]) -> Guard:
    text = entry["model"]
    harm = text.find("harm")
    backend = ScriptedBackend([text])
    backend.tokenizer.all_special_tokens = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    scores = {0: 0.1} if harm < 0 else {0: 0.1, max(harm, 1): 0.9}
    opened = backend.open

    def note(prompts: Any, **given: Any) -> Any:
        with (llm.user_dir() / "asked.txt").open("a") as file:
            print([backend.tokenizer.decode(prompts[0].ids), given], file=file)
        return opened(prompts, **given)

    backend.open = note  # pyright: ignore[reportAttributeAccessIssue]
    return Guard.from_backend(backend, ScriptedDetector(scores), schedule=Every(8), refusal="No.")


llm_plugin.load_guard = load_guard
