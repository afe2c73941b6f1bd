"""What one checkpoint of a training costs, on paper: bytes, seconds on disks and networks, and the share of a process.

    python benchmarks/checkpoint_cost.py            # prints the table of docs/cluster.md

A parameter costs 16 bytes: weight, average and two moments of Adam, four bytes each. Everything else in a checkpoint is
small. Nothing here is measured: a rate is what the disk or network really moves, checksums and latency left out.
"""

from __future__ import annotations

import datetime

BYTES = {"weights": 4, "averages": 4, "two moments": 8}
#: billions of parameters
SIZES = (0.5, 2.0, 4.0)
#: gigabytes per second
RATES = {"hard disk, 0.2 GB/s": 0.2, "10 Gbit/s network, 1.2 GB/s": 1.2, "NVMe disk, 3 GB/s": 3.0}
PROCESSES = (8, 64)


def row(billions: float) -> list[str]:
    """The cells of one size."""
    parts = [f"{billions * count:.0f}" for count in BYTES.values()]
    whole = billions * sum(BYTES.values())
    seconds = [duration(whole / rate) for rate in RATES.values()]
    return [f"{billions:g} billion", *parts, f"**{whole:.0f}**", *seconds, *(f"{whole / n:.2g}" for n in PROCESSES)]


def duration(seconds: float) -> str:
    """Seconds, or minutes if they are many."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def main() -> None:
    """Print the table."""
    header = ["parameters", *(f"{name}, GB" for name in BYTES), "together, GB", *RATES]
    header += [f"each of {count} processes, GB" for count in PROCESSES]
    print(
        f"On paper, {datetime.date.today().isoformat()}; {sum(BYTES.values())} bytes per parameter, 1 GB = 10^9 bytes."
    )
    print()
    print("| " + " | ".join(header) + " |")
    print("| " + " | ".join(["---"] + ["---:"] * (len(header) - 1)) + " |")
    for size in SIZES:
        print("| " + " | ".join(row(size)) + " |")


if __name__ == "__main__":
    main()
