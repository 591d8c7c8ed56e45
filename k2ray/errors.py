"""The one tree of k2ray's errors, named by what the caller does next.

| class | what the caller does |
|---|---|
| `SettingsError` | stop the start; the message names the setting |
| `MissingProgram` | stop; the message says what to install, or the way around it |
| `TryAgain` | wait with backoff and repeat the same call |
| `WorldMoved` | drop what is in memory, load the newest snapshot, go on from there |
| `UnknownOutcome` | look whether it happened before doing anything else |
| `OperatorNeeded` | stop this role and say so; only a person may decide |
| `BadInput` | put the input aside (dead letter, 4xx), go on with its neighbours |

Third-party exceptions are mapped to these once, at the module that imports the library.
"""

from __future__ import annotations


class K2rayError(Exception):
    """Base of all errors that k2ray raises on purpose."""


class SettingsError(K2rayError):
    """A setting is unknown, missing or out of range. The message starts with its name; the start stops."""


class MissingProgram(K2rayError):
    """A program that this machine lacks (java, mvn). The message names every way out."""


class TryAgain(K2rayError):
    """The other side is away or busy: repeat the same call after a pause."""


class BrokerUnavailable(TryAgain):
    """Kafka does not answer."""


class CatalogUnavailable(TryAgain):
    """The Iceberg catalog, or the storage under it, does not answer."""


class RegistryUnavailable(TryAgain):
    """The schema registry, or the actor that asks it, does not answer: which schema an id stands for is not known yet.

    Nothing that waits for the answer may be put aside.
    """


class TableMissing(TryAgain):
    """The table does not exist yet: its writer creates it. The catalog itself answers."""


class DiskFull(CatalogUnavailable):
    """No room under the warehouse or the catalog. Nothing is lost: make room, the same call goes on."""


class ExchangeUnavailable(TryAgain):
    """An exchange refused or dropped a connection; reconnect with backoff."""


class TooOften(ExchangeUnavailable):
    """The exchange says that this address asks too often (429), or is banned for it (418).

    Args:
        message: What was asked and what it answered.
        after_s: Nobody on this address asks before so many seconds have passed.
    """

    def __init__(self, message: str, after_s: float) -> None:
        super().__init__(message)
        self.after_s = after_s


class SupervisorUnavailable(TryAgain):
    """An actor, usually the supervisor, does not live or does not answer in time."""


class ActorNotMade(SupervisorUnavailable):
    """The actor's constructor raised; the message says what. Once more may help, a third time will not."""


class RayUnavailable(TryAgain):
    """No Ray cluster answers, or it refuses our token; the message says which."""


class WorldMoved(K2rayError):
    """The committed offsets are not the ones this batch starts from: somebody else committed.

    Drop everything in memory, load the newest snapshot and position anew. Nothing was written.
    """


class UnknownOutcome(K2rayError):
    """The call failed in a way that does not tell whether it took effect. Look first."""


class OperatorNeeded(K2rayError):
    """Going on would guess: another topic id, no progress key in a table with rows, and the like."""


class IncompatibleSchema(OperatorNeeded):
    """The registry has a schema under this subject whose records ours could not read, or refuses ours."""


class BadInput(K2rayError):
    """Input that cannot be used. Only this one piece is put aside; its neighbours go on."""


class BadFrame(BadInput):
    """A frame of an exchange that cannot be read: to the dead-letter topic with its raw bytes."""


class BadRecord(BadInput):
    """A Kafka record that cannot be read: to the dead-letter topic with its raw bytes."""


class UnreadableSchema(BadInput):
    """An Avro schema that is none, or that no table could hold: its records are dead letters, each with this reason."""


class BadRequest(BadInput):
    """A question that cannot be answered as asked. Carries the field and what is allowed; HTTP answers 4xx.

    Args:
        field: Name of the request's parameter.
        reason: What is wrong with it and what is allowed.
        status: HTTP status that fits (400 unless said otherwise; 410 for an expired cursor).
    """

    def __init__(self, field: str, reason: str, status: int = 400) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason
        self.status = status


class QueryTooLarge(BadInput):
    """A question that ran too long or needed too much memory: ask for less time, fewer symbols or fewer rows."""
