"""Ask a guard model behind an OpenAI-compatible endpoint about an answer."""

import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from anydepth.api_keys import key_for
from anydepth.backends.conversed import Conversed
from anydepth.backends.protocol import Capability, CheckPoint, Reader, Session
from anydepth.detectors.detector import require_capabilities
from anydepth.detectors.external_forms import EndpointVerdict, form_named
from anydepth.detectors.outside import within
from anydepth.errors import AnydepthError, CapabilityError, CheckError, ConfigError, ProviderError
from anydepth.extras import require
from anydepth.prices import Prices, TokenCount
from anydepth.provider_errors import told_as_ours
from anydepth.stages import Spent, StageUse, with_stages
from anydepth.types import Score

_AT_ONCE = 16
_PAUSE, _LONGEST_PAUSE = 0.5, 8.0
"""Seconds before the first retry, and at most; each pause is twice as long as the one before."""
_KEPT = 512
_TRIAL = Conversed(({"role": "user", "content": "What is the capital of France?"},), "The capital of France is Paris.")


class ExternalGuard:
    """Scores a check by the verdict of another model, which reads the conversation and the answer so far.

    It is the last stage of a `Cascade` as a rule: each check is a request, and takes as long as the endpoint does. The
    score is 1 for `unsafe` or a flagged text, else 0. A request that fails, that gets no verdict or that takes too long
    is a failed check. The text leaves this process.

    A check of a text that has its verdict already, as behind an end of turn, makes no request.

    Args:
        url: The endpoint, its /v1 included.
        model: Name of the model there.
        form: `question` (a chat model is asked in words), `turns` (a guard model whose chat template holds the
            question, e.g. Llama Guard), `moderations` (the endpoint `/moderations`), or `auto`: `turns` for models
            that `asked.toml` knows, else `question`.
        question: Your own message for `question`, `{conversation}` and `{answer}` in it, and `{mark}` as often as you
            like: a mark that no answer can know. It has to ask for one word, safe or unsafe.
        key_env: Environment variable with the key; by default that of api.openai.com, and none for other hosts.
        timeout: Seconds after which a check fails, retries and waiting for a free connection included.
        retries: Times that a failed request is made again.
        request: Further fields of every request, e.g. `{"reasoning_effort": "none"}`.
        prices: What the endpoint charges, for the account.

    Raises:
        ConfigError: An option has a value that it cannot have, or the key is missing.
        MissingExtra: The `openai` client is not installed.
    """

    name = "external"
    needs = frozenset({Capability.CONVERSATION})

    def __init__(
        self,
        url: str,
        model: str,
        *,
        form: str = "auto",
        question: str | None = None,
        key_env: str | None = None,
        timeout: float = 10.0,
        retries: int = 1,
        request: Mapping[str, Any] | None = None,
        prices: Prices | None = None,
    ) -> None:
        host = urlsplit(url).hostname if isinstance(url, str) and url.startswith(("http://", "https://")) else None
        if not host:
            raise ConfigError(f"the address of the external guard is {url!r}; write http:// or https://, host and path")
        if not isinstance(model, str) or not model:
            raise ConfigError(f"the model of the external guard is {model!r}; give its name at the endpoint")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
            raise ConfigError(f"timeout is {timeout!r}; give a number of seconds above 0")
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ConfigError(f"retries is {retries!r}; give a whole number of at least 0")
        self._form = form_named(form, model, question=question, request=_free(request or {}))
        self._sdk = require("openai", extra="judge", at_least=(2, 0))
        self._client = self._sdk.OpenAI(
            base_url=url,
            api_key=key_for(host, key_env, "key_env"),
            timeout=timeout,
            max_retries=0,  # the client's own would go on after the time limit
        )
        self._retries = retries
        self._model, self._who, self._timeout, self._prices = model, f"{model} at {host}", timeout, prices
        self._pool = ThreadPoolExecutor(_AT_ONCE, "anydepth-external")
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Score] = OrderedDict()
        self._tried = False

    def bind(self, backend: Reader) -> None:
        """Make one trial request, about a harmless exchange; once.

        Raises:
            CapabilityError: The backend does not give the conversation as text, or the endpoint gives no verdict.
        """
        require_capabilities(self, backend)
        if self._tried:
            return
        try:
            self._later(_TRIAL).result()
        except AnydepthError as error:
            raise CapabilityError(f"the trial of the external guard failed: {error}") from error
        self._tried = True

    def check(self, session: Session, points: Sequence[CheckPoint]) -> list[Score]:
        """Score each point; CheckError or ProviderError if one has no verdict."""
        return [begun.result() for begun in self.begin(session, points)]

    def begin(self, session: Session, points: Sequence[CheckPoint]) -> list[Future[Score]]:
        """Ask about each point, all at once; see `OutsideDetector.begin`."""
        return [self._later(about) for about in session.conversations(points)] if points else []

    def ask(self, about: Conversed) -> Score:
        """The verdict on a conversation; waits for it.

        Raises:
            CheckError: The reply has no verdict.
            ProviderError: The request failed.
        """
        key = _digest(about)
        with self._lock:
            known = self._known.get(key)
        if known is not None:
            return known
        try:
            found = self._asked(about)
        except Exception as error:
            with_stages(error, [_unpaid(self.name, 0.0)])
            raise
        self._keep(key, found.score)
        return replace(found.score, spent=self._spent(found.count))

    def _asked(self, about: Conversed) -> EndpointVerdict:
        """The reply to a request, or to one of its retries; nothing is asked once the time limit is over."""
        end = time.monotonic() + self._timeout
        for retry in range(self._retries):
            try:
                return self._asked_once(about, end)
            except ProviderError as error:
                if not _passing(error):
                    raise
                pause = getattr(error, "retry_after", None) or min(_PAUSE * 2**retry, _LONGEST_PAUSE)
                if time.monotonic() + pause >= end:
                    raise self._late() from error
                time.sleep(pause)
        return self._asked_once(about, end)

    def _asked_once(self, about: Conversed, end: float) -> EndpointVerdict:
        client = self._client.with_options(timeout=max(end - time.monotonic(), 0.001))
        try:
            with told_as_ours(self._who, self._sdk):
                return self._form.ask(client, self._model, about)
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            raise CheckError(
                f"the reply of {self._who} is not of OpenAI's form ({type(error).__name__}); look at the "
                "address, which ends with /v1 as a rule"
            ) from error

    def _spent(self, count: TokenCount | None) -> Spent:
        if count is None:
            return Spent(requests=1, requests_without_usage=1)
        cost = None if self._prices is None else self._prices.cost(count.prompt, count.completion)
        return Spent(0, 1, 0, count.prompt, count.completion, cost)

    def _later(self, about: Conversed) -> Future[Score]:
        return within(self._timeout, lambda: self.ask(about), self._late, self._pool)

    def _late(self) -> Exception:
        late = CheckError(f"{self._who} gave no verdict within {self._timeout:g} s")
        return with_stages(late, [_unpaid(self.name, self._timeout)])

    def _keep(self, key: str, score: Score) -> None:
        with self._lock:
            self._known[key] = score
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)


def _passing(error: ProviderError) -> bool:
    """Whether the same request may have a reply later, by OpenAI's own rule."""
    status = getattr(error.__cause__, "status_code", None)
    return status is None or status in (408, 409, 429) or status >= 500


def _unpaid(name: str, seconds: float) -> StageUse:
    """A request of which nothing is known but that it was made."""
    return StageUse(name, seconds, Spent(requests=1, requests_without_usage=1))


def _digest(about: Conversed) -> str:
    text = json.dumps([about.messages, about.answer], default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _free(request: Mapping[str, Any]) -> dict[str, Any]:
    own = ("model", "messages", "input", "stream", "stream_options", "n", "tools", "tool_choice")
    if taken := sorted({*request} & {*own}):
        raise ConfigError(f"request has {', '.join(taken)}, which the external guard sets itself; leave it out")
    return dict(request)
