"""Makes a small bi-temporal table with pyiceberg, for the test of the readers themselves.

usage: make_sample.py CATALOG_DB WAREHOUSE

Three snapshots of silver.market_ohlcv, partitioned by month, symbol and is_current as FinLake's
are: two open bars; one of them superseded; one more symbol. The open end of time is year 9999.
"""

import datetime
import decimal
import sys
import uuid

import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.expressions import EqualTo
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import IdentityTransform, MonthTransform
from pyiceberg.types import (
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    LongType,
    NestedField,
    StringType,
    TimestamptzType,
)

SCHEMA = Schema(
    NestedField(1, "tick_id", StringType(), required=False),
    NestedField(2, "symbol", StringType(), required=False),
    NestedField(3, "trade_date", DateType(), required=False),
    NestedField(4, "close", DecimalType(38, 8), required=False),
    NestedField(5, "return_1", DoubleType(), required=False),
    NestedField(6, "revision", LongType(), required=False),
    NestedField(7, "sys_from", TimestamptzType(), required=False),
    NestedField(8, "sys_to", TimestamptzType(), required=False),
    NestedField(9, "is_current", BooleanType(), required=False),
)
SPEC = PartitionSpec(
    PartitionField(3, 1000, MonthTransform(), "trade_date_month"),
    PartitionField(2, 1001, IdentityTransform(), "symbol"),
    PartitionField(9, 1002, IdentityTransform(), "is_current"),
)
OPEN = datetime.datetime(9999, 12, 31, tzinfo=datetime.timezone.utc)


def at(second):
    start = datetime.datetime(2024, 8, 8, 12, 0, 0, 123456, tzinfo=datetime.timezone.utc)
    return start + datetime.timedelta(seconds=second)


def row(symbol, close, revision, sys_from, sys_to=OPEN, returned=None):
    return {
        "tick_id": str(uuid.uuid5(uuid.NAMESPACE_OID, symbol)),
        "symbol": symbol,
        "trade_date": datetime.date(2024, 8, 8),
        "close": decimal.Decimal(close),
        "return_1": returned,
        "revision": revision,
        "sys_from": sys_from,
        "sys_to": sys_to,
        "is_current": sys_to == OPEN,
    }


def main():
    catalog_db, warehouse = sys.argv[1:]
    catalog = SqlCatalog("finlake", uri=f"sqlite:///{catalog_db}", warehouse=warehouse)
    catalog.create_namespace("silver")
    table = catalog.create_table("silver.market_ohlcv", SCHEMA, partition_spec=SPEC)

    def arrow(*rows):
        return pa.Table.from_pylist(list(rows), schema=table.schema().as_arrow())

    table.append(
        arrow(
            row("BTCUSDT", "57123.12345678", 1, at(0)),
            row("ETHUSDT", "2400.00000000", 1, at(0), returned=0.1),
        )
    )
    table.overwrite(
        arrow(
            row("BTCUSDT", "57123.12345678", 1, at(0), at(10)),
            row("BTCUSDT", "57124.00000001", 2, at(10), returned=-1 / 3),
        ),
        overwrite_filter=EqualTo("symbol", "BTCUSDT"),
    )
    table.append(arrow(row("SOLUSDT", "0.00000001", 1, at(20))))


main()
