"""Guard the answers of one model."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from anydepth.backends.protocol import Reader, Session, require_sessions
from anydepth.config import OPTIONS, GuardConfig, guard_config, with_own_policy
from anydepth.detectors import Detector, LinearProbe, declares_reads, detector_parts, find_shipped
from anydepth.driver import OnCheck, drive_paced, share_time, unobserved
from anydepth.errors import ConfigError
from anydepth.flow import Flow, Halt, Noted, Outcome, Release, guarded
from anydepth.policy import Policy
from anydepth.scan import inside_prefill, scan_answers
from anydepth.schedule import Schedule
from anydepth.templates.template import ChatTemplate, Prompt
from anydepth.text import TextStream
from anydepth.types import Answer, Checked, Event, Finished, Halted, Message, Released, ScanResult

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend

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
            backend.prove(part.needs, part.reads if declares_reads(part) else ())
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
                `base_weights`, `template_kwargs` and what `from_pretrained` of Transformers takes.

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
        """When an answer halts."""
        return self.config.policy

    @property
    def schedule(self) -> Schedule:
        """At which depths an answer is checked."""
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
        """
        prompt = self.template.prompt(messages, tools=tools, prefill=prefill)
        with closing(self.paced(prompt, max_new_tokens=max_new_tokens, seed=seed, **generation)) as events:
            for event in events:
                if event is not None:
                    yield event

    def paced(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 512,
        seed: int | None = None,
        on_check: OnCheck = unobserved,
        **generation: Any,
    ) -> Generator[Event | None, None, None]:
        """`stream` of a prompt, with a None each time before the model is used: a server serves others there.

        `on_check` is called with the seconds that each check took.
        """
        with closing(self._run([prompt], max_new_tokens, seed, generation, on_check)) as items:
            for item in items:
                yield item and item[1]

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

        `messages` is one user message, one conversation, or a list of either. `prefill` is one text for all, or one a
        conversation. The other arguments are those of `stream`.
        """
        several = isinstance(messages, Sequence) and not isinstance(messages, str)
        single = not several or (len(messages) > 0 and isinstance(messages[0], Mapping))
        batch = [messages] if single else list(messages)
        prefills = [prefill] * len(batch) if prefill is None or isinstance(prefill, str) else list(prefill)
        if len(prefills) != len(batch):
            raise ConfigError(f"{len(prefills)} prefills were given for {len(batch)} conversations; give one for each")
        prompts = [self.template.prompt(m, tools=tools, prefill=p) for m, p in zip(batch, prefills, strict=True)]
        answers: dict[int, Answer] = {}
        for item in self._run(prompts, max_new_tokens, seed, generation):
            if item is not None and isinstance(item[1], Finished):
                answers[item[0]] = item[1].answer
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

    def scan(self, messages: Messages, answer: str) -> ScanResult:
        """Check a finished answer at every scheduled depth; all depths in one packed pass where the model allows it."""
        return self.scan_many([(messages, answer)])[0]

    def scan_many(self, conversations: Sequence[tuple[Messages, str]]) -> list[ScanResult]:
        """The same for several conversations and their answers, read in one batch: of about one length, or on vLLM."""
        prompts = [self.template.prompt(messages, prefill=answer) for messages, answer in conversations]
        return scan_answers(self.backend, self.detector, self.config, prompts)

    # -- drivers -------------------------------------------------------------------------------------------------------

    def _run(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        seed: int | None,
        generation: Mapping[str, Any],
        on_check: OnCheck = unobserved,
    ) -> Generator[tuple[int, Event] | None, None, None]:
        plans = [self.config.plan(max_new_tokens=max_new_tokens, prefill=prompt.prefill) for prompt in prompts]
        session = require_sessions(self.backend).open(prompts, max_new_tokens=max_new_tokens, seed=seed, **generation)
        try:
            for row, prompt in enumerate(prompts):
                if prompt.prefill:
                    yield None
                    begin = time.perf_counter()
                    inside = inside_prefill(self.backend, self.detector, self.config, prompt)
                    share_time(on_check, time.perf_counter() - begin, len(inside))
                    plans[row] = replace(plans[row], inside=inside)
            yield from self._events(prompts, [guarded(plan) for plan in plans], session, on_check)
        finally:
            session.close()

    def _events(
        self, prompts: Sequence[Prompt], flows: Sequence[Flow], session: Session, on_check: OnCheck
    ) -> Iterator[tuple[int, Event] | None]:
        """Translate what the flows do into events with text."""
        writers = [_Writer(self.backend, prompt, self.config.refusal) for prompt in prompts]
        for item in drive_paced(flows, session, self.detector, on_check):
            if item is None:
                yield None
                continue
            row, step = item
            writer = writers[row]
            if isinstance(step, Noted):
                yield row, Checked(step.check)
            elif isinstance(step, Release):
                yield row, writer.release(step.token_ids)
            elif isinstance(step, Halt):
                yield row, Halted(step.verdict, self.config.refusal, step.withheld)
            else:
                yield from ((row, event) for event in writer.finish(step))


class _Writer:
    """The text of one answer."""

    def __init__(self, backend: Reader, prompt: Prompt, refusal: str) -> None:
        self._prompt, self._refusal = prompt, refusal
        self._stream = TextStream(backend.decode_text, prompt.ids[prompt.start :])
        self._text: list[str] = []
        self._ids: list[int] = []

    def release(self, token_ids: tuple[int, ...]) -> Released:
        text = self._stream.push(token_ids)
        self._ids.extend(token_ids)
        self._text.append(text)
        return Released(text, token_ids, self._prompt.prefill + len(self._ids))

    def finish(self, outcome: Outcome) -> Iterator[Event]:
        halted = outcome.finish_reason == "content_filter"
        # A partial character is dropped from a halted answer: the token that would complete it is withheld.
        rest = "" if halted else self._stream.flush()
        if rest:
            self._text.append(rest)
            yield Released(rest, (), self._prompt.prefill + len(self._ids))
        text = "".join(self._text)
        if halted:
            text += ("\n\n" if text.strip() else "") + self._refusal
        yield Finished(
            Answer(
                text=text,
                token_ids=tuple(self._ids),
                finish_reason=outcome.finish_reason,
                verdict=outcome.verdict,
                checks=outcome.checks,
                windows=outcome.windows,
                prompt_tokens=self._prompt.start,
                prefill_tokens=self._prompt.prefill,
                generated_tokens=outcome.generated,
            )
        )


def shipped_probe(backend: "Reader | TransformersBackend") -> LinearProbe:
    """The probe that the package ships for this model; ConfigError with the remedy if there is none."""
    probe = find_shipped(backend)
    if probe is None:
        raise ConfigError(
            f"no detector was given and no probe is shipped for {backend.identity.name}; pass probe= (fit one with "
            "`anydepth fit`), or detector=Rethink(), which needs no training"
        )
    return probe
