"""A table of unet.jsonl: the median over all runs of each program.

    python table.py unet.jsonl
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

rows = defaultdict(lambda: defaultdict(list))
for line in Path(sys.argv[1]).read_text().splitlines():
    row = json.loads(line)
    what = (row["config"], row["size"], row["batch"], row["dtype"], row["device"])
    rows[what][row["program"]].append(row)

print("| config | size | batch | dtype | device | program | median ms | fastest ms | peak MiB |")
print("|---|---|---|---|---|---|---|---|---|")
for what, programs in rows.items():
    for program, runs in programs.items():
        seconds = [s for run in runs for s in run["seconds"]]
        peak = max(run["peak_bytes"] for run in runs) / 2**20
        cells = [*what, program, f"{1e3 * statistics.median(seconds):.1f}", f"{1e3 * min(seconds):.1f}", f"{peak:.0f}"]
        print("| " + " | ".join(map(str, cells)) + " |")
