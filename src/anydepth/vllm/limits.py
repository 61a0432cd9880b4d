"""Refuse what the guard cannot keep its promise with."""

from collections.abc import Iterator
from typing import Any

from anydepth.errors import ConfigError
from anydepth.vllm.setup import Setup


def check_engine(scheduler: Any, setup: Setup) -> None:
    """Raise ConfigError for a configuration of vLLM under which a check could be missed or misread."""
    for found, why in _limits(scheduler, setup):
        if found:
            raise ConfigError(f"anydepth cannot guard this engine: {why}")


def _limits(scheduler: Any, setup: Setup) -> Iterator[tuple[Any, str]]:
    """Each limit: whether the engine is beyond it, and what to do then."""
    config = scheduler.vllm_config
    parallel, plan = config.parallel_config, config.scheduler_config
    yield config.speculative_config, "speculative decoding would verify the header; leave --speculative-config out"
    yield parallel.pipeline_parallel_size > 1, "pipeline parallelism is not supported; use tensor or data parallelism"
    context = scheduler.dcp_world_size > 1 or parallel.prefill_context_parallel_size > 1
    yield context, "context parallelism is not supported; leave it out"
    sharded = parallel.enable_batch_sharded_sampling
    yield sharded, "batch-sharded sampling moves the rows that are sampled; leave --enable-batch-sharded-sampling out"
    yield scheduler.connector, "KV connectors fill the cache behind the guard's back; leave --kv-transfer-config out"
    yield scheduler.ec_connector, "encoder connectors are not supported; leave --ec-transfer-config out"
    yield scheduler.has_mamba_layers, "recurrent layers cannot take the header back; use the Transformers engine"
    yield scheduler.is_encoder_decoder, "encoder-decoder models have no Safety Tokens to read"
    yield config.cache_config.kv_sharing_fast_prefill, "--kv-sharing-fast-prefill skips the rows that are read"
    yield scheduler.return_sampling_mask, "sampling masks are not held back; leave --return-sampling-mask out"
    yield scheduler.aux_output_connector, "auxiliary outputs are not held back; leave them out"
    yield parallel.use_ubatching, "microbatches split the rows that are read; leave --enable-dbo out"
    if setup.options.collects:
        return
    # A token and its header must fit a step whole: part of a header is no check.
    need = len(setup.header_ids) + 2
    budget = min(scheduler.max_num_scheduled_tokens, plan.max_num_batched_tokens)
    room = f"a step has room for {budget} tokens and a check needs {need}"
    yield budget < need, f"{room}; raise --max-num-batched-tokens to {need} or more"
    cut = plan.long_prefill_token_threshold
    short = f"--long-prefill-token-threshold is {cut}, which cuts checks of {need} tokens short; raise it"
    yield 0 < cut < need, short
