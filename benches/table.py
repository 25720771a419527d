"""A table of measurements.jsonl: the median over all runs of each program.

    python table.py measurements.jsonl
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

rows = defaultdict(lambda: defaultdict(list))
for line in Path(sys.argv[1]).read_text().splitlines():
    row = json.loads(line)
    measured = row.get("network") or f"step, trains {row['trains']}" + ", recomputing" * row["recompute"]
    batch = row.get("batch") or row["micro_batch"]
    what = (measured, row["config"], row["size"], batch, row["dtype"], row["device"])
    rows[what][row["program"]].append(row)

print("| what | config | size | batch | dtype | device | program | median ms | fastest ms | peak MiB | load s | images/s |")
print("|---|---|---|---|---|---|---|---|---|---|---|---|")
for what, programs in rows.items():
    for program, runs in programs.items():
        seconds = [s for run in runs for s in run["seconds"]]
        of = lambda key, choose: choose(run[key] for run in runs) if key in runs[0] else None
        peak, load, rate = of("peak_bytes", max), of("load_seconds", min), of("images_per_second", max)
        cells = [
            *what, program, f"{1e3 * statistics.median(seconds):.1f}", f"{1e3 * min(seconds):.1f}",
            "" if peak is None else f"{peak / 2**20:.0f}",
            "" if load is None else f"{load:.2f}",
            "" if rate is None else f"{rate:.2f}",
        ]
        print("| " + " | ".join(map(str, cells)) + " |")
