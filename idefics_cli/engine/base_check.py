"""Whether an adapter was trained on the checkpoint that it is to be merged into."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from idefics_cli.engine.adapter import Adapter
from idefics_cli.engine.hub import is_hub_id, snapshot_names
from idefics_cli.errors import ModelError

_WAY_OUT = "or --adapter-base any if you know that it fits"


def check_base(adapter: Adapter, name: str, revision: str | None, folder: Path) -> None:
    """Compare the base that an adapter names with a checkpoint.

    An adapter of another base of the same shape would be merged without a sign of it. A checkpoint from the hub, or in
    a snapshot of its cache, is known by its id. Any other folder is known by its name: `/data/idefics2-8b` is taken for
    `HuggingFaceM4/idefics2-8b`. What config.json says of an origin does not count: fine-tuned weights have it too.

    Args:
        adapter: that is to be merged.
        name: of the checkpoint, as it was asked for.
        revision: of the checkpoint, as it was asked for.
        folder: of the checkpoint.

    Raises:
        ModelError: they are not the same, or that can't be told.

    """
    base = adapter.config.base
    if base is None:
        raise ModelError(f"{adapter.name}: the adapter does not say what its base is: --adapter-base any merges it")
    snapshot, base_snapshot = snapshot_names(folder), snapshot_names(Path(base))
    hub_id = snapshot[0] if snapshot else None
    base_id = base_snapshot[0] if base_snapshot else base if is_hub_id(base) else None
    if hub_id and base_id:
        is_same = hub_id.lower() == base_id.lower()
    else:
        is_same = Path(base).resolve() == folder.resolve() or _last(base_id or base) == _last(hub_id or str(folder))
    if not is_same:
        way = f"--model {base_id}" if base_id else "take the checkpoint that it was trained on"
        raise ModelError(f"{adapter.name}: an adapter of {base}, which {name} is not known to be: {way}, {_WAY_OUT}")
    wanted = adapter.config.revision
    if snapshot and wanted not in (None, revision or "main", snapshot[1]):
        raise ModelError(
            f"{adapter.name}: an adapter of {base} at revision {wanted}, not {revision or 'main'}: "
            f"--revision {wanted}, {_WAY_OUT}"
        )


def _last(path: str) -> str:
    return PurePosixPath(path).name.lower()
