"""What Spark reads of a lake, as docs/lake.md says: a process of its own, with a JVM beside it.

Arguments: the lake's folder, a day, and the file for what was found.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from scripts.lake_schemas import spark as snippet


def main(lake: str, day: str, found: str) -> None:
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.session.timeZone", "Asia/Kolkata")  # as good as any other
        .getOrCreate()
    )
    names: dict[str, Any] = {"spark": spark}
    exec(snippet().replace("s3a://my-lake", lake), names)
    events = names["events"]
    one_day = events.where(f"date = DATE'{day}'")
    deduplicated = events.dropDuplicates(["uuid"]).collect()
    answer = {
        "rows": events.count(),
        "rows of the day": one_day.count(),
        "plan of the day": one_day._jdf.queryExecution().executedPlan().toString(),
        "events": [row.asDict() for row in deduplicated],
    }
    Path(found).write_text(json.dumps(answer, default=str))
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
