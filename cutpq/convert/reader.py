"""A checkpoint read with bounded memory, and the error that ends a conversion."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.folder import Checkpoint, open_checkpoint


class ConversionError(ValueError):
    """A conversion was refused, or failed its proof: there is no result."""


class Reader:
    """A checkpoint that is opened anew before it has shown more than `limit` bytes.

    What a memory map has shown counts as memory of this process until the map is closed.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit, self._shown = folder, limit, 0
        self._ckpt: Checkpoint | None = None

    def before(self, nbytes: int) -> Checkpoint:
        """The checkpoint, of which the caller will read `nbytes` now.

        Raises CheckpointError where the folder cannot be opened again.
        """
        if self._ckpt is None or self._shown + nbytes > self._limit:
            self._ckpt = None
            self._ckpt, self._shown = open_checkpoint(self._folder), 0
        self._shown += nbytes
        return self._ckpt
