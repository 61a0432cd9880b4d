"""A guarded model for EleutherAI's lm-eval: `simple_evaluate(GuardedLM(guard), apply_chat_template=True, ...)`."""

# ruff: noqa: E402 - a missing package gives the error of anydepth.extras, before its own imports

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import groupby
from typing import Any

from anydepth.errors import ConfigError, PromptError
from anydepth.extras import require
from anydepth.guard import Guard
from anydepth.guard_report import GuardReport
from anydepth.integrations.transformers import chat_prompt
from anydepth.types import Answer, Finished

require("lm_eval", extra="eval", at_least=(0, 4))

from lm_eval.models import huggingface
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

_HFLM: Any = huggingface.HFLM  # its decorator hides its type
_REMEDY = "; call simple_evaluate with apply_chat_template=True"


class GuardedLM(_HFLM):
    """A Transformers model whose generated answers are guarded.

    `generate_until` is guarded. `loglikelihood` and `loglikelihood_rolling` are those of the bare model, as `HFLM` has
    them: nothing is generated there that could be checked.

    Args:
        guard: A guard over a Transformers model.
        batch_size: How many answers are written at a time.
        **options: The other options of `HFLM`, for log-likelihoods and the chat template: `max_length`,
            `enable_thinking`, ...

    Attributes:
        guard: The guard.
        reports: For each answer so far `task`, `doc_id`, and under `anydepth` the guard's report, in the order of the
            requests. The text of a halted answer, which tasks mark, ends with the refusal.

    Raises:
        ConfigError: The guard is not over a Transformers model, `batch_size` no number, or `think_end_token` no text.
    """

    def __init__(self, guard: Guard, *, batch_size: int = 1, **options: Any) -> None:
        if not hasattr(guard.backend, "model"):
            raise ConfigError(f"the guard is over a {type(guard.backend).__name__}, which is no Transformers model")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size!r}; give a whole number of at least 1")
        if not isinstance(options.get("think_end_token", ""), str):
            raise ConfigError(f"think_end_token is {options['think_end_token']!r}; give its text")
        backend: Any = guard.backend
        super().__init__(pretrained=backend.model, tokenizer=backend.tokenizer, batch_size=batch_size, **options)
        self.guard = guard
        self.reports: list[dict[str, Any]] = []

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer under guard; a halted answer is what was released and the refusal, whatever `until` says.

        Raises:
            ConfigError: An option of the task cannot be guarded; it is named.
            PromptError: A context is no chat prompt, or does not fit the model's context.
        """
        texts: list[str] = []
        for options, batch in _batches(requests, self.batch_size):
            until, length, sampling = self._options(options)
            answers = self._answers([request.args[0] for request in batch], until, length, sampling)
            for request, answer in zip(batch, answers, strict=True):
                report = GuardReport.of(answer, self.guard.config)
                self.reports.append({"task": request.task_name, "doc_id": request.doc_id, "anydepth": report.record()})
                cut = (
                    answer.text
                    if answer.halted
                    else postprocess_generated_text(answer.text, until, self.think_end_token)
                )
                texts.append(cut)
        return texts

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refuse lm-eval's cache of answers: what comes from a file passes no check.

        Raises:
            ConfigError: Always, since lm-eval calls it for `use_cache` only.
        """
        raise ConfigError("use_cache takes answers from a file, which pass no check of this guard; leave it out")

    def _options(self, given: dict[str, Any]) -> tuple[list[str], int, dict[str, Any]]:
        """Stop strings, number of tokens and sampling options, read as `HFLM` reads them."""
        sampling: dict[str, Any] = dict(normalize_gen_kwargs(given, self.max_gen_toks))
        until, length = handle_stop_sequences(sampling.pop("until", None), eos=None), sampling.pop("max_gen_toks")
        if not sampling.get("do_sample"):
            sampling.pop("temperature", None)
        if until := [each for each in until if each]:
            sampling["stop_strings"] = until
        backend: Any = self.guard.backend
        ends = backend.end_tokens({}) | {self.eot_token_id}
        return until, length, {"eos_token_id": sorted(ends), **sampling}

    def _answers(
        self, contexts: Sequence[str], until: Sequence[str], length: int, sampling: dict[str, Any]
    ) -> list[Answer]:
        prompts = []
        for context in contexts:
            try:
                prompts.append(chat_prompt(self.guard.template, self.tok_encode(context), "a context"))
            except PromptError as error:
                raise PromptError(f"{error}{_REMEDY}") from error
        turns = self.guard.turns(prompts, max_new_tokens=length, **sampling)
        with closing(turns):
            found = {row: event.answer for turn in turns for row, event in turn if isinstance(event, Finished)}
        return [found[row] for row in range(len(prompts))]


def _batches(requests: Sequence[Any], rows: int) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """Up to `rows` requests in a row that have the same options, and these."""
    for _, group in groupby(requests, lambda request: str(request.args[1])):
        same = list(group)
        for begin in range(0, len(same), rows):
            yield same[begin].args[1], same[begin : begin + rows]
