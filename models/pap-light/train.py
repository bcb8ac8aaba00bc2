"""Train the shipped model `pap-light` from nothing: synthetic slides, tiles, one supervised run. About an hour and a
half on two cores.

    python models/pap-light/train.py WORK_FOLDER

Killed and started again it goes on. The bundle it ends with is WORK_FOLDER/run; `evaluate.py` beside this file measures
it on slides that training never saw
and writes the card.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from cytopipe.cli.console import Session
from cytopipe.recipes import load_recipe
from cytopipe.steps.synth import synth
from cytopipe.steps.tile import tile
from cytopipe.steps.train import train
from cytopipe.tiles import TileConfig

RECIPE = "pap-light"
SEED = 1001  # evaluation uses seeds below 1000: they never meet

# name, slides, cells per mm², share of abnormal cells, part. Lesions are far commoner than in life: a detector must see
# them to learn them.
SETS = (
    ("lesions", 20, 300.0, 0.30, "train"),
    ("crowded", 14, 600.0, 0.20, "train"),
    ("usual", 14, 250.0, 0.08, "train"),
    ("kept-apart", 6, 350.0, 0.20, "val"),
)
SIZE_PX = (4096, 4096)


def main(work: Path) -> None:
    """Every stage in its own folder of `work`; each resumes by itself."""
    with Session() as io:
        work.mkdir(parents=True, exist_ok=True)
        rows = []
        for number, (name, slides, density, lesions, part) in enumerate(SETS):
            made = synth(
                work / "slides" / name,
                slides=slides,
                size=SIZE_PX,
                cells_per_mm2=density,
                lesion_fraction=lesions,
                seed=SEED + number,
                on_progress=io.progress,
                say=io.say,
            )
            rows += [(s.path, f"{name}-{s.slide_id}", f"{name}-{s.patient}", part, s.annotations) for s in made.slides]
        slide_list = work / "slides.csv"
        with slide_list.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "slide_id", "patient", "split", "annotations"))
            writer.writerows(
                [
                    [Path(path).resolve(), slide_id, patient, part, Path(truth).resolve()]
                    for path, slide_id, patient, part, truth in rows
                ]
            )
        section = load_recipe(RECIPE).recipe.tile
        config = TileConfig.model_validate(section.model_dump(exclude={"split"}))
        tile([slide_list], work / "store", config=config, on_progress=io.progress, say=io.say)
        result = train(
            "supervised",
            work / "store",
            out=work / "run",
            recipe=RECIPE,
            seed=SEED,
            on_progress=io.progress,
            say=io.say,
        )
        io.result(
            [f"bundle: {result.run}", *(f"{key} {value:.3f}" for key, value in sorted(result.metrics.items()))], result
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
