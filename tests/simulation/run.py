"""Run schedules for a while, or one of them again.

    python tests/simulation/run.py --seconds 60              seeds 0, 1, 2, …
    python tests/simulation/run.py --seed 1234               this one alone, with its log
    python tests/simulation/run.py --bug last_claim_wins     with a planted bug: it must be found

The last line is JSON: {"schedules", "per_minute", "failures", "seed"} (`seed`: the first that failed, or null).
The exit code is 1 if a schedule failed; with --bug, if none did.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from bugs import BUGS, planted
from world import Simulation

PROGRESS_S = 5.0
TRACE_LINES_MAX = 400
SEEDS_MAX = 10**9


def show(seed: int, *, trouble: tuple[str, ...] | None) -> bool:
    """Run one schedule and print its log; return whether all held."""
    simulation = Simulation(seed, trouble=trouble)
    result = simulation.run()
    for number, line in enumerate(simulation.trace()):
        if number < TRACE_LINES_MAX:
            print(line[:240])
    for wrong in result.wrong:
        print(f"WRONG: {wrong[:2_000]}")
    print(f"again: SEED={seed}  (python tests/simulation/run.py --seed {seed})")
    return not result.wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--count", type=int, default=None, help="at most so many schedules")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that run schedules")
    parser.add_argument("--seed", type=int, default=None, help="only this one, with its log")
    parser.add_argument("--bug", choices=sorted(BUGS), default=None)
    options = parser.parse_args()
    trouble = BUGS[options.bug][1] if options.bug else None
    with planted(options.bug):
        if options.seed is not None:
            return int(show(options.seed, trouble=trouble) is bool(options.bug))
        return search(options, trouble)


def work(seeds: range, until: float, trouble: tuple[str, ...] | None, results: Any) -> None:
    """Run one schedule after the other and report each: (seed, what went wrong). Then None."""
    for seed in seeds:
        if time.monotonic() > until:
            break
        results.put((seed, Simulation(seed, trouble=trouble).run().wrong))
    results.put(None)


def search(options: argparse.Namespace, trouble: tuple[str, ...] | None) -> int:
    began = said = time.monotonic()
    done, failed = 0, []
    last = options.first + (options.count or SEEDS_MAX)
    fork = multiprocessing.get_context("fork")  # so that a planted bug is planted there as well
    results = fork.Queue()
    workers = [
        fork.Process(
            target=work, daemon=True,
            args=(range(options.first + n, last, options.jobs), began + options.seconds, trouble, results),
        )
        for n in range(options.jobs)
    ]
    for worker in workers:
        worker.start()
    running = len(workers)
    while running and not (failed and options.bug):
        result = results.get()
        if result is None:
            running -= 1
            continue
        seed, wrong = result
        done += 1
        if wrong:
            failed.append(seed)
            print(f"seed {seed}: {wrong[0][:300]}", flush=True)
        if time.monotonic() - said > PROGRESS_S:
            said = time.monotonic()
            print(f"{done:,} schedules, {len(failed)} failed", flush=True)
    took_s = time.monotonic() - began
    for worker in workers:
        worker.terminate()
    if failed:
        show(min(failed), trouble=trouble)
    print(json.dumps({
        "schedules": done, "per_minute": round(done / took_s * 60),
        "failures": len(failed), "seed": min(failed, default=None),
    }))
    return int(bool(failed) is not bool(options.bug))


if __name__ == "__main__":
    sys.exit(main())
