"""`layershard sweep`: removes the shared memory that dead servers left on this node."""

from __future__ import annotations

from layershard_cli.flags import AsJson
from layershard_cli.output import emit, emit_json
from vllm_layershard.planner.results.document import SCHEMA_VERSION


def sweep_command(as_json: AsJson = False) -> None:
    """Remove the shared memory that dead servers of yours left on this node.

    Living servers keep theirs.

    Example: layershard sweep
    """
    # It needs a POSIX system, as no other command does.
    from vllm_layershard.runtime import shared_memory

    removed = shared_memory.sweep()
    directory, nbytes_removed = str(shared_memory.DIRECTORY), sum(removed.values())
    if as_json:
        files = [{"name": name, "bytes": nbytes} for name, nbytes in removed.items()]
        answer = {"directory": directory, "removed": files, "removed_bytes": nbytes_removed}
        emit_json({"schema_version": SCHEMA_VERSION, **answer})
        return
    for name, nbytes in removed.items():
        emit(f"{name}: {nbytes:,} bytes")
    if not removed:
        emit(f"nothing was left in {directory} by your servers that have ended")
        return
    count = "1 file" if len(removed) == 1 else f"{len(removed):,} files"
    emit(f"removed {count} from {directory}: {nbytes_removed:,} bytes")
