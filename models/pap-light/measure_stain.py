"""How the slides look that `pap-light` was trained on: glass and density for `cytopipe infer --stain normalise`.

    python models/pap-light/measure_stain.py WORK_FOLDER

Makes the first two slides of each training set of `train.py` (they depend on the seed alone) and writes the medians
into model.toml beside this file.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
from train import SEED, SETS, SIZE_PX

from cytopipe.cli.console import Session
from cytopipe.core.files import write_text
from cytopipe.infer.stain import look_of
from cytopipe.nets import load_bundle
from cytopipe.slides import MppView, find_foreground, open_slide
from cytopipe.steps.synth import synth

SLIDES = 2  # of each set
MODEL = Path(__file__).with_name("model.toml")


def main(work: Path) -> None:
    """Measure, and write stain_glass and stain_density."""
    mpp = load_bundle(MODEL.parent).spec.mpp
    looks = []
    with Session() as io:
        for number, (name, _, density, lesions, part) in enumerate(SETS):
            if part != "train":
                continue
            made = synth(
                work / name,
                slides=SLIDES,
                size=SIZE_PX,
                cells_per_mm2=density,
                lesion_fraction=lesions,
                seed=SEED + number,
                on_progress=io.progress,
                say=io.say,
            )
            for entry in made.slides:
                with open_slide(entry.path) as slide:
                    looks.append(look_of(MppView(slide, mpp), find_foreground(slide)))
        lines = {
            "stain_glass": np.median([look.glass for look in looks], axis=0).round(1).tolist(),
            "stain_density": np.median([look.density for look in looks], axis=0).round(4).tolist(),
        }
        text = MODEL.read_text()
        for key, value in lines.items():
            text = re.sub(rf"^{key} = .*\n", "", text, flags=re.MULTILINE)
            text = text.replace("\nweights_sha256", f"\n{key} = {value}\nweights_sha256", 1)
        write_text(MODEL, text)
        io.result([f"{key} = {value}" for key, value in lines.items()], lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
