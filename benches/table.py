"""A table of measurements.jsonl: the median over all runs of each program.

    python table.py measurements.jsonl

For a step of distillation, what `distill --plan` had said of its memory, and the share of the chip's dense bf16 rate that
its products, convolutions and attention make up.
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

# TFLOP/s, dense, from NVIDIA's data sheets.
BF16_RATES = {"H100": 989, "H200": 989, "A100": 312}
machine = Path(sys.argv[1]).with_name("machine.txt")
words = machine.read_text() if machine.exists() else ""
chip = next((rate * 1e12 for name, rate in BF16_RATES.items() if name in words), None)

rows = defaultdict(lambda: defaultdict(list))
for line in Path(sys.argv[1]).read_text().splitlines():
    row = json.loads(line)
    measured = row.get("network") or f"step, trains {row['trains']}" + ", recomputing" * row["recompute"]
    batch = row.get("batch") or row["micro_batch"]
    what = (measured, row["config"], row["size"], batch, row["dtype"], row["device"])
    rows[what][row["program"]].append(row)

print("| what | config | size | batch | dtype | device | program | median ms | fastest ms | peak MiB | planned MiB | load s | images/s | of the chip |")
print("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")
for what, programs in rows.items():
    operations = next((run["operations"] for runs in programs.values() for run in runs if "operations" in run), None)
    for program, runs in programs.items():
        seconds = [s for run in runs for s in run["seconds"]]
        of = lambda key, choose: choose(run[key] for run in runs) if key in runs[0] else None
        planned = of("planned_bytes", max)
        share = operations / statistics.median(seconds) / chip if operations and chip and what[-1] != "cpu" else None
        peak, load, rate = of("peak_bytes", max), of("load_seconds", min), of("images_per_second", max)
        cells = [
            *what, program, f"{1e3 * statistics.median(seconds):.1f}", f"{1e3 * min(seconds):.1f}",
            "" if peak is None else f"{peak / 2**20:.0f}",
            "" if planned is None else f"{planned / 2**20:.0f}",
            "" if load is None else f"{load:.2f}",
            "" if rate is None else f"{rate:.2f}",
            "" if share is None else f"{100 * share:.0f} %",
        ]
        print("| " + " | ".join(map(str, cells)) + " |")
