# The same filter in DuckDB, its text columns read: python duckdb_filter.py FILE.parquet
import resource, sys, time
import duckdb
started = time.time()
d = duckdb.connect()
d.execute("set threads=2")
rows = d.execute(f"""create temp table kept as select URL, TEXT, WIDTH, HEIGHT, AESTHETIC_SCORE, similarity, punsafe, pwatermark
  from '{sys.argv[1]}' where least(WIDTH, HEIGHT) >= 2048 and AESTHETIC_SCORE > 5.5 and not isnan(AESTHETIC_SCORE)""").fetchall()
print(rows, f"{time.time() - started:.2f} s in the query, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
