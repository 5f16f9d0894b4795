"""The socket by which `ask` and `run` reach a server of the same user; who only asks imports neither torch nor PIL."""
