"""Reads FinLake's tables with Spark, through Iceberg's own JDBC catalog on the same SQLite file.

TEST_SPARK_JARS names the folder with Iceberg's Spark runtime and the SQLite driver.
"""

import glob
import os
import sys

from pyspark.sql import SparkSession

import common


def session(args):
    jars = sorted(glob.glob(os.path.join(os.environ["TEST_SPARK_JARS"], "*.jar")))
    if not jars:
        sys.exit("TEST_SPARK_JARS names no folder with jars: run scripts/test-env.sh spark")
    catalog = f"spark.sql.catalog.{args.name}"
    # JDBC names what is in the SQLite file: the Spark catalog's name has to be the one under which
    # the tables were created, and V1 is the layout of that file.
    settings = {
        "spark.jars": ",".join(jars),
        "spark.ui.enabled": "false",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": "768m",
        "spark.driver.extraJavaOptions": "-Duser.timezone=UTC",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "1",
        "spark.log.level": "ERROR",
        catalog: "org.apache.iceberg.spark.SparkCatalog",
        f"{catalog}.type": "jdbc",
        f"{catalog}.uri": f"jdbc:sqlite:{args.catalog}",
        f"{catalog}.jdbc.schema-version": "V1",
        f"{catalog}.warehouse": args.warehouse,
    }
    builder = SparkSession.builder.master("local[1]").appName("finlake-reader")
    for key, value in settings.items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def main():
    args = common.arguments("Spark")
    os.environ["TZ"] = "UTC"
    spark = session(args)

    def read(table, symbol=None, snapshot=None, current=None):
        version = f" version as of {snapshot}" if snapshot is not None else ""
        query, values = f"select * from {args.name}.{table}{version}", {}
        if symbol is not None:
            query, values = f"{query} where symbol = :symbol", {"symbol": symbol}
        if current is not None:
            query = f"{query} where is_current = {str(current).lower()}"
        return spark.sql(query, args=values).toArrow()

    common.report("spark", args, read)
    spark.stop()


main()
