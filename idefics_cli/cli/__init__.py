"""The command line; typer is imported here alone."""
