"""Rows on their way out: writing, resuming, locking, summing up."""
