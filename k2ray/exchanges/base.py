"""What an exchange must say: where its streams are, how to subscribe, how frames become rows, what its ids prove.

An adapter is plain data and pure functions: it opens no socket and reads no clock. `FrameDecoder` is the only part with
state, one for each connection, since what a quote covers depends on the quote before it on the same connection.

Next in the flow: `binance.py` is such an exchange; `feed/session.py` runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2ray.settings import ExchangeSettings

Times = npt.NDArray[np.int64]

SHUTDOWN = "shutdown"
"""An event in `Decoded.events`: the exchange is about to close this connection; connect anew."""


@dataclass(frozen=True)
class Subscription:
    """What one connection asks for.

    Attributes:
        channels: Names from `model.CHANNELS`.
        symbols: The exchange's own symbols, upper case.
        groups: Each symbol's group, if rows are to be ordered by it (feeds pass partitions); empty: as received.
    """

    channels: tuple[str, ...]
    symbols: tuple[str, ...]
    groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class Instrument:
    """What the exchange says about a symbol.

    Attributes:
        symbol: The exchange's own symbol.
        currency: Quote currency.
    """

    symbol: str
    currency: str


@dataclass(frozen=True)
class DeadFrame:
    """A frame that cannot become a row, with all that is needed to judge it later.

    Attributes:
        raw: The frame's payload as received.
        reason: What is wrong with it.
        received_us: When our socket saw it.
    """

    raw: bytes
    reason: str
    received_us: int


@dataclass
class Decoded:
    """What a run of frames held.

    Attributes:
        batches: Channel -> rows in `model.WIRE_SCHEMAS[table]`, ordered by their symbols' group, else as received.
        dead: Frames that cannot be read or whose values do not fit; their neighbours are in `batches`.
        ignored: Frames of streams that nobody subscribed, and rows that the exchange itself marks as void.
        control: Answers to our own messages.
        events: What the exchange asks the connection to do, for example `SHUTDOWN`.
        subscribed: How many streams the exchange says that it sends, if it was asked (`ExchangeAdapter.question`).
    """

    batches: dict[str, pa.RecordBatch] = field(default_factory=dict)
    dead: list[DeadFrame] = field(default_factory=list)
    ignored: int = 0
    control: int = 0
    events: list[str] = field(default_factory=list)
    subscribed: int | None = None


@dataclass(frozen=True)
class Heartbeat:
    """Who proves to whom that a connection lives.

    Attributes:
        server_ping_s: How often the exchange pings us, None if never; the transport answers by itself.
        client_message: A text that the exchange wants from us every `client_interval_s`, None if protocol pings do.
        client_interval_s: See above.
    """

    server_ping_s: float | None = None
    client_message: bytes | None = None
    client_interval_s: float | None = None


@dataclass(frozen=True)
class SequenceRule:
    """What an id of a channel covers.

    Attributes:
        step: `one`: each row covers its own id, a missing id is a missing row. `grows`: ids skip, and a row covers all
            ids since the row before it on the same connection (itself alone after a connect).
    """

    step: str

    @property
    def proves_gaps(self) -> bool:
        """Whether a missing id proves a missing row."""
        return self.step == "one"


@dataclass(frozen=True)
class RestQuestion:
    """One GET and what it costs.

    Attributes:
        path: Below `rest_url`, with its query.
        headers: To send with it.
        weight: Of the exchange's request budget.
        symbols: Whom it is about.
    """

    path: str
    headers: dict[str, str]
    weight: int
    symbols: tuple[str, ...]


@dataclass
class RestPage:
    """What an answer to `RestAdapter.page` held.

    Attributes:
        rows: In `model.WIRE_SCHEMAS[table]` with origin `backfill`, by id; None if no row can be made.
        void: Ids that the exchange answered and says are no trades.
        dead: Rows whose values do not fit, as JSON, each with its id.
    """

    rows: pa.RecordBatch | None = None
    void: list[int] = field(default_factory=list)
    dead: list[tuple[int, DeadFrame]] = field(default_factory=list)


class FrameDecoder(Protocol):
    """Turns the frames of one connection into rows. One for each connection: it remembers the last ids seen."""

    def decode(self, frames: Sequence[bytes], received_us: Times) -> Decoded:
        """Decode frames that arrived together.

        Args:
            frames: Payloads in the order received.
            received_us: When each was received, UTC microseconds; same length.
        """

    def learn(self, instruments: dict[str, Instrument]) -> None:
        """Use what the exchange says about its symbols from the next `decode` on."""


class ExchangeAdapter(Protocol):
    """One exchange."""

    name: str
    asset_class: str
    heartbeat: Heartbeat
    lifetime_s: float | None
    """After this long the exchange cuts a connection; None: never."""
    max_streams: int
    """Most streams (channel times symbol) on one connection."""
    instruments_weight: int
    """What one request of `instrument_paths` costs of the exchange's request budget."""
    question: bytes | None
    """A text whose answer lists what is subscribed (`Decoded.subscribed`); None: there is none."""

    def stream_url(self, settings: ExchangeSettings, subscription: Subscription) -> str:
        """Return the WebSocket URL for a connection that carries `subscription`."""

    def subscribe_messages(self, subscription: Subscription) -> list[bytes]:
        """Return the texts to send after connecting; empty where the URL says it all."""

    def decoder(self, subscription: Subscription) -> FrameDecoder:
        """Return the decoder of a new connection."""

    def sequence_rule(self, channel: str) -> SequenceRule:
        """Return what the ids of a channel cover."""

    def instrument_paths(self, symbols: Sequence[str]) -> list[str]:
        """Return the REST paths (with query) that together describe `symbols`."""

    def parse_instruments(self, body: bytes) -> dict[str, Instrument]:
        """Read an answer to one of `instrument_paths`.

        Raises:
            BadFrame: The answer is not what the exchange documents; try again later.
        """


class RestAdapter(Protocol):
    """What the backfill needs of an exchange: pages of past rows by id, and the newest id of each symbol.

    Only for channels whose ids step by one (`SequenceRule.proves_gaps`).
    """

    name: str
    asset_class: str
    weight_a_minute: int
    used_weight_header: str

    def page(self, channel: str, symbol: str, first_id: int, rows: int) -> RestQuestion:
        """Return the question for the rows from `first_id` on, at most `rows` and at most `page_rows(channel)`."""

    def page_rows(self, channel: str) -> int:
        """Return how many rows one answer holds at most."""

    def read_page(self, channel: str, symbol: str, body: bytes, received_us: int) -> RestPage:
        """Read an answer to `page`.

        Raises:
            BadFrame: The answer is not what the exchange documents; try again later.
        """

    def newest(self, channel: str, symbols: Sequence[str]) -> list[RestQuestion]:
        """Return the questions that together tell the newest id of each symbol."""

    def read_newest(self, channel: str, question: RestQuestion, body: bytes) -> dict[str, int]:
        """Read the answer to one of `newest`: symbol -> newest id; a symbol without any trade is left out.

        Raises:
            BadFrame: As above.
        """

    def learn(self, instruments: dict[str, Instrument]) -> None:
        """Use what the exchange says about its symbols from the next `read_page` on."""
