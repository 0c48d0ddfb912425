"""Reads FinLake's tables with pyiceberg. Also lists each table's snapshots, oldest first."""

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.expressions import AlwaysTrue, EqualTo

import common


def main():
    args = common.arguments("pyiceberg")
    catalog = SqlCatalog(args.name, uri=f"sqlite:///{args.catalog}", warehouse=args.warehouse)

    def read(table, symbol=None, snapshot=None, current=None):
        where = AlwaysTrue()
        if symbol is not None:
            where = EqualTo("symbol", symbol)
        if current is not None:
            where = EqualTo("is_current", current)
        return catalog.load_table(table).scan(row_filter=where, snapshot_id=snapshot).to_arrow()

    def extra(table):
        loaded = catalog.load_table(table)
        ordered = sorted(loaded.snapshots(), key=lambda s: s.sequence_number)
        return {"snapshots": [s.snapshot_id for s in ordered], "properties": loaded.properties}

    common.report("pyiceberg", args, read, extra)


main()
