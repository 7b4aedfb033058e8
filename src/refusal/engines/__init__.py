"""Who writes the completions of a run: the hooks of this process, vLLM, a server."""
