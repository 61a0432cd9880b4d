"""The guard inside vLLM's engine process."""
