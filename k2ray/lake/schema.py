"""The tables as Iceberg sees them: field ids, partitions, order of rows, and the properties that all others rely on.

Next in the flow: `catalog.py` creates tables with these.
"""

from __future__ import annotations

import pyarrow as pa
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table.sorting import SortField, SortOrder
from pyiceberg.transforms import DayTransform, IdentityTransform
from pyiceberg.types import (
    DecimalType,
    IcebergType,
    ListType,
    LongType,
    MapType,
    NestedField,
    StringType,
    TimestamptzType,
)

from k2ray.model import DECIMAL, STRING_MAP, TIMESTAMP, table_schema

# Only columns that queries prune by get bounds: each costs bytes in every manifest that every commit may rewrite.
_BOUNDED = ("exchange", "symbol", "timestamp", "source_sequence", "sequence_space", "ingestion_timestamp")

PROPERTIES = {
    "format-version": "2",
    "write.format.default": "parquet",
    "write.parquet.compression-codec": "zstd",
    "write.parquet.compression-level": "3",
    "write.metadata.metrics.default": "counts",
    **{f"write.metadata.metrics.column.{column}": "full" for column in _BOUNDED},
    "commit.retry.num-retries": "20",
    "commit.retry.min-wait-ms": "10",
    "commit.retry.max-wait-ms": "1000",
    "commit.retry.total-timeout-ms": "60000",
    "commit.manifest-merge.enabled": "true",
    # A merge rewrites whole manifests in Python: small ones keep the longest commit short.
    "commit.manifest.min-count-to-merge": "50",
    "commit.manifest.target-size-bytes": "262144",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.compression-codec": "none",
    # A compaction planned under `serializable` would be aborted by every append that wins, for ever.
    "write.delete.isolation-level": "snapshot",
    "write.update.isolation-level": "snapshot",
    "write.merge.isolation-level": "snapshot",
}


def iceberg_schema(table_name: str) -> Schema:
    """Return a table's Iceberg schema: ids 1..n in the model's column order, then those of list and map elements.

    A new column goes to the end of the model, so that existing ids stay as they are.
    """
    arrow = table_schema(table_name)
    nested = len(arrow) + 1
    fields = []
    for field_id, field in enumerate(arrow, start=1):
        fields.append(NestedField(field_id, field.name, _iceberg_type(field.type, nested), required=not field.nullable))
        nested += 2 if pa.types.is_map(field.type) else 1 if pa.types.is_list(field.type) else 0
    return Schema(*fields)


def partition_spec(schema: Schema) -> PartitionSpec:
    """Return the partition spec: day of the event time, then exchange."""
    return PartitionSpec(
        PartitionField(schema.find_field("timestamp").field_id, 1000, DayTransform(), "timestamp_day"),
        PartitionField(schema.find_field("exchange").field_id, 1001, IdentityTransform(), "exchange"),
    )


def sort_order(schema: Schema) -> SortOrder:
    """Return the order of rows inside a file: symbol, timestamp."""
    return SortOrder(
        *(
            SortField(source_id=schema.find_field(name).field_id, transform=IdentityTransform())
            for name in ("symbol", "timestamp")
        )
    )


def _iceberg_type(arrow: pa.DataType, nested_id: int) -> IcebergType:
    if arrow == pa.string():
        return StringType()
    if arrow == TIMESTAMP:
        return TimestamptzType()
    if arrow == pa.int64():
        return LongType()
    if arrow == DECIMAL:
        return DecimalType(38, 18)
    if arrow == STRING_MAP:
        return MapType(
            key_id=nested_id,
            key_type=StringType(),
            value_id=nested_id + 1,
            value_type=StringType(),
            value_required=False,
        )
    if arrow == pa.list_(pa.string()):
        return ListType(nested_id, StringType(), element_required=False)
    raise AssertionError(f"the model has a type without an Iceberg type: {arrow}")
