"""List what this package replaces in other people's libraries, and refuse a library that is not what it was tested on.

docs/vllm.md has the same list for people. Nothing else in the package replaces a library's code; the attention that
`backends/transformers/cpu/shared_heads.py` registers goes through Transformers' own `AttentionInterface`.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from anydepth.errors import ConfigError
from anydepth.extras import require


@dataclass(frozen=True, slots=True)
class Patch:
    """One replacement in a library.

    Attributes:
        what: What is replaced, and by what.
        why: What the library has no other way for.
        module: Module of the library.
        members: Method in the module, `Class.method` -> names of its parameters where it was tested, spaces between.
        tested: Version of the library that the replacement was last tested on.
        extra: The extra of this package that installs the library.
    """

    what: str
    why: str
    module: str
    members: Mapping[str, str]
    tested: str
    extra: str = "vllm"

    def check(self) -> Any:
        """The module, with all members in it as they were tested.

        Raises:
            MissingExtra: The library is not installed.
            ConfigError: A member is not there or has other parameters; the message names it and the remedy.
        """
        module = require(self.module, extra=self.extra)
        for name, parameters in self.members.items():
            try:
                member: Any = reduce(getattr, name.split("."), module)
            except AttributeError:
                raise self._refused(f"{self.module} has no {name}") from None
            found = list(inspect.signature(member).parameters)
            if found != parameters.split():
                raise self._refused(f"{self.module}.{name} takes {', '.join(found)}")
        return module

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Set attribute `name` of `owner`, a class of the library or an instance of one; `check` comes first."""
        setattr(owner, name, value)

    def _refused(self, found: str) -> ConfigError:
        library = self.module.partition(".")[0]
        here = getattr(require(library, extra=self.extra), "__version__", "of an unknown version")
        return ConfigError(
            f"{found}, which anydepth replaces ({self.what}); {library} here is {here}, tested was {self.tested}; run: "
            f"pip install '{library}=={self.tested}', or use a newer anydepth"
        )


ENGINE_ARGUMENTS = Patch(
    what="a wrapper that fills in the guard's options",
    why="vLLM has no hook between its command line and its configuration",
    module="vllm.engine.arg_utils",
    members={"EngineArgs.create_engine_config": "self usage_context headless"},
    tested="0.32.0",
)
OUTPUTS = Patch(
    what="a wrapper that notes the report of each answer for the front end",
    why="vLLM's streams, and its responses with several answers, have no place for the report of each",
    module="vllm.v1.engine.output_processor",
    members={
        "OutputProcessor.process_outputs": (
            "self engine_core_outputs engine_core_timestamp iteration_stats weight_version"
        )
    },
    tested="0.32.0",
)
MODEL_RUNNER = Patch(
    what="the class of the worker's model runner, by one that reads hidden states",
    why="vLLM has no setting for the class of its model runner",
    module="vllm.v1.worker.gpu_model_runner",
    members={
        "GPUModelRunner._setup_eagle3_aux_hidden_state_outputs": "self",
        "GPUModelRunner.execute_model": "self scheduler_output intermediate_tensors",
        "GPUModelRunner._prepare_inputs": "self scheduler_output num_scheduled_tokens",
        "GPUModelRunner._prepare_input_ids": (
            "self scheduler_output num_reqs total_num_scheduled_tokens cu_num_tokens"
        ),
        "GPUModelRunner.sample_tokens": "self grammar_output",
    },
    tested="0.32.0",
)
SECOND_MODEL_RUNNER = Patch(
    what="the class of the worker's second model runner, by one that reads hidden states",
    why="vLLM has no setting for the class of its model runner",
    module="vllm.v1.worker.gpu.model_runner",
    members={
        "GPUModelRunner.load_model": "self load_dummy_weights args model kwargs",
        "GPUModelRunner.execute_model": (
            "self scheduler_output intermediate_tensors dummy_run skip_attn_for_dummy_run is_profile context_len "
            "valid_dummy_state_slots randomize_inputs"
        ),
        "GPUModelRunner.prepare_inputs": "self scheduler_output batch_req_state batch_desc num_active_loras",
        "GPUModelRunner.sample": "self hidden_states input_batch grammar_output",
        "GPUModelRunner.sample_tokens": "self grammar_output",
    },
    tested="0.32.0",
)
VLLM_LINEAR = Patch(
    what="`forward` of the linear layers behind the last site that is read, on a CPU, without the header's rows",
    why="a hook of torch cannot keep a layer from computing rows",
    module="vllm.model_executor.layers.linear",
    members={f"{kind}.forward": "self input_" for kind in ("ColumnParallelLinear", "RowParallelLinear")}
    | {"ReplicatedLinear.forward": "self x"},
    tested="0.32.0",
)
PATCHES = (ENGINE_ARGUMENTS, OUTPUTS, MODEL_RUNNER, SECOND_MODEL_RUNNER, VLLM_LINEAR)
"""All of them."""
