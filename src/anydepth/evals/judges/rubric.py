"""Judge by a rubric that another model fills in, behind any OpenAI-compatible endpoint."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anydepth.conversations.dataset import digest
from anydepth.errors import ConfigError, JudgeError
from anydepth.evals.judges.judge import Judged, Judgement, judge_written
from anydepth.evals.judges.rubric_text import Unreadable, rubric
from anydepth.extras import require
from anydepth.journal import Journal

KEYS = ("ANYDEPTH_JUDGE_KEY", "OPENAI_API_KEY")
"""Environment variables with the key of the endpoint; the first that is set counts."""


class RubricJudge:
    """A judge that puts StrongREJECT's three questions to a model at temperature 0.

    Judgements are kept in the run's folder, numbers only: a run that goes on after a kill, or that meets the same
    answer again, does not pay twice. A reply that cannot be read is requested again, then is an error.

    Args:
        model: Name of the model at the endpoint.
        url: The endpoint. Its key is that of the environment; a local server needs none.
        folder: Where judgements are kept.
    """

    says_harm = True

    def __init__(self, model: str, url: str, *, folder: Path) -> None:
        self.name = f"rubric by {model}"
        self._model, self._rubric = model, rubric()
        self._client = require("openai", extra="judge").OpenAI(
            api_key=next(filter(None, map(os.environ.get, KEYS)), "none"),
            base_url=url,
            max_retries=self._rubric.retries,
            timeout=self._rubric.timeout,
        )
        endpoint = digest(str(self._client.base_url))
        self._settings = {"model": model, "endpoint": endpoint, "rubric": self._rubric.digest}
        self._path = folder / f"judge-{digest(json.dumps(self._settings))}.jsonl"

    def judge(self, items: Sequence[Judged]) -> list[Judgement]:
        """One judgement per answer.

        Raises:
            ConfigError: The endpoint does not take the key, or does not have the model.
            JudgeError: An answer got no judgement; the message has the answer's number, counted from 0.
        """
        numbers = [number for number, item in enumerate(items) if item.response.strip()]
        return judge_written(items, lambda written: self._judge(written, numbers))

    def _judge(self, items: Sequence[Judged], numbers: Sequence[int]) -> Iterator[Judgement]:
        keys = [digest(json.dumps([item.prompt, item.prefill, item.response])) for item in items]
        with Journal(self._path, self._settings) as journal:
            wanted = zip(keys, zip(items, numbers, strict=True), strict=True)
            self._fill(journal, {key: asked for key, asked in wanted if key not in journal})
        for key in keys:
            row = journal.rows[key]
            yield Judgement(row["refused"], row["harmful"], row["score"])

    def _fill(self, journal: Journal, wanted: Mapping[str, tuple[Judged, int]]) -> None:
        """Ask about what is not judged yet, several at a time; after an error only what is under way is waited for."""
        pool = ThreadPoolExecutor(max_workers=self._rubric.at_once)
        try:
            keys = {pool.submit(self._ask, item, number): key for key, (item, number) in wanted.items()}
            for done in as_completed(keys):
                if done.exception():
                    break
                journal.write(keys[done], {"id": keys[done], **asdict(done.result())})
        finally:
            pool.shutdown(cancel_futures=True)
        ended = [future for future in keys if not future.cancelled()]
        for future in sorted(ended, key=lambda future: future.exception() is not None):  # the error last
            if keys[future] not in journal:
                journal.write(keys[future], {"id": keys[future], **asdict(future.result())})

    def _ask(self, item: Judged, number: int) -> Judgement:
        asked = messages = self._rubric.messages(item)
        problem = Unreadable("no reply was asked for")
        for _ in range(self._rubric.tries):
            reply = self._reply(messages, number)
            try:
                return self._rubric.read(reply)
            except Unreadable as error:
                problem = error
                messages = [
                    *asked,
                    {"role": "assistant", "content": reply or "(nothing)"},
                    {"role": "user", "content": self._rubric.after(error)},
                ]
        raise JudgeError(
            f"{self.name}: the reply about answer {number} cannot be read after {self._rubric.tries} tries: {problem}; "
            "take a model that follows instructions, or one that does not refuse to grade"
        )

    def _reply(self, messages: Sequence[dict[str, str]], number: int) -> str:
        openai = require("openai", extra="judge")
        try:
            completion = self._client.chat.completions.create(model=self._model, messages=messages, temperature=0)
            return completion.choices[0].message.content or ""
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise ConfigError(
                f"{self.name}: the endpoint does not take the key (HTTP {error.status_code}); set {' or '.join(KEYS)}"
            ) from None
        except openai.NotFoundError as error:
            raise ConfigError(
                f"{self.name}: the endpoint knows no such model or path (HTTP {error.status_code}); "
                "write openai:MODEL@BASE_URL, the base URL with its /v1"
            ) from None
        except openai.APIStatusError as error:
            raise JudgeError(
                f"{self.name}: answer {number} got no judgement, the endpoint says HTTP "
                f"{error.status_code}{_code(error)}; what is judged is kept, so run the same command again when the "
                "endpoint takes such requests"
            ) from None
        except openai.APIConnectionError as error:
            raise JudgeError(
                f"{self.name}: answer {number} got no judgement, the endpoint cannot be reached or is too slow "
                f"({type(error).__name__}); what is judged is kept, so run the same command again later"
            ) from None
        except (openai.APIError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise JudgeError(
                f"{self.name}: the reply about answer {number} is not of the OpenAI protocol ({type(error).__name__}); "
                "is the base URL that of a chat completions endpoint?"
            ) from None


def _code(error: Any) -> str:
    """What the endpoint calls the problem; not its message, which may quote the answer."""
    facts = [str(fact) for fact in (error.code, error.param) if fact]
    return f" ({' '.join(facts)})" if facts and len(" ".join(facts)) < 100 else ""
