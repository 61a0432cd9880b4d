"""The guard inside vLLM's worker process."""
