"""Makes a LAION-shaped table of 20 million rows, 1.5 GB, in row groups of a million.

    python make_table.py FILE.parquet        needs the package duckdb
"""

import sys

import duckdb

duckdb.connect().execute(f"""copy (
    select 'https://cdn' || (i % 50000) || '.example.org/images/' || md5(i::varchar) || '/photo.jpg' as URL,
           'a photograph of thing number ' || i || ' standing on a table in a room with a window' as TEXT,
           (200 + hash(i) % 2200)::double as WIDTH, (200 + hash(i + 7) % 2200)::double as HEIGHT,
           random() as similarity, random()::float as punsafe, random()::float as pwatermark,
           (3.5 + 4 * random())::float as AESTHETIC_SCORE, i as hash
    from range(20000000) t(i)
) to '{sys.argv[1]}' (format parquet, compression snappy, row_group_size 1000000)""")
