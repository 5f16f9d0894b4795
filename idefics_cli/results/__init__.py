"""Rows of the output: written, read again, resumed, locked, scored and summed up."""
