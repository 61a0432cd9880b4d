"""Refuse what the guard cannot keep its promise with."""

from typing import Any

from anydepth.errors import ConfigError
from anydepth.vllm.setup import Setup


def check_engine(scheduler: Any, setup: Setup) -> None:
    """Raise ConfigError for a configuration of vLLM under which a check could be missed or misread."""
    config = scheduler.vllm_config
    parallel, plan = config.parallel_config, config.scheduler_config
    refused = [
        (plan.async_scheduling, "asynchronous scheduling runs ahead of the checks; add --no-async-scheduling"),
        (config.use_v2_model_runner, "the second model runner is not supported; set VLLM_USE_V2_MODEL_RUNNER=0"),
        (config.speculative_config, "speculative decoding would verify the header; leave --speculative-config out"),
        (parallel.pipeline_parallel_size > 1, "pipeline parallelism is not supported; use tensor or data parallelism"),
        (scheduler.dcp_world_size > 1, "context parallelism is not supported; leave it out"),
        (scheduler.connector, "KV connectors fill the cache behind the guard's back; leave --kv-transfer-config out"),
        (scheduler.ec_connector, "encoder connectors are not supported; leave --ec-transfer-config out"),
        (scheduler.has_mamba_layers, "recurrent layers cannot take the header back; use the Transformers engine"),
        (scheduler.is_encoder_decoder, "encoder-decoder models have no Safety Tokens to read"),
        (config.cache_config.kv_sharing_fast_prefill, "--kv-sharing-fast-prefill skips the rows that are read"),
        (scheduler.return_sampling_mask, "sampling masks are not held back; leave --return-sampling-mask out"),
        (scheduler.aux_output_connector, "auxiliary outputs are not held back; leave them out"),
        (parallel.use_ubatching, "microbatches split the rows that are read; leave --enable-dbo out"),
    ]
    for found, why in refused:
        if found:
            raise ConfigError(f"anydepth cannot guard this engine: {why}")
    if not setup.options.collects:
        _check_budget(scheduler, len(setup.header_ids) + 2)


def _check_budget(scheduler: Any, need: int) -> None:
    """A token and its header must fit a step whole: part of a header is no check."""
    plan = scheduler.scheduler_config
    budget = min(scheduler.max_num_scheduled_tokens, plan.max_num_batched_tokens)
    if budget < need:
        raise ConfigError(
            f"anydepth cannot guard this engine: a step has room for {budget} tokens and a check needs {need}; "
            f"raise --max-num-batched-tokens to {need} or more"
        )
    threshold = plan.long_prefill_token_threshold
    if 0 < threshold < need:
        raise ConfigError(
            f"anydepth cannot guard this engine: --long-prefill-token-threshold is {threshold}, which cuts checks of "
            f"{need} tokens short; raise it"
        )
