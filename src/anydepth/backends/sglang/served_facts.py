"""What an SGLang server says of itself: which model it runs, and which states it gives."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anydepth.backends.protocol import ModelIdentity
from anydepth.backends.sglang.sglang_client import SglangClient
from anydepth.errors import ModelError, UnsupportedModel

FLAGS = (
    "--enable-return-aux-hidden-states --speculative-algorithm EAGLE3 --return-hidden-states-mode last "
    "--return-aux-hidden-state-layer-ids"
)
"""Options that a server must be started with; the layers follow."""


@dataclass(frozen=True, slots=True)
class ServedFacts:
    """What a server reports at `/model_info` and `/server_info`.

    Attributes:
        model_path: The hub id or folder that it was started with.
        model_type: Architecture name in the model's configuration, or None if it does not say.
        layers: The blocks whose outputs it returns, rising.
        context: Length of the longest text that it takes, in tokens, one that it generates not counted; None if it
            does not say.
        incremental: Whether each piece of a stream has the new tokens only; else all tokens so far.
        deterministic: Whether a seed decides on what is sampled.
    """

    model_path: str
    model_type: str | None
    layers: tuple[int, ...]
    context: int | None
    incremental: bool
    deterministic: bool


def ask_facts(client: SglangClient) -> ServedFacts:
    """Ask a server what it is.

    Raises:
        ModelError: It does not answer, runs a model that does not generate, or may cut texts.
        UnsupportedModel: It was not started to return states; the message has the options.
    """
    model, server = client.get("/model_info"), client.get("/server_info")
    if model.get("is_generation") is not True:
        raise ModelError(f"the SGLang server at {client.url} runs a model that does not generate; give another server")
    if server.get("allow_auto_truncate"):
        raise ModelError(
            f"the SGLang server at {client.url} cuts texts that are too long, so that a check could read a text "
            "that is not the answer's; start it without --allow-auto-truncate"
        )
    return ServedFacts(
        model_path=str(model.get("model_path")),
        model_type=model.get("model_type"),
        layers=_layers(client.url, server),
        context=_context(server),
        incremental=bool(server.get("incremental_streaming_output")),
        deterministic=bool(server.get("enable_deterministic_inference")),
    )


def require_model(facts: ServedFacts, url: str, identity: ModelIdentity, model_type: str, served_path: str) -> None:
    """ModelError unless the server says that it runs the model at `served_path`, of that type.

    Args:
        facts: What the server says.
        url: Where it is, for the message.
        identity: The local checkpoint.
        model_type: Of the local checkpoint's configuration, the outermost.
        served_path: What the server is expected to have been started with.
    """
    if not _same_place(facts.model_path, served_path):
        raise ModelError(
            f"the SGLang server at {url} runs {facts.model_path!r}, the checkpoint here is {served_path!r}; give the "
            f"server's model, or, if both are one checkpoint, pass served_path={facts.model_path!r}"
        )
    if facts.model_type is not None and facts.model_type != model_type:
        raise ModelError(
            f"the SGLang server at {url} runs a model of type {facts.model_type!r}, {identity.name} is of type "
            f"{model_type!r}; give the server's model"
        )


def _same_place(one: str, other: str) -> bool:
    return one == other or (Path(one).is_dir() and Path(other).is_dir() and Path(one).samefile(other))


def _layers(url: str, server: dict[str, Any]) -> tuple[int, ...]:
    ids = server.get("return_aux_hidden_state_layer_ids")
    convention = str(server.get("aux_hidden_state_capture") or "")
    if not server.get("enable_return_aux_hidden_states") or convention.lower() != "eagle3" or not ids:
        raise UnsupportedModel(
            f"the SGLang server at {url} does not return the states of named layers; start SGLang 0.5.23 or newer with "
            f"{FLAGS} N, N the block before the probe's (docs/sglang.md)"
        )
    layers = tuple(int(each) for each in ids)
    if list(layers) != sorted(layers):
        raise UnsupportedModel(
            f"the SGLang server at {url} names the layers {list(layers)}, and returns their states in another order; "
            f"start it with --return-aux-hidden-state-layer-ids {' '.join(map(str, sorted(layers)))}"
        )
    return layers


def _context(server: dict[str, Any]) -> int | None:
    """Both limits are of texts that are one token longer than what is taken."""
    limits = [server.get(name) for name in ("max_req_input_len", "context_length")]
    return min((each - 1 for each in limits if isinstance(each, int)), default=None)
