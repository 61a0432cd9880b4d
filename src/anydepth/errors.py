"""Everything that can go wrong, as one hierarchy.

    AnydepthError
      +- ConfigError             an option has a value it cannot have (also a ValueError)
      |    +- BadRequest         a client of the server sends what cannot be answered
      +- ModelNotFound           a client of the server names a model that is not served
      +- MissingExtra            an optional dependency is not installed (also an ImportError)
      +- ModelError              a model or tokenizer cannot be loaded or used
      |    +- TemplateError      the chat template is missing, or the Safety Tokens cannot be derived from it
      |    +- UnsupportedCache   a cache layer of a kind that cannot be forked safely
      |    +- UnsupportedModel   the model's blocks, sites or sampling options do not fit
      +- PromptError             messages that cannot be answered: empty, malformed, longer than the context
      +- ProbeError              a probe artefact that cannot be read
      |    +- ProbeMismatch      a probe of another model, template, header or site
      +- CapabilityError         a detector needs what the backend cannot do
      +- CheckError              a check was made and gave no usable score (the guard fails closed)
      +- StoreError              a store of hidden states cannot be read, written or used for this
      +- RecordError             one record of an input file is unusable
      +- JudgeError              a judge gave no usable judgement of an answer
      +- ProviderError           an API failed, or answered with what cannot be guarded

Every message names the thing, the value it has and what to do about it.
"""

__all__ = [
    "AnydepthError",
    "CapabilityError",
    "CheckError",
    "ConfigError",
    "JudgeError",
    "MissingExtra",
    "ModelError",
    "ProbeError",
    "ProbeMismatch",
    "PromptError",
    "ProviderError",
    "RecordError",
    "StoreError",
    "TemplateError",
    "UnsupportedCache",
    "UnsupportedModel",
]


class AnydepthError(Exception):
    """Base of every error that anydepth raises on purpose."""


class ConfigError(AnydepthError, ValueError):
    """An option has a value that it cannot have."""


class MissingExtra(AnydepthError, ImportError):
    """An optional dependency is not installed."""


class ModelError(AnydepthError):
    """A model or tokenizer cannot be loaded or used."""


class TemplateError(ModelError):
    """The chat template is missing, or the Safety Tokens cannot be derived from it."""


class UnsupportedCache(ModelError):
    """A cache layer is of a kind that cannot be forked safely."""


class UnsupportedModel(ModelError):
    """The model lacks a block or site, or cannot do what a sampling option needs."""


class PromptError(AnydepthError, ValueError):
    """The messages cannot be answered: empty, malformed or longer than the context."""


class ProbeError(AnydepthError):
    """A probe artefact cannot be read."""


class ProbeMismatch(ProbeError):
    """A probe was fitted on another model, template, header or site."""


class CapabilityError(AnydepthError):
    """A detector needs what the backend cannot do."""


class CheckError(AnydepthError):
    """A check was made and gave no usable score."""


class StoreError(AnydepthError):
    """A store of hidden states cannot be read or written, or lacks the states to read."""


class RecordError(AnydepthError, ValueError):
    """One record of an input file is unusable."""


class JudgeError(AnydepthError):
    """A judge gave no usable judgement of an answer."""


class ProviderError(AnydepthError):
    """An API failed, broke off, or answered with something that cannot be guarded."""


class BadRequest(ConfigError):
    """A request that cannot be done as it is; `param` is the field to change."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


class ModelNotFound(AnydepthError):
    """The request names a model that is not served."""

    param = "model"
