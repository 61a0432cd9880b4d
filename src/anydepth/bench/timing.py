"""Time a decode step, a check, a guarded answer and a scan."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from anydepth.config import GuardConfig
from anydepth.detectors import Detector, LinearProbe, declares_reads
from anydepth.errors import ConfigError
from anydepth.guard import Guard
from anydepth.policy import Cusum
from anydepth.scan import scan_answer
from anydepth.schedule import Every, scheduled_depths
from anydepth.templates.template import Prompt

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend

FILLER = "The kettle is filled with fresh water, and the leaves are left in the pot for three minutes. "
PACKED_TOKENS, PACKED_DEPTHS = 600, 23
PACKED_LENGTH = PACKED_TOKENS + 40
STEPS_A_SAMPLE = 16
QUESTION_TOKENS = 64
"""Length of the conversation before an answer whose throughput is measured."""


def check_times(
    backend: "TransformersBackend",
    detectors: Mapping[str, Detector],
    context: int,
    samples: int,
    *,
    steps: int = STEPS_A_SAMPLE,
    enough: Callable[[], bool] = lambda: False,
) -> tuple[int, dict[str, list[float]]]:
    """Seconds of a decode step and of a check, measured in turn `samples` times, at about `context` tokens.

    Args:
        backend: The model.
        detectors: What checks, bound to the model, by name.
        context: Length of the conversation; less where the model's context has no room for the steps.
        samples: Number of samples.
        steps: Decode steps per sample.
        enough: Called after each sample; true ends the measurement early.

    Returns:
        The length in tokens, and per sample one number of `step`, of each detector's check by its name and, of a probe,
        of `NAME, naive`: its check without any of our savings.
    """
    from anydepth.backends.transformers.naive import naive_state

    spare = room(samples, steps)
    taken = spare + len(backend.header.ids) + len(backend.header.answer_ids)
    prompt = filled(backend, min(context, (backend.context_length or context + taken) - taken))
    session = backend.open([prompt], max_new_tokens=spare, **endless(backend))
    session.decode(steps)
    for each in detectors.values():  # not timed: a mean that is first read here runs the whole text once more
        each.check(session, [session.current(0)])
    times: dict[str, list[float]] = {"step": [], **{name: [] for name in detectors}}
    for _ in range(samples):
        times["step"].append(seconds(lambda: session.decode(steps)) / steps)
        for name, each in detectors.items():
            times[name].append(seconds(lambda d=each: d.check(session, [session.current(0)])))
        if enough():
            break
    # Afterwards: a naive check copies and frees the whole cache, which slows down whatever comes next.
    for name, each in detectors.items():
        if declares_reads(each):
            naive = times[f"{name}, naive"] = []
            while len(naive) < len(times["step"]) and not (naive and enough()):
                naive.append(seconds(lambda site=each.reads[-1].site: naive_state(session, site)))
    session.close()
    return len(prompt.ids), times


def room(samples: int, steps: int = STEPS_A_SAMPLE) -> int:
    """How many tokens the decode steps of so many samples take."""
    return steps * (samples + 1) + 8


def riding_times(
    backend: "TransformersBackend", probe: LinearProbe, context: int, samples: int, *, enough: Callable[[], bool]
) -> tuple[list[float], list[float]]:
    """Seconds of a decode step, and of one with a check that rides in it, in turn, at about `context` tokens.

    Args:
        backend: The model; checks can ride in its decode steps.
        probe: What checks.
        context: Length of the conversation.
        samples: Number of samples.
        enough: Called after each sample; true ends the measurement early.
    """
    prompt = filled(backend, context)
    with _way(backend, "always"):
        session = backend.open([prompt], max_new_tokens=room(samples, 2), **endless(backend))

    def ridden() -> None:
        probe.check(session, [session.current(0)])
        session.decode(1)

    session.decode(2)
    ridden()
    steps, rides = [], []
    while len(steps) < samples and not (steps and enough()):
        steps.append(seconds(lambda: session.decode(1)))
        rides.append(seconds(ridden))
    session.close()
    return steps, rides


def throughput(backend: "TransformersBackend", detector: Detector, interval: int, tokens: int) -> float:
    """Guarded over unguarded tokens per second, with the checks on forks; see `throughputs`."""
    (found,) = throughputs(backend, detector, interval, tokens, ("never",))
    return found


def throughputs(
    backend: "TransformersBackend", detector: Detector, interval: int, tokens: int, ways: Sequence[str]
) -> list[float]:
    """Guarded over unguarded tokens per second, measured one after the other, of an answer of `tokens` tokens.

    One number for each of `ways`, as `load` takes `ride`: checks on forks (`never`), or in the decode steps (`always`).
    """
    prompt = filled(backend, QUESTION_TOKENS)
    plain = seconds(lambda: backend.unguarded([prompt], max_new_tokens=tokens, **endless(backend)))
    guard = Guard.from_backend(backend, detector, policy=Cusum(threshold=1e9), schedule=Every(interval))
    found = []
    for way in ways:
        with _way(backend, way):
            found.append(plain / seconds(lambda: guarded_answer(guard, prompt, tokens)))
    return found


@contextmanager
def _way(backend: "TransformersBackend", ride: str) -> Iterator[None]:
    """The backend with another `ride` for the answers that are opened meanwhile."""
    before, backend.ride = backend.ride, ride
    try:
        yield
    finally:
        backend.ride = before


def guarded_answer(guard: Guard, prompt: Prompt, tokens: int) -> None:
    """Write an answer of exactly `tokens` tokens; ConfigError if it is of another length, e.g. since it was halted."""
    turns = guard.turns([prompt], max_new_tokens=tokens, **endless(guard.backend))  # pyright: ignore
    generated = sum(len(getattr(event, "token_ids", ())) for turn in turns for _, event in turn)
    if generated != tokens:
        raise ConfigError(f"the guarded answer has {generated} tokens, not {tokens}; the comparison would be unfair")


def packed_speedups(backend: "TransformersBackend", probe: LinearProbe, rounds: int) -> tuple[list[float], list[float]]:
    """How many times faster the packed scan is than forking with the whole model, and than anydepth's own forks.

    One number per round each, measured in turn.
    """
    from anydepth.backends.transformers.naive import naive_scan

    prompt = filled(backend, PACKED_LENGTH, answer=PACKED_TOKENS)
    config = GuardConfig(schedule=Every(-(-PACKED_TOKENS // (PACKED_DEPTHS - 1)), doubling=False))
    depths = scheduled_depths(config.schedule, PACKED_TOKENS)
    question, answer = Prompt(prompt.ids[: prompt.start]), prompt.ids[prompt.start :]
    naive, own = [], []
    for _ in range(rounds):
        packed = seconds(lambda: scan_answer(backend, probe, config, prompt))
        own.append(seconds(lambda: scan_answer(backend, probe, config, prompt, packed=False)) / packed)
        naive.append(seconds(lambda: naive_scan(backend, question, answer, depths, probe.reads[-1].site)) / packed)
    return naive, own


def filled(backend: "TransformersBackend", length: int, *, answer: int | None = None) -> Prompt:
    """A conversation of `length` tokens, the last of which (`answer`, or all after the question) are a prefill."""
    start = backend.template.prompt("How is tea made?")
    filler = backend.tokenizer.encode(FILLER * 8, add_special_tokens=False)
    wanted = answer if answer is not None else max(1, length - len(start.ids))
    filled = (filler * (wanted // len(filler) + 1))[:wanted]
    return Prompt((*start.ids, *filled), prefill=wanted)


def endless(backend: "TransformersBackend") -> dict[str, Any]:
    """Options of greedy answers that never end by themselves."""
    return {"do_sample": False, "suppress_tokens": sorted(backend.end_tokens({}))}


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes, in seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
