"""The stitcher against the oracle and against the truth, on many hard random cases, with and without noise.

    python -m tests.benchmarks.stitch_cases [--cases 100000] [--seed 0] [--workers 2] [--journal cases.jsonl]

The modes take turns, 35 of 100 cases "clip", 35 "drop", 30 with noise. Printed for each: cases; cells within the size
bound (both sides <= O - 2g; less what the boxes are jittered by) and how many of them are missed or doubled, pieces too
many, larger cells and how many of them vanish, all as the oracle's `judge` counts them; under noise also those that no
window reported whole (unseen), that are only flagged, that are gone because a view of another was taken for their twin
(taken), or for no such reason (lost); and cases in which the stitcher's result differs from the oracle's.
Fails unless nothing differs, nothing is lost, and without noise nothing is missed, doubled or too many, and nothing
vanishes where cut views are reported. With --journal a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path

from cytopipe.infer.stitching import stitch
from tests.property import stitch_reference as oracle
from tests.property.stitch_cases import draw_case, results_of, results_of_oracle, views_of, windows_of
from tests.property.stitch_noise import NOISES, draw_noisy_case, judge

TURNS = {"clip": 35, "drop": 35, "scores": 8, "classes": 8, "drops": 8, "boxes": 3, "all": 3}  # jitter needs big slides
MODES = tuple(mode for mode, turns in TURNS.items() for _ in range(turns))
COLUMNS = ("cases", "small", "unseen", "missed", "flagged", "taken", "lost", "doubled", "extra", "large", "vanished")
COLUMNS += ("differ",)
ONLY_UNDER_NOISE = ("unseen", "flagged", "taken", "lost")  # and "extra" only without: others are not counted
FORBIDDEN = dict.fromkeys(TURNS, ("lost", "differ"))
FORBIDDEN |= {"drop": ("missed", "doubled", "extra", "differ")}
FORBIDDEN |= {"clip": (*FORBIDDEN["drop"], "vanished")}
NEXT_SEED = 1_000_000_007
CHUNK = 100  # seeds; a whole round of the modes
PROGRESS_S = 30.0


def count(seed: int) -> tuple[str, Counter]:
    """One seed's mode and case: what the judge says of the oracle's result, and whether ours is the same."""
    mode = MODES[seed % len(MODES)]
    noise, drawn, again = NOISES.get(mode), None, seed
    while drawn is None:  # one seed of eight gives no case: another one in its place
        drawn = draw_case(again, mode) if noise is None else draw_noisy_case(again, noise)
        again += NEXT_SEED
    case, views = drawn
    size, windows, _, guard_px, _, kind = case
    with_masks = kind == "ellipse" or seed % 3 == 0
    ours = stitch(windows_of(case), views_of(case, views, with_masks), guard_px)
    expected = oracle.stitch(windows, views, guard_px)
    same = results_of(ours, size, with_masks) == results_of_oracle(expected, size, with_masks)
    judged = oracle.judge(case, views, expected, 0) if noise is None else judge(case, views, expected, noise)
    return mode, judged + Counter(differ=int(not same))


def count_chunk(first: int, cases: int) -> dict:
    """A line of the journal: the seeds from `first` on, counted by mode."""
    counted: dict[str, Counter] = defaultdict(Counter)
    for seed in range(first, first + cases):
        mode, tally = count(seed)
        counted[mode].update(tally)
    return {"first": first, "cases": cases, "counted": counted}


def chunks(seed: int, cases: int) -> list[tuple[int, int]]:
    return [(first, min(CHUNK, seed + cases - first)) for first in range(seed, seed + cases, CHUNK)]


def finished(journal: Path | None) -> list[dict]:
    """The lines of an earlier run. One that was being written when it was stopped is taken out of the journal."""
    if journal is None or not journal.exists():
        return []
    whole, _, torn = journal.read_text().rpartition("\n")
    if torn:
        journal.write_text(whole + "\n" if whole else "")
    return [json.loads(line) for line in whole.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--journal", type=Path)
    args = parser.parse_args()
    print(f"stitching, Python {platform.python_version()}, numpy {version('numpy')}, shapely {version('shapely')}")
    print(f"  {args.cases} random cases from seed {args.seed} on, {args.workers} processes", flush=True)
    total: dict[str, Counter] = defaultdict(Counter)
    due = set(chunks(args.seed, args.cases))
    for line in finished(args.journal):
        if (line["first"], line["cases"]) in due:
            due.discard((line["first"], line["cases"]))
            add(total, line)
    start = said = time.monotonic()
    done = before = args.cases - sum(cases for _, cases in due)
    with ProcessPoolExecutor(args.workers) as pool:
        for future in as_completed([pool.submit(count_chunk, *chunk) for chunk in sorted(due)]):
            line = future.result()
            add(total, line)
            done += line["cases"]
            if args.journal is not None:
                with args.journal.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            if time.monotonic() - said > PROGRESS_S:
                said = time.monotonic()
                left_s = (said - start) / (done - before) * (args.cases - done)
                print(f"  {done} of {args.cases} cases, {left_s / 60:.0f} min left", file=sys.stderr, flush=True)
    print(f"  {time.monotonic() - start:.0f} s for {done - before} cases, {before} from the journal")
    print(f"  {'mode':<9}" + "".join(f"{name:>10}" for name in COLUMNS))
    for mode in TURNS:
        left_out = ("extra",) if mode in NOISES else ONLY_UNDER_NOISE
        print(f"  {mode:<9}" + "".join(f"{'-' if name in left_out else total[mode][name]:>10}" for name in COLUMNS))
    broken = [f"{mode}: {name}" for mode, names in FORBIDDEN.items() for name in names if total[mode][name]]
    print(f"  {'against the rule: ' + ', '.join(broken) if broken else 'as the rule promises'}")
    sys.exit(1 if broken else 0)


def add(total: dict[str, Counter], line: dict) -> None:
    for mode, tally in line["counted"].items():
        total[mode].update(tally)


if __name__ == "__main__":
    main()
