"""Guard the answers of one model."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from anydepth.backends.protocol import Reader, require_sessions
from anydepth.backends.trained_tokens import prove_checks
from anydepth.config import OPTIONS, GuardConfig, guard_config, with_own_policy
from anydepth.detectors import Detector, LinearProbe, declares_reads, detector_parts
from anydepth.detectors.detector import embeddings_of
from anydepth.detectors.named import shipped_probe
from anydepth.driver import Driver, OnCheck, share_time, unobserved
from anydepth.errors import ConfigError
from anydepth.flow import guarded
from anydepth.gate import CallEnds, gate_calls, handed_out, require_halting
from anydepth.policy import Policy
from anydepth.scan import InsideReading, scan_answers
from anydepth.schedule import Schedule
from anydepth.templates.call_formats import choose_format
from anydepth.templates.template import ChatTemplate, Prompt
from anydepth.text import TextStream
from anydepth.types import Answer, Event, Finished, GateVerdict, Message, ScanResult
from anydepth.writer import AnswerWriter, HasCalls

if TYPE_CHECKING:
    from anydepth.audit.answer import Account

Messages = str | Sequence[Message]


class Guard:
    """Watches the answers of a model while they are generated and lets no token out before a check that covers it.

    Args:
        model: A Transformers causal language model, or a PEFT model around one.
        tokenizer: Its tokenizer, with a chat template.
        detector: What turns a check into a score: a `LinearProbe`, a `Rethink` or a `Cascade`.
        **options: Fields of `GuardConfig`: `policy` (default: the probe's calibrated one), `schedule`, `release`,
            `on_error`, `refusal`, `prefill`.

    Raises:
        ProbeMismatch: The probe belongs to another model, template, header or site.
        CapabilityError: The detector needs what the backend cannot do.
        UnsupportedModel: A trial check failed on this model; the message has the reason (`Backend.prove`).
        ConfigError: An option has a value it cannot have.
    """

    def __init__(self, model: Any, tokenizer: Any, detector: Detector, **options: Any) -> None:
        from anydepth.backends.transformers import TransformersBackend

        self._setup(TransformersBackend(model, tokenizer), detector, options)

    def _setup(self, backend: Reader, detector: Detector, options: Mapping[str, Any]) -> None:
        self.config = guard_config(options, with_own_policy(GuardConfig(), detector))
        detector.bind(backend)
        for part in detector_parts(detector):
            reads = part.reads if declares_reads(part) else ()
            prove_checks(backend, part.needs, reads, embeddings_of(part))
        self.backend, self.detector = backend, detector

    @classmethod
    def from_backend(cls, backend: Reader, detector: Detector, **options: Any) -> "Guard":
        """A guard over a backend that is already loaded."""
        guard = cls.__new__(cls)
        guard._setup(backend, detector, options)
        return guard

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        probe: LinearProbe | str | Path | None = None,
        detector: Detector | None = None,
        **options: Any,
    ) -> "Guard":
        """Load a model by hub id or folder and guard it.

        Args:
            model: Hub id or folder.
            probe: A `LinearProbe` or the path of its artefact.
            detector: Any detector, instead of a probe. Without either, the probe that this package ships for the model.
            **options: Fields of `GuardConfig`; the others say how to load: `dtype`, `device`, `revision`, `adapter`,
                `base_weights`, `ride`, `template_kwargs` and what `from_pretrained` of Transformers takes.

        Raises:
            ConfigError: No detector was given and none is shipped for this model, or two were; or an option has a value
                that it cannot have.
            ModelError: The model cannot be loaded, or a check does not work on it.
        """
        if probe is not None and detector is not None:
            raise ConfigError("both probe and detector were given; a guard has one: combine them with Cascade")
        if isinstance(probe, str | Path):
            probe = LinearProbe.load(probe)  # before the model: a bad path is found in milliseconds
        from anydepth.backends.transformers import load

        own = {name: options.pop(name) for name in OPTIONS if name in options}
        guard_config(own)  # a wrong value is found before the model is loaded
        backend = load(model, **options)
        return cls.from_backend(backend, probe or detector or shipped_probe(backend), **own)

    @property
    def template(self) -> ChatTemplate:
        """The chat template of the model."""
        return self.backend.template

    @property
    def policy(self) -> Policy:
        """The policy: when the scores of an answer halt it."""
        return self.config.policy

    @property
    def schedule(self) -> Schedule:
        """The schedule: at which depths an answer is checked."""
        return self.config.schedule

    def with_options(self, **options: Any) -> "Guard":
        """Return the same model and detector with other options of `GuardConfig`; None leaves an option as it is.

        Raises:
            ConfigError: There is no such option, or it cannot have the value.
        """
        return self.with_config(guard_config(options, self.config))

    def with_config(self, config: GuardConfig) -> "Guard":
        """Return the same model and detector under `config`."""
        guard = type(self).__new__(type(self))
        guard.backend, guard.detector, guard.config = self.backend, self.detector, config
        return guard

    # -- answers -------------------------------------------------------------------------------------------------------

    def stream(
        self,
        messages: Messages,
        *,
        prefill: str | None = None,
        tools: Sequence[Any] | None = None,
        max_new_tokens: int = 512,
        seed: int | None = None,
        **generation: Any,
    ) -> Iterator[Event]:
        """Answer one conversation; yields `Checked`, `Released`, at most one `Halted`, and `Finished` last.

        Args:
            messages: A user message, or the conversation; a last message of the assistant is a prefill.
            prefill: Start of the answer that the client forces.
            tools: Tool descriptions for the chat template.
            max_new_tokens: Tokens to generate at most.
            seed: Seed of this answer's sampling; None uses torch's global random state, as `generate` does.
            **generation: Sampling options of Transformers' `generate`: `do_sample`, `temperature`, `stop_strings`, ...
                With llguidance installed also `grammar`: a JSON Schema (a mapping) that the answer keeps, or a grammar
                in llguidance's variant of Lark (text).

        Raises:
            PromptError: The messages are empty or malformed, or do not fit the model's context.
            ConfigError: A sampling option does not exist or cannot be guarded.
            UnsupportedModel: A sampling option needs something that this model cannot do.
        """
        prompt = self.template.prompt(messages, tools=tools, prefill=prefill)
        with closing(self.turns([prompt], max_new_tokens=max_new_tokens, seed=seed, **generation)) as turns:
            for turn in turns:
                for _, event in turn:
                    yield event

    def turns(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 512,
        seed: int | None = None,
        accounts: "Sequence[Account | None] | None" = None,
        on_check: OnCheck = unobserved,
        whole: bool = False,
        tells_waits: bool = False,
        call_ends: CallEnds | None = None,
        has_calls: HasCalls | None = None,
        **generation: Any,
    ) -> Generator[list[tuple[int, Any]], None, None]:
        """Answer prompts in one session, one use of the model per item: between two items others may use the model.

        Args:
            prompts: One per row.
            max_new_tokens: Tokens to generate at most, per answer.
            seed: Seed of the sampling; None uses torch's global random state.
            accounts: Write the records of each answer before its tokens leave; None writes none.
            on_check: Called with the seconds that each check took.
            whole: Whether each answer leaves as a whole, once it has ended without a halt, whatever `release` is.
            tells_waits: Whether to tell where the next item would wait for a check that is made outside.
            call_ends: Gates the tool calls of each answer, which the caller keeps until it has ended without a halt:
                tells after how many of a whole answer's tokens each of its calls ends. None gates none.
            has_calls: Tells whether an answer has calls that the caller keeps; where there are accounts, these tell it.
            **generation: Sampling options of Transformers' `generate`.

        Yields:
            What came of one use of the model, as `(row, event)` in order; it may be nothing. With `tells_waits` the
            last one is a `Waiting` where the next item would wait for what it names.
        """
        options = {"max_new_tokens": max_new_tokens, "whole": whole, "gated": call_ends is not None}
        plans = [self.config.plan(prefill=prompt.prefill, **options) for prompt in prompts]
        if call_ends is not None:
            require_halting(self.config.policy)
        session = require_sessions(self.backend).open(prompts, max_new_tokens=max_new_tokens, seed=seed, **generation)
        try:
            for row, prompt in enumerate(prompts):
                if prompt.prefill:
                    inside = InsideReading(self.backend, self.detector, self.config, prompt)
                    with closing(inside.turns()) as reading:
                        for item in reading:
                            yield list(item) if tells_waits else []
                    share_time(on_check, inside.seconds, len(inside.scores))
                    plans[row] = replace(plans[row], inside=inside.scores)
            usage = getattr(session, "usage", lambda row: None)  # sessions over an API have it
            calls = has_calls or call_ends  # an answer whose call ends somewhere has calls
            writers = [
                AnswerWriter(prompt, self.config.refusal, self.backend.decode_text, account, partial(usage, row), calls)
                for row, (prompt, account) in enumerate(zip(prompts, accounts or [None] * len(prompts), strict=True))
            ]
            hand_out = handed_out(self.backend, self.detector, prompts, writers, call_ends)
            driver = Driver([guarded(plan) for plan in plans], session, self.detector, hand_out, on_check)
            while not driver.over:
                driver.turn()
                told: list[tuple[int, Any]] = [(r, event) for r, each in enumerate(writers) for event in each.take()]
                yield [*told, (0, waits)] if tells_waits and (waits := driver.waits) is not None else told
        finally:
            session.close()

    async def astream(self, messages: Messages, **options: Any) -> AsyncIterator[Event]:
        """`stream` for asyncio: the model runs in a thread, one step at a time."""
        events, turn = self.stream(messages, **options), threading.Lock()

        def step(act: Callable[..., Any], *arguments: Any) -> Any:
            with turn:  # a step whose await was cancelled goes on in its thread; the session is closed after it
                return act(*arguments)

        try:
            while (event := await asyncio.to_thread(step, next, events, None)) is not None:
                yield event
        finally:
            close = events.close  # pyright: ignore[reportAttributeAccessIssue]
            await asyncio.shield(asyncio.to_thread(step, close))

    @overload  # a str is a sequence of str as well; the first overload wins
    def generate(self, messages: Messages, **options: Any) -> Answer: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def generate(self, messages: Sequence[Messages], **options: Any) -> list[Answer]: ...
    def generate(
        self,
        messages: Any,
        *,
        prefill: str | Sequence[str | None] | None = None,
        tools: Sequence[Any] | None = None,
        max_new_tokens: int = 512,
        seed: int | None = None,
        **generation: Any,
    ) -> Answer | list[Answer]:
        """Answer one conversation, or a batch of them in one session.

        `messages` is one user message, one conversation, or a list of either. `prefill` is one text for all, or one per
        conversation; ConfigError if their numbers differ. The other arguments and errors are those of `stream`.
        """
        several = isinstance(messages, Sequence) and not isinstance(messages, str)
        single = not several or (len(messages) > 0 and isinstance(messages[0], Mapping))
        batch = [messages] if single else list(messages)
        prefills = [prefill] * len(batch) if prefill is None or isinstance(prefill, str) else list(prefill)
        if len(prefills) != len(batch):
            raise ConfigError(f"{len(prefills)} prefills were given for {len(batch)} conversations; give one for each")
        prompts = [self.template.prompt(m, tools=tools, prefill=p) for m, p in zip(batch, prefills, strict=True)]
        turns = self.turns(prompts, max_new_tokens=max_new_tokens, seed=seed, **generation)
        answers = {row: event.answer for turn in turns for row, event in turn if isinstance(event, Finished)}
        ordered = [answers[row] for row in range(len(prompts))]
        return ordered[0] if single else ordered

    def unguarded(
        self,
        messages: Messages,
        *,
        prefill: str | None = None,
        max_new_tokens: int = 512,
        seed: int | None = None,
        **generation: Any,
    ) -> str:
        """The text that the bare model writes, for comparison: one plain `generate` call, nothing checked."""
        prompt = self.template.prompt(messages, prefill=prefill)
        (ids,) = require_sessions(self.backend).unguarded(
            [prompt], max_new_tokens=max_new_tokens, seed=seed, **generation
        )
        stream = TextStream(self.backend.decode_text, prompt.ids[prompt.start :])
        return stream.push(ids) + stream.flush()

    def gate(self, messages: Messages, tool_call: Mapping[str, Any], **options: Any) -> GateVerdict:
        """Say whether a proposed tool call may be run: the Safety Tokens are read after the call, its turn closed.

        Args:
            messages: A user message, or the conversation; a last message of the assistant is the turn of the call, and
                its text stands beside the call.
            tool_call: The call in OpenAI's form, or `{"name": ..., "arguments": ...}`; arguments are an object or its
                JSON text.
            **options: `tools`, `format` and `control`; see `gate_many`.

        Raises:
            PromptError: The call has no name, or arguments that are no JSON object; the messages cannot be answered; or
                the chat template writes no tool calls and no `format` is given.
            ConfigError: One reading can never halt under the policy, or there is no such format.
        """
        return self.gate_many([(messages, tool_call)], **options)[0]

    def gate_many(
        self,
        conversations: Sequence[tuple[Messages, Mapping[str, Any]]],
        *,
        tools: Sequence[Any] | None = None,
        format: str = "auto",
        control: bool = True,
    ) -> list[GateVerdict]:
        """Gate several conversations, each with its proposed call, in one batch; see `gate`.

        Args:
            conversations: Messages and call of each.
            tools: Tool descriptions for the chat template.
            format: How calls are written where the chat template writes none: a row of `toolcalls.toml`, e.g. `hermes`.
                `auto` looks for one by the template's text, `none` takes none.
            control: Whether a check is made before the call as well, which decides nothing.
        """
        template = getattr(getattr(self.template, "tokenizer", None), "chat_template", None)
        written = choose_format(format, str(template or ""))
        calls = [self.template.call_prompt(each, call, tools=tools, written=written) for each, call in conversations]
        return gate_calls(self.backend, self.detector, self.config, calls, control=control)

    def scan(self, messages: Messages, answer: str) -> ScanResult:
        """Check a finished answer at every scheduled depth, in one packed pass where the model allows it.

        Raises:
            PromptError: The messages or the answer are empty or malformed, or do not fit the model's context.
        """
        return self.scan_many([(messages, answer)])[0]

    def scan_many(self, conversations: Sequence[tuple[Messages, str]]) -> list[ScanResult]:
        """Scan several conversations and their answers in one batch, which pads the shorter ones; see `scan`."""
        prompts = [self.template.prompt(messages, prefill=answer) for messages, answer in conversations]
        return scan_answers(self.backend, self.detector, self.config, prompts)
