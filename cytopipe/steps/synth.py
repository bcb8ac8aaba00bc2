"""`synth`: synthetic slides with their exact truth, in a folder that `tile`, `train` and `evaluate` read as it is.

    DIR/synth-0000.tif       pyramidal JPEG TIFF as Aperio's scanners write it
    DIR/synth-0000.geojson   its truth: QuPath annotations, a polygon a cell and a nucleus
    DIR/slides.csv           path, slide_id, patient, annotations; paths are relative to the list
    DIR/run.jsonl            the journal; a slide is one unit

Slide k depends on the parameters and k only: asking for more slides later leaves the first ones as they are.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytopipe.core.errors import RunError, UserError, refuse_unknown
from cytopipe.core.files import FolderLock, disk_error, write_text
from cytopipe.core.journal import Journal, open_journal
from cytopipe.core.progress import OnProgress, Say, silent, unsaid
from cytopipe.core.resources import cores
from cytopipe.core.seeds import seed_from
from cytopipe.formats.qupath import QuPathWriter
from cytopipe.slides.writer import PyramidWriter
from cytopipe.synth import SETTING_NAMES, Renderer, Scene, annotations_of

LIST_NAME = "slides.csv"
BYTES_PER_PX = 0.25  # of a finished slide, an upper estimate: crowded slides took 0.15 (JPEG quality 80)
OBJECTIVE_TIMES_MPP = 10.0  # a 40x objective gives 0.25 µm/px on the scanners that we imitate


@dataclass(frozen=True, slots=True)
class SynthSlide:
    """One slide on disk: its files, and how many cells (by class) and nuclei its truth holds."""

    slide_id: str
    patient: str
    path: Path
    annotations: Path
    cells: dict[str, int]
    nuclei: int


@dataclass(frozen=True, slots=True)
class SynthResult:
    """The slides in their order, and the list of them that other commands take."""

    slides: list[SynthSlide]
    slide_list: Path


def synth(
    out: Path,
    *,
    slides: int = 1,
    size: tuple[int, int] = (8192, 8192),
    mpp: float = 0.25,
    cells_per_mm2: float = 300.0,
    lesion_fraction: float = 0.06,
    setting: str = "light",
    seed: int = 0,
    workers: int | None = None,
    overwrite: bool = False,
    on_progress: OnProgress = silent,
    say: Say = unsaid,
) -> SynthResult:
    """Write synthetic slides and their truth into `out`.

    size             width and height, level-0 px
    mpp              µm/px of level 0
    cells_per_mm2    mean density of cells; slides vary around it
    lesion_fraction  share of abnormal cells among them, 0 to 1
    setting          light, dark, pale, thick, bloody, badly-lit, marks; see `synth.setting`
    workers          drawing threads; None: one a core. They do not change the bytes

    The same call resumes an interrupted one and ends with the same bytes; more slides may be asked for later.
    Raises UserError for values out of range and for a folder that holds something else, RunError for a full disk.
    """
    _check(slides, size, mpp, cells_per_mm2, lesion_fraction, setting)
    _check_space(out, slides, size)
    parameters: dict[str, Any] = {
        "size": list(size),
        "mpp": mpp,
        "cells_per_mm2": cells_per_mm2,
        "lesion_fraction": lesion_fraction,
        "seed": seed,
    }
    if setting != "light":  # a folder from before there were settings is still one of `light`
        parameters["setting"] = setting
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    done: list[SynthSlide] = []
    with FolderLock(out):
        journal = open_journal(out, "synth", parameters, overwrite=overwrite)
        plural = "s" * (slides > 1)
        say(f"{slides} slide{plural} of {size[0]} x {size[1]} px at {mpp:g} µm/px, {cells_per_mm2:g} cells per mm²")
        for number in range(slides):
            slide_id = _slide_id(number)
            if not journal.is_done(slide_id):
                scene = Scene(
                    *size,
                    mpp=mpp,
                    seed=seed_from(seed, "synth", number),
                    cells_per_mm2=cells_per_mm2,
                    lesion_fraction=lesion_fraction,
                    setting=setting,
                )
                _write_slide(
                    out,
                    slide_id,
                    f"patient-{seed}-{number:04d}",
                    scene,
                    journal,
                    (number, slides),
                    workers or cores(),
                    on_progress,
                )
            done.append(_slide(out, slide_id, journal.facts(slide_id)))
        write_text(out / LIST_NAME, _list_text(done))
    return SynthResult(done, out / LIST_NAME)


def _check(
    slides: int, size: Sequence[int], mpp: float, cells_per_mm2: float, lesion_fraction: float, setting: str
) -> None:
    refuse_unknown([setting], SETTING_NAMES, "setting")
    if slides < 1:
        raise UserError(f"{slides} slides", where="slides", fix="1 or more")
    if min(size) < 64 or max(size) > 1_000_000:
        raise UserError(f"{size[0]} x {size[1]} px", where="size", fix="both sides from 64 to 1,000,000 px")
    if not 0.1 <= mpp <= 2:
        raise UserError(f"{mpp:g} µm/px", where="mpp", fix="from 0.1 to 2; scanners give 0.25 (40x) or 0.5 (20x)")
    if not 0 <= cells_per_mm2 <= 2000:
        raise UserError(f"{cells_per_mm2:g} cells per mm²", where="cells-per-mm2", fix="from 0 to 2000")
    if not 0 <= lesion_fraction <= 1:
        raise UserError(f"{lesion_fraction:g}", where="lesion-fraction", fix="a ratio from 0 to 1")


def _check_space(out: Path, slides: int, size: tuple[int, int]) -> None:
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    missing = sum(not (out / f"{_slide_id(number)}.tif").exists() for number in range(slides))
    needed, free = int(missing * size[0] * size[1] * BYTES_PER_PX), shutil.disk_usage(existing).free
    if needed > free:
        raise RunError(
            f"about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free",
            where=str(out),
            fix="choose another --out",
        )


def _write_slide(
    out: Path,
    slide_id: str,
    patient: str,
    scene: Scene,
    journal: Journal,
    place: tuple[int, int],
    workers: int,
    on_progress: OnProgress,
) -> None:
    """Both files of a slide, then its line in the journal.

    `place`: how many slides came before, and how many there are.
    """
    number, slides = place
    counts: Counter[str] = Counter()
    rows = 0
    writer = PyramidWriter(
        out / f"{slide_id}.tif",
        scene.width,
        scene.height,
        mpp=scene.mpp,
        objective=OBJECTIVE_TIMES_MPP / scene.mpp,
        facts={"Title": f"{slide_id} (synthetic)", "User": "cytopipe synth"},
        workers=workers,
    )
    with QuPathWriter(out / f"{slide_id}.geojson") as truth, writer:
        for band, blocks in Renderer(scene).bands(workers):
            writer.write_band(band)
            for block in blocks:
                for annotation in annotations_of(block, slide_id, patient, scene.width, scene.height):
                    truth.add(annotation)
                    counts[annotation.class_name] += 1
            rows += len(band)
            on_progress(number * scene.height + rows, slides * scene.height, "rows")
    nuclei = counts.pop("nucleus", 0)
    journal.finish(slide_id, patient=patient, cells=dict(sorted(counts.items())), nuclei=nuclei)


def _slide_id(number: int) -> str:
    return f"synth-{number:04d}"


def _slide(out: Path, slide_id: str, facts: dict[str, Any]) -> SynthSlide:
    return SynthSlide(
        slide_id,
        facts["patient"],
        out / f"{slide_id}.tif",
        out / f"{slide_id}.geojson",
        dict(facts["cells"]),
        facts["nuclei"],
    )


def _list_text(slides: list[SynthSlide]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "slide_id", "patient", "annotations"])
    table.writerows([s.path.name, s.slide_id, s.patient, s.annotations.name] for s in slides)
    return text.getvalue()
