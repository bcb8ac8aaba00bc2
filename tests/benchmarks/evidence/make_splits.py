"""The parts of each set, and the labelled subsets: made once from the images and committed (splits/), so that a run
reads ids and decides nothing.

    python -m tests.benchmarks.evidence.make_splits --data ../shared/data

Writes for each set `splits/SET.csv` (id, group, kind, part), `splits/labelled.json` (task -> seed -> fraction -> ids)
and `splits/GROUPS.txt` (what the groups look like). Deterministic: chance comes from hashes of ids and seeds.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.evidence import similar

SPLITS = Path(__file__).with_name("splits")
PARTS = (("train", 0.7), ("test", 0.2), ("val", 0.1))
SETS = ("bccd", "dsb2018_stage1_train", "pap_edf")
SEEDS = range(5)
LABELLED = {  # task -> (sets, fractions, ascending: a smaller subset lies in each larger one)
    "semantic": (("dsb2018_stage1_train",), ("1/32", "1/16", "1/8")),
    "detection": (("bccd",), ("5%", "10%")),
    "instance": (("dsb2018_stage1_train", "pap_edf"), ("5%", "10%")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets (DATA.md)")
    data = parser.parse_args().data
    cv2.setNumThreads(1)
    made = {name: split_set(name, data / name / "images") for name in SETS}
    rows = {name: found for name, (found, _) in made.items()}
    SPLITS.mkdir(exist_ok=True)
    for name, found in rows.items():
        with (SPLITS / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("id", "group", "kind", "part"))
            writer.writerows(found)
    report = "\n".join(text for _, text in made.values())
    (SPLITS / "GROUPS.txt").write_text(report + "\n")
    print(report)
    (SPLITS / "labelled.json").write_text(json.dumps(labelled_subsets(rows), indent=1) + "\n")


def split_set(name: str, folder: Path) -> tuple[list[tuple[str, int, str, str]], str]:
    """(id, group, kind, part) of each image of a set, by id; and what the groups look like, in words."""
    paths = sorted(folder.iterdir())
    images = [_read(path) for path in paths]
    coloured = np.array([similar.is_coloured(image) for image in images])
    rules = {"borders go on": similar.neighbours(images)}
    if name == "dsb2018_stage1_train":
        # No overlap rule here: small bright nuclei on black fit one another by chance, as often in mirrored images.
        rules["one stain"] = similar.one_stain(images, coloured)
        kinds = [
            f"{'histology' if c else 'fluorescence'}-{image.shape[1]}x{image.shape[0]}"
            for c, image in zip(coloured, images, strict=True)
        ]
    else:
        rules["overlap"] = similar.overlaps(images)
        kinds = [{"bccd": "blood", "pap_edf": "pap"}[name]] * len(images)
    group = similar.groups(np.logical_or.reduce([rule.joined for rule in rules.values()]))
    part = assign(group, kinds)
    ids = [path.stem for path in paths]
    report = _report(name, ids, group, kinds, part, rules)
    return list(zip(ids, group.tolist(), kinds, part, strict=True)), report


def assign(group: NDArray[np.int64], kinds: Sequence[str]) -> list[str]:
    """The part of each image: groups of one kind, largest first, each to the part that lacks the largest share of what
    it should hold. A group that spans kinds counts for that of its first image.
    """
    members: dict[int, list[int]] = {}
    for index, number in enumerate(group.tolist()):
        members.setdefault(number, []).append(index)
    part = [""] * len(kinds)
    for kind in sorted(set(kinds)):
        mine = [m for m in members.values() if kinds[m[0]] == kind]
        total = sum(map(len, mine))
        held = dict.fromkeys((name for name, _ in PARTS), 0)
        for indices in sorted(mine, key=lambda m: (-len(m), _hash("group", kind, m[0]))):
            best = max(PARTS, key=lambda p: round(1 - held[p[0]] / (p[1] * total), 9))[0]
            held[best] += len(indices)
            for index in indices:
                part[index] = best
    return part


def labelled_subsets(rows: dict[str, list[tuple[str, int, str, str]]]) -> dict[str, dict[str, dict[str, list[str]]]]:
    """task -> seed -> fraction -> ids of the training part; each kind of image has its share, and at least one."""
    result: dict[str, dict[str, dict[str, list[str]]]] = {}
    for task, (sets, fractions) in LABELLED.items():
        train = [(i, kind.split("-")[0]) for name in sets for i, _, kind, part in rows[name] if part == "train"]
        result[task] = {str(seed): {f: subset(train, as_number(f), task, seed) for f in fractions} for seed in SEEDS}
    return result


def subset(train: Sequence[tuple[str, str]], fraction: float, task: str, seed: int) -> list[str]:
    """The labelled ids: the first of each kind in an order drawn from (task, seed), so that subsets are nested."""
    chosen: list[str] = []
    for kind in sorted({kind for _, kind in train}):
        ids = sorted((i for i, k in train if k == kind), key=lambda i: _hash(task, seed, i))
        chosen += ids[: max(1, round(fraction * len(ids)))]
    return sorted(chosen)


def as_number(fraction: str) -> float:
    """'1/32' or '5%' as a number."""
    if fraction.endswith("%"):
        return float(fraction[:-1]) / 100
    above, _, below = fraction.partition("/")
    return float(above) / float(below or 1)


def _report(
    name: str,
    ids: Sequence[str],
    group: NDArray[np.int64],
    kinds: Sequence[str],
    part: Sequence[str],
    rules: dict[str, similar.Found],
) -> str:
    sizes = Counter(group.tolist())
    lines = [f"{name}: {len(ids)} images in {len(sizes)} groups; in each part {dict(Counter(part))}"]
    lines += [f"  {rule}: {found.hits} pairs (control {found.control})" for rule, found in rules.items()]
    lines.append(f"  images a group -> groups: {dict(sorted(Counter(sizes.values()).items()))}")
    for number, size in [(n, size) for n, size in sizes.most_common(4) if size > 1]:
        members = [i[:20] for i, g in zip(ids, group.tolist(), strict=True) if g == number]
        lines.append(f"  group {number}, {size} images: {', '.join(members[:4])}{' …' if size > 4 else ''}")
    for kind in sorted(set(kinds)):
        lines.append(f"  {kind}: {dict(Counter(p for p, k in zip(part, kinds, strict=True) if k == kind))}")
    return "\n".join(lines)


def _hash(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def _read(path: Path) -> NDArray[np.uint8]:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return np.asarray(cv2.cvtColor(pixels[:, :, :3], cv2.COLOR_BGR2RGB), np.uint8)


if __name__ == "__main__":
    main()
