"""Whether the old connection of a rotation has delivered all that came before the new one's first rows. Pure.

Two connections to one exchange do not run level: the old one may lag, most of all when it is replaced for being slow.
For each symbol the new connection's first row says from which id on it has everything (`sequence_from`); the old one
may go once it has delivered up to there. Symbols without a row on the new connection ask for nothing: whatever comes
for them from now on comes by the new one.

Next in the flow: `rotation.py` waits for the answer.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

_SYMBOL = "symbol"


class Handover:
    """Follows the ids of two connections while both deliver.

    Args:
        old: Number of the connection that shall be replaced.
        new: Number of the one that shall replace it.
    """

    def __init__(self, old: int, new: int) -> None:
        self.old = old
        self.new = new
        self._needed: dict[tuple[str, str], int] = {}
        self._reached: dict[tuple[str, str], int] = {}

    @property
    def caught_up(self) -> bool:
        """Whether nothing is missing between what the old one delivered and where the new one begins."""
        return all(self._reached.get(key, -1) >= needed for key, needed in self._needed.items())

    def note(self, connection: int, channel: str, batch: pa.RecordBatch) -> None:
        """Take note of rows that a connection delivered.

        Args:
            connection: Whose; others than the two are ignored.
            channel: Ids of different channels have nothing to do with each other.
            batch: Rows with `symbol` (dictionary), `source_sequence` and `sequence_from`.
        """
        if connection not in (self.old, self.new) or not batch.num_rows:
            return
        symbols = batch.column(_SYMBOL)
        codes, names = symbols.indices.to_numpy(), symbols.dictionary.to_pylist()
        if connection == self.new:
            starts = batch.column("sequence_from").to_numpy(zero_copy_only=False)
            for code in np.unique(codes).tolist():
                self._needed.setdefault((channel, names[code]), int(starts[codes == code].min()))
        else:
            ids = batch.column("source_sequence").to_numpy(zero_copy_only=False)
            for code in np.unique(codes).tolist():
                key = (channel, names[code])
                self._reached[key] = max(self._reached.get(key, -1), int(ids[codes == code].max()))
