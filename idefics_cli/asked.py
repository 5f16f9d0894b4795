"""The rows that questions ask for, without asking them: what `status` and `merge` compare outputs with."""

from __future__ import annotations

from collections.abc import Iterator

from idefics_cli.config import RunSettings
from idefics_cli.documents.document_cache import DocumentCache
from idefics_cli.documents.pool import PagePool
from idefics_cli.inputs import Inputs
from idefics_cli.jobs import rows_of
from idefics_cli.prefetch import prefetch
from idefics_cli.rows import PendingRow


def asked_rows(inputs: Inputs, settings: RunSettings) -> Iterator[PendingRow]:
    """Yield the rows of a run with their keys, in the order of the jobs; of a shard, those that belong to it.

    Documents are opened, since their content is part of a key; no page is rendered and no model is needed.
    """
    with PagePool(settings.pages) as pool:
        cache = DocumentCache(pool)
        for job in prefetch(cache.expect_all(inputs.jobs), 2 * pool.workers):
            yield from rows_of(job, cache, settings.pages, settings.questions.shard)
