"""Guard `model.generate` of Transformers, for code that calls it already.

The way in is `custom_generate` with a folder: `generate` then does nothing but hand over its arguments as they were
given. With a callable it would drop the streamer without a word, and mix the caller's options with the model's own
before the guard could refuse one by name.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from anydepth.errors import ConfigError, PromptError
from anydepth.extras import require
from anydepth.guard import Guard
from anydepth.templates.rendering import Renderer
from anydepth.templates.template import ChatTemplate, Prompt
from anydepth.types import Answer, Event, Finished, Released

torch = require("torch", extra="transformers")
require("transformers", extra="transformers", at_least=(5, 16))

FOLDER = Path(__file__).resolve().parents[1] / "data" / "guarded_generate"
"""What `generate` loads: its one file calls `guarded_generate`."""

_DEFAULT_LENGTH = 20
"""New tokens of a `generate` call that says nothing of its length, as in Transformers."""

_ROWS_ONLY = "past_key_values", "cache", "cache_params", "inputs_embeds", "position_ids", "negative_prompt_ids"


def generate_kwargs(guard: Guard, answers: list[Answer] | None = None) -> dict[str, Any]:
    """What to add to a call of `model.generate`, so that its answers are guarded: `**generate_kwargs(guard)`.

    The prompts must be rendered by the chat template, with the generation prompt, and padded on the left. The call
    returns ids `[batch, prompt + new]` as ever. A halted answer ends with the tokens of the refusal and an end of turn,
    which are not counted by `max_new_tokens`.

    Args:
        guard: A guard over the same model.
        answers: A list to put the `Answer` of each row into, in order: there is no other sign of a halt in the ids.

    Raises:
        ConfigError: `guard` is not over a Transformers model. The call of `generate` raises it too, for another model
            or for an argument that cannot be guarded, by its name; and PromptError for ids that are no chat prompt.
    """
    if not hasattr(guard.backend, "model"):
        raise ConfigError(
            f"the guard is over a {type(guard.backend).__name__}, and generate() is a Transformers model's; "
            "make it with Guard(model, tokenizer, detector)"
        )
    return {"custom_generate": str(FOLDER), "trust_remote_code": True, "guard": guard, "answers": answers}


def guarded_generate(
    model: Any,
    *,
    guard: Guard,
    answers: list[Answer] | None,
    inputs: Any = None,
    input_ids: Any = None,
    attention_mask: Any = None,
    streamer: Any = None,
    **arguments: Any,
) -> Any:
    """Carry out one call of `generate` under guard; ids `[batch, prompt + new]`, int64, on the device of the given ids.

    Args:
        model: The model that `generate` was called on.
        guard: The guard.
        answers: Where the `Answer` of each row goes.
        inputs: Token ids, int `[batch, prompt]`, or as `input_ids`.
        input_ids: The same under its other name.
        attention_mask: 1 for tokens and 0 for the padding on their left, `[batch, prompt]`.
        streamer: Gets the prompt, then a column of ids `[batch]` at a time, each once a check has covered it in every
            row (or, under `release="eager"`, before).
        **arguments: The other arguments of `generate`.

    Raises:
        ConfigError: An argument cannot be guarded, or the guard is over another model.
        PromptError: The ids are no chat prompt, or are not padded on the left.
    """
    backend: Any = guard.backend
    if backend.model is not model:
        raise ConfigError(
            f"the guard is over {backend.identity.name}, and generate() was called on another model object "
            f"({type(model).__name__}); call it on the model that the guard was made with"
        )
    ids = _token_ids(inputs, input_ids)
    options = _options(arguments, backend.tokenizer)
    defaults = model.generation_config
    pad = options.get("pad_token_id", defaults.pad_token_id)
    prompts = _prompts(guard.template, ids, attention_mask, pad)
    length = _new_tokens(options, defaults, ids.shape[1])
    spare = ids.shape[1] - max(len(prompt.ids) for prompt in prompts)
    if spare and options.get("min_length"):  # counts the columns of the batch
        options["min_length"] = max(0, options["min_length"] - spare)
    ends = backend.end_tokens(options)
    columns = _Columns(guard.template, len(prompts), ends, _pad(pad, ends, backend.pad_id))
    turns = guard.turns(prompts, max_new_tokens=length, **options)
    with closing(turns):
        for place, turn in enumerate(turns):
            if streamer is not None and not place:
                streamer.put(ids.cpu())
            for row, event in turn:
                columns.take(row, event)
            if streamer is not None:
                for column in columns.fresh():
                    streamer.put(torch.tensor(column))
    if streamer is not None:
        streamer.end()
    if answers is not None:
        answers.extend(columns.answers[row] for row in range(len(prompts)))
    return torch.cat([ids, torch.tensor(columns.rows(), dtype=ids.dtype, device=ids.device)], 1)


class _Columns:
    """The new ids of a batch, row by row as they are released and column by column as a streamer gets them."""

    def __init__(self, template: ChatTemplate, rows: int, ends: frozenset[int], pad: int) -> None:
        self.answers: dict[int, Answer] = {}
        self._template, self._ends, self._pad = template, ends, pad
        self._ids: list[list[int]] = [[] for _ in range(rows)]
        self._texts = [""] * rows
        self._sent = 0

    def take(self, row: int, event: Event) -> None:
        """Note what came of a row."""
        if isinstance(event, Released):
            self._ids[row].extend(event.token_ids)
            self._texts[row] += event.text
        elif isinstance(event, Finished):
            self.answers[row] = event.answer
            if event.answer.halted:
                self._ids[row].extend(self._refusal(row, event.answer))

    def fresh(self) -> list[list[int]]:
        """The columns that no row changes any more and that were not given before."""
        going = [len(ids) for row, ids in enumerate(self._ids) if row not in self.answers]
        known = min(going, default=max(map(len, self._ids)))
        begin, self._sent = self._sent, max(known, self._sent)
        return [list(column) for column in zip(*(row[begin : self._sent] for row in self.rows(known)), strict=True)]

    def rows(self, width: int = 0) -> list[list[int]]:
        """The rows, padded on the right to the longest, or to `width` if that is more."""
        width = max(width, *map(len, self._ids))
        return [ids + [self._pad] * (width - len(ids)) for ids in self._ids]

    def _refusal(self, row: int, answer: Answer) -> tuple[int, ...]:
        """The ids of what a halted answer says behind its released text, and an end of turn."""
        header = self._template.header.ids
        before = self._template.words(header) + self._texts[row]
        said = Renderer(self._template.tokenizer, None, {}).ids_after(before, answer.text[len(self._texts[row]) :])
        if not self._ends:
            return said
        return (*said, header[0] if header[0] in self._ends else min(self._ends))


def _token_ids(inputs: Any, input_ids: Any) -> Any:
    """The prompt's ids `[batch, t]`; ConfigError if there are none, or two."""
    given = [each for each in (inputs, input_ids) if each is not None]
    if len(given) != 1 or getattr(given[0], "ndim", 0) != 2 or given[0].is_floating_point():
        raise ConfigError("generate() under guard takes the prompt as input_ids, a tensor of ids [batch, tokens]")
    return given[0]


def _options(arguments: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The sampling options of a call, those in a `generation_config` among them; the guard's session vets them."""
    config = arguments.get("generation_config")
    fields = {} if config is None else {name: value for name, value in vars(config).items() if name[0] != "_"}
    given = {**fields, **{name: value for name, value in arguments.items() if name != "generation_config"}}
    options = {name: value for name, value in given.items() if value is not None and name != "transformers_version"}
    for name in _ROWS_ONLY:
        if name in options:
            raise ConfigError(f"{name} cannot be guarded: a check reads the prompt's tokens; pass input_ids only")
    if options.pop("synced_gpus", False):
        raise ConfigError("synced_gpus=True cannot be guarded: rows may be halted on one GPU only; leave it out")
    if options.pop("tokenizer", tokenizer) is not tokenizer:
        raise ConfigError("tokenizer is another one than the guard's; leave it out, or pass the guard's")
    return options


def _prompts(template: ChatTemplate, ids: Any, mask: Any, pad: int | None) -> list[Prompt]:
    """The prompts of the rows of `ids` `[batch, t]`, their padding left out."""
    if mask is None:
        if pad is not None and bool((ids == pad).any()):
            raise PromptError(f"input_ids contain the padding id {pad}; pass attention_mask as well")
        mask = torch.ones_like(ids)
    if tuple(mask.shape) != tuple(ids.shape):
        raise PromptError(
            f"attention_mask is {list(mask.shape)} and input_ids is {list(ids.shape)}; give one for each id"
        )
    prompts = []
    for row, (tokens, seen) in enumerate(zip(ids.tolist(), mask.tolist(), strict=True)):
        begin = seen.index(1) if 1 in seen else len(seen)
        if not all(seen[begin:]) or begin == len(seen):
            raise PromptError(f"row {row} is not padded on the left; use tokenizer.padding_side = 'left'")
        prompts.append(chat_prompt(template, tokens[begin:], f"row {row}"))
    return prompts


def chat_prompt(template: ChatTemplate, ids: Sequence[int], name: str) -> Prompt:
    """The prompt that `ids` are: what stands behind its generation prompt is a prefill.

    Args:
        template: The chat template that rendered it.
        ids: Token ids, without padding.
        name: What an error calls it.

    Raises:
        PromptError: There is no generation prompt.
    """
    if (start := template.turn_begin(ids)) is None:
        raise PromptError(
            f"{name} has no generation prompt of the assistant's turn; render it with "
            "tokenizer.apply_chat_template(messages, add_generation_prompt=True)"
        )
    return Prompt(tuple(ids), prefill=len(ids) - start)


def _new_tokens(options: dict[str, Any], defaults: Any, length: int) -> int:
    """How many tokens a call asks for at most behind `length`, by the rules of `generate`; taken out of `options`."""
    total = options.pop("max_length", defaults.max_length)
    new = options.pop("max_new_tokens", defaults.max_new_tokens)
    if new is None and total is None:
        return _DEFAULT_LENGTH
    if new is None and total <= length:
        raise ConfigError(f"max_length is {total}, and the prompt has {length} tokens; use max_new_tokens")
    return total - length if new is None else new


def _pad(pad: int | None, ends: frozenset[int], otherwise: int) -> int:
    """The id that fills ended rows: the padding id or, as in `generate`, an end of turn."""
    return pad if pad is not None else min(ends, default=otherwise)
