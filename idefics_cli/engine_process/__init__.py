"""An engine in a process of its own: what else this process does never keeps its thread from the next launch."""
