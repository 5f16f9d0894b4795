"""Runs the model. Nothing outside this package imports torch or transformers."""
