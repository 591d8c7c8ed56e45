"""Where a writer starts: the committed offsets, held against what the log is and still has.

The committed offsets are only worth something in the very log that they were counted in, so another cluster or topic id
stops the writer. Where the log no longer has a committed offset, the difference is a `Jump`, which the writer commits
before it reads on: a hole (retention removed records that were never read) or a rewind (the broker lost records that it
had confirmed, so its log ends below, or was cut and has grown anew). Rows read again after a rewind are duplicates to
the ledger.

Next in the flow: `writer.py` commits the jumps and reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from k2ray.errors import BrokerUnavailable, OperatorNeeded
from k2ray.lake.progress import Jump, Offset, PartitionKey, Progress
from k2ray.log.consumer import ClusterIds, OffsetLost


@dataclass(frozen=True)
class Start:
    """Where to read from.

    Attributes:
        positions: First offset to read of every partition of the wanted topics.
        holes: Records that are gone and were never read.
        rewinds: Offsets that the log took back.
        cluster: Kafka's cluster id.
        topics: Topic name -> topic id, those of the key included.
        ends: Next offset of every partition's log at that time.
    """

    positions: Mapping[PartitionKey, Offset]
    holes: Sequence[Jump]
    rewinds: Sequence[Jump]
    cluster: str
    topics: Mapping[str, str]
    ends: Mapping[PartitionKey, int]


def find_start(
    progress: Progress,
    topics: Sequence[str],
    cluster: ClusterIds,
    bounds: Callable[[PartitionKey], tuple[int, int]],
    now_us: int,
    lost: OffsetLost | None = None,
) -> Start:
    """Hold the committed offsets against the log.

    Args:
        progress: The key of the newest snapshot.
        topics: The table's topics.
        cluster: Kafka's ids.
        bounds: Asks for first offset and end of a partition.
        now_us: For the record of holes and rewinds.
        lost: What reading from the committed offsets raised, if that is why we are here.

    Raises:
        OperatorNeeded: Another Kafka, or another topic of the same name, or a topic that shrank or went away.
        BrokerUnavailable: A topic does not exist yet; call again.
    """
    _check_identity(progress, topics, cluster)
    positions: dict[PartitionKey, Offset] = {}
    holes: list[Jump] = []
    rewinds: list[Jump] = []
    ends: dict[PartitionKey, int] = {}
    for topic in topics:
        for partition in range(cluster.topics[topic].partitions):
            key = (topic, partition)
            committed = progress.offset(key)
            low, high = bounds(key)
            ends[key] = high
            cut = lost is not None and lost.key == key and low <= committed.next <= high
            if committed.next < low:
                holes.append(Jump(topic, partition, committed.next, low, now_us))
                positions[key] = Offset(low)
            elif committed.next > high or cut:
                # Where a log was cut before it grew anew is not known: from its first record on is never wrong.
                target = low if cut else high
                rewinds.append(Jump(topic, partition, committed.next, target, now_us))
                positions[key] = Offset(target)
            else:
                positions[key] = committed
    found = {topic: cluster.topics[topic].topic_id for topic in topics}
    return Start(positions, holes, rewinds, cluster.cluster_id, {**progress.topics, **found}, ends)


def _check_identity(progress: Progress, topics: Sequence[str], cluster: ClusterIds) -> None:
    if progress.cluster is not None and progress.cluster != cluster.cluster_id:
        raise OperatorNeeded(
            f"the table's offsets belong to Kafka cluster {progress.cluster}, this is {cluster.cluster_id}"
        )
    for topic in topics:
        found, known = cluster.topics.get(topic), progress.topics.get(topic)
        if found is None:
            if known is not None:
                raise OperatorNeeded(f"topic {topic} ({known}) is gone; the table has offsets of it")
            raise BrokerUnavailable(f"topic {topic} does not exist yet")
        if known is not None and known != found.topic_id:
            raise OperatorNeeded(
                f"topic {topic} is another one now: {found.topic_id}, the table's offsets are of {known}"
            )
        highest = max((key[1] for key in progress.offsets if key[0] == topic), default=-1)
        if highest >= found.partitions:
            raise OperatorNeeded(
                f"topic {topic} has {found.partitions} partitions, the table has offsets of {highest + 1}"
            )
