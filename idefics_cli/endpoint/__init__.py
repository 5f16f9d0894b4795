"""A server of the OpenAI chat form as an engine: `run` and `ask` with `--endpoint`. No torch is imported."""

from idefics_cli.endpoint.open import open_endpoint

__all__ = ["open_endpoint"]
