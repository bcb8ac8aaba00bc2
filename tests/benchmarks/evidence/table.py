"""docs/EVIDENCE.md from the JSON files of the runs, and from nothing else of ours; the papers' own numbers stand in a
column of their own (published.py), the words of the diagnosis in diagnosis.md.

    python -m tests.benchmarks.evidence.table [--results FOLDER] [--out docs/EVIDENCE.md]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cytopipe.core.files import write_text
from tests.benchmarks.evidence.published import PUBLISHED
from tests.benchmarks.evidence.run import REPOSITORY, RESULTS
from tests.benchmarks.evidence.tasks import SUPERVISED_TERMS, TASKS, Task

T_975 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t by degrees of freedom
BASE = "supervised"
COMMAND = "python -m tests.benchmarks.evidence.run"
DIAGNOSIS = Path(__file__).with_name("diagnosis.md")
GROUPS = Path(__file__).with_name("splits") / "GROUPS.txt"
Run = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "EVIDENCE.md")
    given = parser.parse_args()
    runs = [json.loads(path.read_text()) for path in sorted(given.results.glob("*.json"))]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(given.out, page(runs))
    print(f"{given.out}: {len(runs)} runs")


def page(runs: Sequence[Run]) -> str:
    """The whole document."""
    parts = [HEAD.format(groups=GROUPS.read_text().rstrip() if GROUPS.exists() else "")]
    for task in TASKS.values():
        parts.append(f"## {task.name.capitalize()}: {' with '.join(f'`{name}`' for name in task.sets)}\n")
        parts.append(_setting(task))
        for scale in ("cpu", "paper"):
            parts += [_table(task, runs, labels, scale) for labels in task.fractions if labels != "all"]
        mine = [run for run in runs if run["task"] == task.name and run["scale"] == "cpu"]
        parts += [_curves(task, mine), _signals(task, mine), _by_kind(task, mine)]
    if DIAGNOSIS.exists():
        parts.append(DIAGNOSIS.read_text())
    parts.append(_hardware(runs))
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def paired(mine: dict[int, float], base: dict[int, float]) -> tuple[list[float], float, float]:
    """Differences on the seeds that both have, their mean, and the half width of its 95 % t interval (NaN below 2)."""
    differences = [mine[seed] - base[seed] for seed in sorted(set(mine) & set(base))]
    if not differences:
        return [], math.nan, math.nan
    mean = statistics.fmean(differences)
    n = len(differences)
    if n < 2:
        return differences, mean, math.nan
    return differences, mean, T_975[min(n - 1, len(T_975) - 1)] * statistics.stdev(differences) / math.sqrt(n)


def refuse_unfair(runs: Iterable[Run]) -> None:
    """Raises ValueError where runs of one table and seed differ in first weights, labelled batches, data or steps."""
    seen: dict[tuple[str, ...], tuple[str, Any]] = {}
    for run in runs:
        place = (run["task"], run["scale"], run["labels"], str(run["seed"]))
        shared = {k: v for k, v in run["settings"].items() if k not in ("method", "config")}
        facts = [run[k] for k in ("initial_weights_sha256", "labelled_batches_sha256", "data_sha256")] + [shared]
        key, before = seen.setdefault(place, (run["key"], facts))
        if before != facts:
            raise ValueError(f"{run['key']} and {key} do not share weights, labelled batches, data and settings")


def _table(task: Task, runs: Sequence[Run], labels: str, scale: str) -> str:
    mine = [r for r in runs if r["task"] == task.name and r["scale"] == scale and r["labels"] in (labels, "all")]
    refuse_unfair(mine)
    if not any(r["labels"] == labels for r in mine):
        return _not_run(task, labels, scale)
    of_row: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in mine:
        of_row[run["row"], run["labels"]].append(run)
    base = {r["seed"]: r["test"]["chosen"][task.metric] for r in of_row[BASE, labels]}
    others = [m for m in task.shown if m != task.metric]
    title = f"### Labels {labels}" + (", networks and lengths of the papers" if scale == "paper" else "")
    head = [
        "row",
        "labels",
        "seeds",
        f"{task.metric} chosen",
        "student",
        "teacher",
        *others,
        "difference to supervised (95 %)",
        "paper",
        "s a run",
    ]
    lines = [title + "\n", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    order = [(row, labels) for row in task.rows] + [(BASE, "all")]
    for row, fraction in order:
        found = sorted(of_row[row, fraction], key=lambda r: r["seed"])
        paper = PUBLISHED.get((task.name, row, fraction), "")
        if not found:
            if task.rows[row].remedy_of is None:
                lines.append(f"| {row} | {fraction} | not run |" + " |" * (len(head) - 5) + f" {paper} | |")
            continue
        values = {r["seed"]: r["test"]["chosen"][task.metric] for r in found}
        differences, mean, half = paired(values, base)
        gain = "" if (row, fraction) == (BASE, labels) else _difference(differences, mean, half)
        cells = [row, fraction, " ".join(str(r["seed"]) for r in found), _mean_sd(values.values())]
        cells += [_mean_sd(r["test"][net][task.metric] for r in found if net in r["test"]) for net in NETWORKS]
        cells += [_mean_sd(r["test"]["chosen"][m] for r in found) for m in others]
        cells += [gain, paper, f"{statistics.fmean(r['seconds']['wall'] for r in found):.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    seeds = " ".join(map(str, sorted({r["seed"] for r in mine}))) or "0 1 2"
    lines += ["", "Commands:", "", "```"]
    lines += [
        f"{_command(task, row, fraction, scale)} --seeds {seeds}"
        for row, fraction in order
        if of_row[row, fraction] or task.rows[row].remedy_of is None
    ]
    return "\n".join([*lines, "```"]) + "\n"


def _not_run(task: Task, labels: str, scale: str) -> str:
    rows = [row for row, what in task.rows.items() if what.remedy_of is None]
    what = "with the papers' networks and lengths, on a GPU" if scale == "paper" else "on two cores"
    commands = "\n".join(f"{_command(task, row, labels, scale)} --seeds 0 1 2" for row in rows)
    return f"### Labels {labels}, {what}: not run\n\n```\n{commands}\n```\n"


def _command(task: Task, row: str, labels: str, scale: str) -> str:
    command = f"{COMMAND} --task {task.name} --methods {row} --labels {labels}"
    return command + (" --scale paper --device cuda" if scale == "paper" else "")


def _setting(task: Task) -> str:
    shared = ", ".join(f"{key} {_plain(value)}" for key, value in task.shared.items())
    net = ", ".join(_plain(value) for value in task.net.values())
    size = f"images {task.resize_px} x {task.resize_px} px; " if task.resize_px else ""
    size += f"images at {task.shrink:g} of their size; " if task.shrink != 1 else ""
    rows = "\n".join(
        f"- `{name}`: {', '.join(f'{k} = {_plain(v)}' for k, v in row.config.items()) or 'defaults'}"
        + (f" ({row.why})" if row.why else "")
        for name, row in task.rows.items()
    )
    same = f"Network {net}, from random weights; {size}{shared}. The same for all rows."
    return f"{same} Settings of the methods:\n\n{rows}\n"


def _curves(task: Task, runs: Sequence[Run]) -> str:
    """Learning curves as text: the validation metric, mean over seeds, student and teacher."""
    of_row: dict[tuple[str, str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for point in run["validation"]:
            for net in NETWORKS:
                if net in point:
                    of_row[run["row"], run["labels"], net][point["t"]].append(point[net].get(task.metric, 0.0))
    if not of_row:
        return ""
    steps = sorted({t for curve in of_row.values() for t in curve})
    lines = [f"### Learning curves ({task.metric} on validation, mean over seeds)\n"]
    lines += ["| row | labels | network | " + " | ".join(map(str, steps)) + " | |", "|" + "---|" * (len(steps) + 4)]
    for (row, labels, net), curve in sorted(of_row.items()):
        means = [statistics.fmean(curve[t]) if t in curve else math.nan for t in steps]
        cells = " | ".join("" if math.isnan(m) else f"{100 * m:.1f}" for m in means)
        lines.append(f"| {row} | {labels} | {net} | {cells} | {_spark(means)} |")
    return "\n".join(lines) + "\n"


def _signals(task: Task, runs: Sequence[Run]) -> str:
    """Gradients, pseudo-labels against the hidden truth, and the training loss: what a diagnosis looks at."""
    of_row: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        of_row[run["row"], run["labels"]].append(run)
    if not of_row:
        return ""
    quality = sorted(
        {k for r in runs for p in r["validation"] for n in p if n in NETWORKS for k in p[n] if k.startswith("hidden_")}
    )
    head = [
        "row",
        "labels",
        "‖g‖ supervised",
        "‖g‖ unsupervised",
        "cosine",
        "training loss",
        "teacher − student",
        "chosen at",
        *[k.removeprefix("hidden_").replace("_", " ") for k in quality],
    ]
    lines = [
        "### Gradients and pseudo-labels\n",
        "Norms, and the supervised loss on the labelled batches: mean over the second half of the run. Teacher − "
        f"student: {task.metric}, test, each at its own best validation. Precision and recall: of the teacher (the "
        "student where there is none) at the end, on training images whose labels are hidden.\n",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for (row, labels), found in sorted(of_row.items()):
        late = [s["signals"] for r in found for s in r["signals"][len(r["signals"]) // 2 :]]
        norms = [
            _mean([s[k] for s in late if k in s], 3) for k in ("grad_supervised", "grad_unsupervised", "grad_cosine")
        ]
        points = [s for r in found for s in r["signals"][len(r["signals"]) // 2 :]]
        loss = _mean([sum(v for n, v in s["losses"].items() if n in SUPERVISED_TERMS) for s in points], 3)
        gaps = [
            r["test"]["teacher"][task.metric] - r["test"]["student"][task.metric]
            for r in found
            if "teacher" in r["test"]
        ]
        chosen = " ".join(f"{r['chosen']['iteration']}{r['chosen']['network'][0]}" for r in found)
        ends = [r["validation"][-1].get("teacher", r["validation"][-1]["student"]) for r in found]
        lines.append(
            "| "
            + " | ".join(
                [
                    row,
                    labels,
                    *norms,
                    loss,
                    _mean_sd(gaps),
                    chosen,
                    *[_mean([e[k] for e in ends if k in e], 3) for k in quality],
                ]
            )
            + " |"
        )
    return "\n".join(lines) + "\n"


def _by_kind(task: Task, runs: Sequence[Run]) -> str:
    kinds = sorted({kind for run in runs for kind in run["test_by_kind"]})
    if not kinds:
        return ""
    of_row: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        of_row[run["row"], run["labels"]].append(run)
    lines = [
        f"### By kind of image ({task.metric} of the chosen network, test)\n",
        "| row | labels | " + " | ".join(kinds) + " |",
        "|" + "---|" * (len(kinds) + 2),
    ]
    for (row, labels), found in sorted(of_row.items()):
        cells = [
            _mean_sd(r["test_by_kind"][k][task.metric] for r in found if task.metric in r["test_by_kind"].get(k, {}))
            for k in kinds
        ]
        lines.append(f"| {row} | {labels} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _hardware(runs: Sequence[Run]) -> str:
    if not runs:
        return "## Hardware and time\n\nNo run yet.\n"
    machines = sorted(
        {
            f"{r['machine']['gpu'] or r['machine']['cpu']}, {r['machine']['cores']} cores, "
            f"torch {r['versions']['torch']}, torchvision {r['versions']['torchvision']}"
            for r in runs
        }
    )
    hours = sum(r["seconds"]["wall"] for r in runs) / 3600
    codes = sorted({f"{r['commit'][:10]} (code {r['code_sha256'][:10]})" for r in runs})
    rows = ["| task | row | s an iteration | processor s an iteration | peak MB |", "|---|---|---|---|---|"]
    of_row: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        of_row[run["task"], run["row"]].append(run)
    for (task, row), found in sorted(of_row.items()):
        rows.append(
            f"| {task} | {row} | {_mean([r['seconds']['wall_iteration'] for r in found], 2)} | "
            f"{_mean([r['seconds']['cpu_iteration'] for r in found], 2)} | "
            f"{max(r['peak_memory_mb'] for r in found)} |"
        )
    listed = "\n".join(f"- {line}" for line in (*machines, *codes))
    return (
        f"## Hardware and time\n\n{len(runs)} runs, {hours:.1f} h of training. One thread a run.\n\n"
        f"{listed}\n\n" + "\n".join(rows) + "\n"
    )


def _difference(differences: Sequence[float], mean: float, half: float) -> str:
    if not differences:
        return ""
    each = ", ".join(f"{100 * d:+.1f}" for d in differences)
    interval = "" if math.isnan(half) else f" ± {100 * half:.1f}"
    return f"{100 * mean:+.1f}{interval} ({each})"


def _mean_sd(values: Iterable[float]) -> str:
    listed = list(values)
    if not listed:
        return ""
    sd = f" ± {100 * statistics.stdev(listed):.1f}" if len(listed) > 1 else ""
    return f"{100 * statistics.fmean(listed):.1f}{sd}"


def _mean(values: Sequence[float], digits: int) -> str:
    return f"{statistics.fmean(values):.{digits}g}" if values else ""


def _spark(values: Sequence[float]) -> str:
    known = [v for v in values if not math.isnan(v)]
    low, high = min(known), max(known)
    bars = "▁▂▃▄▅▆▇█"
    return "".join(
        " " if math.isnan(v) else bars[round(7 * (v - low) / (high - low)) if high > low else 0] for v in values
    )


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


NETWORKS = ("student", "teacher")

HEAD = """# Evidence on real images

Written by `python -m tests.benchmarks.evidence.table` from the JSON file of each run
(`tests/benchmarks/evidence/results/`); no number here is typed by hand but those in the column "paper".

What is compared with what (METHODS 2): same network and first weights a seed, same labelled batches in the same order
with the same augmentation, same steps, same schedule; the generator of this page refuses runs that differ in them. A
seed sets the labelled subset, the order of the data and the first weights. Checkpoint and network (student or teacher)
are chosen by validation alone, the test part is read once at the end. "chosen" is that network; "student" and "teacher"
are each at their own best validation. Values in percent, mean ± sample standard deviation over seeds; differences are
paired by seed, with the 95 % t interval of their mean and each seed's difference behind it. Three seeds make wide
intervals: read them as such.

These are small networks from random weights on two cores. They are no replication of the papers' absolute numbers
(column "paper": other data, pretrained networks, full length); what may be compared is the sign and rough size of the
difference to `supervised`.

## Parts

Images by image, with near-duplicates of one specimen in one part (`similar.py`, `make_splits.py`; ids in `splits/`).
Three rules find them, each with a control that counts what chance alone joins. An overlap search on
`dsb2018_stage1_train` found no more pairs than in mirrored images (at correlation 0.75: 526 against 465), so overlap
plays no part there; its images of one stain are one specimen here, which leaves two groups of histology: one in
training, one in test, none in validation.

```
{groups}
```

The sets are CC0 (`dsb2018_stage1_train`, `pap_edf`) and MIT (`bccd`). `bccd`: two boxes without area are left out; many
red cells have no box, so precision is a lower bound.
"""

if __name__ == "__main__":
    main()
