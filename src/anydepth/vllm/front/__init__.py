"""The guard inside vLLM's HTTP server."""
