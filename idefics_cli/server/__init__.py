"""A server over one engine: chat completions over HTTP, and jobs of `ask` and `run` over a socket of the user's."""
