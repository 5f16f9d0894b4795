"""Several workers for one run: each has page processes, an engine and the pipeline; jobs go in, rows come back.

The process that starts them alone reads questions and writes rows.
"""
