"""List what the plugin uses of vLLM that vLLM promises to nobody, and find it in the source of a release.

`anydepth.patches` lists what is replaced; `REPLACED` is made from it. Both lists are looked up in vLLM's source without
importing it, so that a release can be judged before it is installed: `python scripts/check_vllm.py FOLDER`.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anydepth.patches import PATCHES

CHECKED = {"0.32.0": "run on a CPU", "0.33.0": "found in its source, not run: there is no build for a CPU"}
"""Version of vLLM -> how the plugin was last checked on it."""


@dataclass(frozen=True, slots=True)
class Internal:
    """One class of vLLM and what is used of it.

    Attributes:
        module: Module of vLLM.
        owner: The class.
        calls: Method -> names of its parameters, spaces between; several such texts where releases differ.
        attributes: Attributes of instances, or fields.
        by: Module of this package that uses them.
    """

    module: str
    owner: str
    calls: dict[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    by: str


INTERNALS = (
    Internal(
        "vllm.v1.core.sched.scheduler",
        "Scheduler",
        {
            "schedule": ("self throttle_prefills",),
            "update_from_output": ("self scheduler_output model_runner_output",),
            "_update_request_with_output": ("self request new_token_ids is_stale",),
            "_get_local_prefix_cache_hit": ("self request", "self request max_cache_hit_length"),
            "_preempt_request": ("self request timestamp drop_stale_output",),
            "_enqueue_waiting_request": ("self request",),
            "add_request": ("self request",),
            "finish_requests": ("self request_ids finished_status",),
            "get_grammar_bitmask": ("self scheduler_output",),
            "has_requests": ("self",),
            "shutdown": ("self",),
        },
        ("requests", "running", "waiting", "kv_holding_waiting", "deferred_waiting", "current_step", "hash_block_size"),
        "engine/scheduler.py",
    ),
    Internal(
        "vllm.v1.core.sched.async_scheduler",
        "AsyncScheduler",
        {"_update_after_schedule": ("self scheduler_output",)},
        (),
        "engine/reading_scheduler.py",
    ),
    Internal(
        "vllm.v1.request",
        "Request",
        {},
        (
            "num_computed_tokens",
            "num_output_placeholders",
            "num_in_flight_tokens",
            "num_stale_output_tokens",
            "drop_stale_output",
            "next_decode_eligible_step",
            "spec_token_ids",
            "max_tokens",
            "block_hashes",
            "_output_token_ids",
            "_all_token_ids",
            "_block_hasher",
        ),
        "engine/guarded_request.py",
    ),
    Internal("vllm.v1.worker.gpu_input_batch", "CachedRequestState", {}, ("prev_num_draft_len",), "worker/runner.py"),
    Internal(
        "vllm.v1.worker.gpu_model_runner",
        "ExecuteModelState",
        {},
        ("scheduler_output", "logits", "aux_hidden_states"),
        "worker/runner.py",
    ),
    Internal(
        "vllm.v1.worker.gpu.model_runner",
        "ExecuteModelState",
        {},
        ("input_batch", "hidden_states", "aux_hidden_states"),
        "worker/second_runner.py",
    ),
    Internal(
        "vllm.v1.worker.gpu.input_batch",
        "InputBatch",
        {},
        ("req_ids", "num_reqs", "num_scheduled_tokens", "query_start_loc_np", "input_ids", "logits_indices"),
        "worker/second_runner.py",
    ),
    Internal(
        "vllm.v1.worker.gpu.states",
        "RequestState",
        {},
        ("req_id_to_index", "all_token_ids", "num_computed_tokens", "num_computed_tokens_np"),
        "worker/second_runner.py",
    ),
    Internal("vllm.v1.outputs", "AsyncModelRunnerOutput", {"get_output": ("self",)}, (), "worker/later_output.py"),
    Internal(
        "vllm.v1.worker.gpu_worker",
        "Worker",
        {"init_device": ("self",), "compile_or_warm_up_model": ("self",), "execute_dummy_batch": ("self",)},
        ("model_runner",),
        "worker/worker.py",
    ),
    Internal(
        "vllm.model_executor.layers.vocab_parallel_embedding",
        "VocabParallelEmbedding",
        {"forward": ("self input_",)},
        (),
        "worker/fed_rows.py",
    ),
)
"""All that is used and not replaced."""


def _replaced() -> Iterator[Internal]:
    for patch in PATCHES:
        calls: dict[str, dict[str, tuple[str, ...]]] = {}
        for member, parameters in patch.members.items():
            owner, _, name = member.partition(".")
            calls.setdefault(owner, {})[name] = (parameters,)
        yield from (Internal(patch.module, owner, each, (), "patches.py") for owner, each in calls.items())


REPLACED = tuple(each for each in _replaced() if each.module.startswith("vllm."))
"""All that `anydepth.patches` replaces in vLLM."""


def missing(folder: Path) -> list[str]:
    """What a release of vLLM lacks of what is used or replaced, a sentence each; empty if it has everything.

    Args:
        folder: The package `vllm`, installed or unpacked from a wheel.
    """
    found = []
    for each in (*INTERNALS, *REPLACED):
        methods, attributes = _members(folder, each.module, each.owner)
        found += _unlike(f"{each.module}.{each.owner}", methods, each.calls)
        found += [f"{each.module}.{each.owner} has no {name}" for name in each.attributes if name not in attributes]
    return found


def table() -> str:
    """The internals as the rows of a table in Markdown, as docs/vllm.md has it."""
    rows = ["| class of vLLM | what is used | by |", "|---|---|---|"]
    for each in INTERNALS:
        names = ", ".join(f"`{name}`" for name in (*each.calls, *each.attributes))
        rows.append(f"| `{each.module}.{each.owner}` | {names} | `{each.by}` |")
    return "\n".join(rows)


def _unlike(owner: str, found: dict[str, str], wanted: dict[str, tuple[str, ...]]) -> Iterator[str]:
    for name, parameters in wanted.items():
        if name not in found:
            yield f"{owner} has no {name}"
        elif found[name] not in parameters:
            yield f"{owner}.{name} takes {found[name]}, not {' or '.join(parameters)}"


def _members(folder: Path, module: str, owner: str) -> tuple[dict[str, str], set[str]]:
    """Method -> names of its parameters, and the names that a class or its methods assign to; empty without it."""
    path = folder.joinpath(*module.split(".")[1:]).with_suffix(".py")
    if not path.exists():
        return {}, set()
    nodes = ast.parse(path.read_text("utf-8")).body
    found = next((node for node in nodes if isinstance(node, ast.ClassDef) and node.name == owner), None)
    if found is None:
        return {}, set()
    methods = {node.name: _parameters(node.args) for node in found.body if isinstance(node, ast.FunctionDef)}
    names = {
        node.target.id for node in found.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    names |= {
        node.attr for node in ast.walk(found) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    return methods, names


def _parameters(given: ast.arguments) -> str:
    several, options = [given.vararg] if given.vararg else [], [given.kwarg] if given.kwarg else []
    every = [*given.posonlyargs, *given.args, *several, *given.kwonlyargs, *options]
    return " ".join(each.arg for each in every)
