"""`cytopipe mine-unlabeled`: windows of unannotated slides that are worth learning from."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from cytopipe.cli import options
from cytopipe.cli.console import Session, table
from cytopipe.cli.options import option


class Place(StrEnum):
    """Where windows by suspicion lie."""

    centred = "centred"
    grid = "grid"


def command(
    slides: options.Slides,
    out: options.Out,
    model: options.Model = None,
    exclude: Annotated[
        Path | None, option("--exclude", "labelled tile store whose patients are kept out", metavar="STORE")
    ] = None,
    allow_train_patients: Annotated[
        bool, option("--allow-train-patients", "admit the patients of that store's train part")
    ] = False,
    select: Annotated[
        str | None,
        option("--select", "score, threshold, random, or e.g. score=0.7,random=0.3", metavar="STRATEGY", shown="score"),
    ] = None,
    min_suspicion: Annotated[
        float | None,
        option("--min-suspicion", "least score of windows chosen by threshold", metavar="S", min=0, max=1, shown="0.5"),
    ] = None,
    budget_per_slide: Annotated[
        int | None, option("--budget-per-slide", "most windows of a slide", metavar="N", min=1, shown="100")
    ] = None,
    budget: Annotated[
        int | None, option("--budget", "most windows of all slides together", metavar="N", min=1, shown="no limit")
    ] = None,
    place: Annotated[
        Place | None, option("--place", "windows centred on a finding, or of the grid", shown="centred")
    ] = None,
    mpp: Annotated[float | None, options.mpp_option("the model's")] = None,
    tile_px: Annotated[int | None, options.tile_px_option("the model's")] = None,
    mpp_override: options.MppOverride = None,
    reader: options.Reader = "auto",
    icc: options.Icc = options.IccChoice.off,
    z: options.Z = None,
    channels: options.Channels = None,
    background: options.Background = options.BackgroundChoice.auto,
    force: options.Force = False,
    device: options.Device = "auto",
    workers: options.Workers = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Let a model look at unannotated slides, and store the windows it finds most suspicious as an unlabelled store."""
    with Session(json=json, quiet=quiet, debug=debug) as io:
        from cytopipe.mine.config import mine_config
        from cytopipe.slides import showing_of
        from cytopipe.steps.mine import mine_unlabeled

        config = mine_config(
            {
                "select": select,
                "min_suspicion": min_suspicion,
                "budget_per_slide": budget_per_slide,
                "budget": budget,
                "place": place and place.value,
                "mpp": mpp,
                "tile_px": tile_px,
            }
        )
        result = mine_unlabeled(
            slides,
            out,
            model=model,
            config=config,
            exclude=exclude,
            allow_train_patients=allow_train_patients,
            device=device,
            mpp_override=mpp_override,
            reader=reader,
            showing=showing_of(icc.value, z, channels),
            background=background.value,
            force=force,
            workers=workers,
            seed=seed,
            overwrite=overwrite,
            on_progress=io.progress,
            say=io.say,
        )
        rows = [(row.slide_id, row.patient, row.tiles_kept) for row in result.slides if not row.error]
        kept_out = [f"{len(result.skipped)} slides kept out"] if result.skipped else []
        chosen = ", ".join(f"{count} by {strategy}" for strategy, count in result.picked.items()) or "none"
        io.result(
            [
                *table(("slide", "patient", "windows"), rows),
                *kept_out,
                f"windows chosen: {chosen}; written to {out}",
                f"next: cytopipe train --method dual-alignment --labeled STORE --unlabeled {out} --out RUN",
            ],
            result,
        )
        io.failures(result.failed, total=len(result.slides))
