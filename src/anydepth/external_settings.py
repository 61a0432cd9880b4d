"""Read `[external]` of `guard.toml`: the guard model that a cascade asks last."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from anydepth.config import check_band
from anydepth.prices import Prices
from anydepth.settings_table import Name, PricesTable, Table, Url


def _checked_unsure(unsure: list[float]) -> list[float]:
    check_band(*unsure)
    return unsure


class ExternalTable(Table):
    """`[external]`: a guard model behind an OpenAI-compatible endpoint. Without a url there is none."""

    url: Url | None = Field(None, description="The endpoint, e.g. http://localhost:8001/v1.")
    model: Name | None = Field(None, description="Name of the model there.")
    form: Literal["auto", "question", "turns", "moderations"] = Field(
        "auto",
        description="How it is asked: question (in words), turns (a guard model's own template), moderations (the "
        "endpoint of that name), or auto: by the model's name.",
    )
    question: Name | None = Field(
        None, description="The message for form question, with {conversation} and {answer}; default: the package's own."
    )
    unsure: Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_checked_unsure)] | None = Field(
        None,
        description="Scores of the stages before at which it is asked, e.g. [0.35, 0.65]; default: around the "
        "threshold; with an upstream: wherever the look-ahead does not refuse.",
    )
    key_env: Name | None = Field(
        None, description="Environment variable with the key; default: OPENAI_API_KEY for api.openai.com only."
    )
    timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        10, description="After so long a check fails, retries included."
    )
    retries: Annotated[int, Field(ge=0, le=10)] = Field(1, description="Times that a failed request is made again.")
    request: dict[str, Any] = Field(
        {}, description='Further fields of every request, e.g. {reasoning_effort = "none"}.'
    )
    prices: PricesTable | None = Field(None, description="E.g. {prompt = 0.1, completion = 0.1}, per million tokens.")

    @model_validator(mode="after")
    def _is_whole(self) -> "ExternalTable":
        if (self.url is None) != (self.model is None):
            raise ValueError("url and model go together; give both, or neither")
        return self

    def options(self) -> dict[str, Any] | None:
        """The arguments of an `ExternalGuard`, and `unsure`; None if there is none."""
        if self.url is None:
            return None
        own = ("url", "model", "form", "question", "unsure", "key_env", "retries", "request")
        prices = None if self.prices is None else Prices(self.prices.prompt, self.prices.completion)
        return {name: getattr(self, name) for name in own} | {"timeout": self.timeout_seconds, "prices": prices}
