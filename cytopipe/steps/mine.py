"""`mine-unlabeled`: windows of unannotated slides that a model finds worth learning from, as an unlabelled tile store.

Two passes: the model looks at each slide and every window gets a score, kept on disk; then the windows of all slides
are chosen together, and cut. So a budget over all slides does not depend on their order, and a broken run looks at no
slide twice.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from cytopipe._version import __version__
from cytopipe.core.errors import CytopipeError, DiskError, RunError, UserError
from cytopipe.core.progress import OnProgress, Say, silent, unsaid
from cytopipe.core.resources import cores
from cytopipe.mine import (
    Candidates,
    Finder,
    Guarded,
    MineConfig,
    Picked,
    Strategy,
    Windows,
    choose,
    cut_picked,
    find_candidates,
    guard,
    known_slides,
    load_finder,
    parse_mixture,
    read_candidates,
    write_candidates,
)
from cytopipe.report.store_page import write_store_page
from cytopipe.slides import AS_STORED, MppView, Showing, Slide, SlideEntry, find_foreground, list_slides, open_slide
from cytopipe.tiles import MadeBy, SlideRow, StoreInfo, StoreWriter, TileStore, fingerprint_of, open_writer

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MineResult:
    """What stands in the store after the run.

    slides    a row a slide that was mined or failed, by slide id
    skipped   (slide_id, reason) of slides that the leak guard kept out
    picked    strategy -> windows it chose
    resumed   slides that the model did not have to look at again
    """

    store: Path
    model: str
    slides: tuple[SlideRow, ...]
    skipped: tuple[tuple[str, str], ...]
    picked: dict[Strategy, int]
    resumed: int

    @property
    def failed(self) -> list[tuple[str, str]]:
        """(slide_id, reason) of the slides that gave no windows, or lost some."""
        return [(row.slide_id, row.error) for row in self.slides if row.error]


@dataclass(frozen=True, slots=True)
class _How:
    """What is the same for every slide of the run."""

    finder: Finder
    windows: Windows
    mpp_override: float | None
    reader: str
    showing: Showing
    background: Literal["auto", "light", "dark"]
    force: bool
    workers: int
    say: Say


def mine_unlabeled(
    slides: Sequence[str | Path],
    out: str | Path,
    *,
    model: str | Path | None = None,
    config: MineConfig | None = None,
    exclude: str | Path | None = None,
    allow_train_patients: bool = False,
    device: str = "auto",
    finder: Finder | None = None,
    mpp_override: float | None = None,
    reader: str = "auto",
    showing: Showing = AS_STORED,
    background: Literal["auto", "light", "dark"] = "auto",
    force: bool = False,
    workers: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    recipe_hash: str | None = None,
    on_progress: OnProgress = silent,
    say: Say = unsaid,
) -> MineResult:
    """Mine slides into the unlabelled tile store `out`; run again it resumes, and takes up slides new on the list.

    slides                files, folders, globs, or a CSV (cytopipe.slides.list_slides)
    model                 a detection or instance bundle, by name or path; None: the shipped one
    exclude               a labelled store: slides of its patients are skipped, see mine/guard.py
    allow_train_patients  admit the patients of whom all slides are in that store's train part
    finder                a model that is loaded already, instead of `model`
    showing               how the slides' samples become RGB: colour profile, plane of a stack, channels
    background            what stands behind the cells; "auto": judged from each slide's pixels
    force                 mine slides coarser than half of the resolution asked for
    seed                  of what is picked at random
    Raises UserError before anything is written when an argument, the list or a lone slide is at fault; RunError when a
    lone slide fails later, or no window is chosen at all. One failing slide of several is a row in the result.
    """
    out, config = Path(out), config or MineConfig.model_validate({})
    shares = parse_mixture(config.select)
    entries = list_slides(slides, say=say)
    fingerprints, unreadable = _fingerprints(entries)
    known = known_slides(TileStore(exclude)) if exclude is not None else []
    guarded = guard(entries, fingerprints, known, allow_train_patients=allow_train_patients)
    _say_guarded(guarded, exclude is not None, say)
    finder = finder or load_finder(model, device=device)
    windows = Windows(config.tile_px or finder.tile_px, config.mpp or finder.mpp, config.place, config.min_foreground)
    how = _How(finder, windows, mpp_override, reader, showing, background, force, workers or cores(), say)
    if len(entries) == 1:
        _check(entries[0], how)
    info = StoreInfo.model_validate(
        {
            "tile_px": windows.tile_px,
            "mpp": windows.mpp,
            "overlap_px": 0,
            "edge": "shift",
            "codec": config.codec,
            "quality": config.quality,
            "made_by": MadeBy(command="mine-unlabeled", version=__version__, recipe_hash=recipe_hash),
        }
    )
    parameters = config.model_dump() | {
        "tile_px": windows.tile_px,
        "mpp": windows.mpp,
        "model": finder.sha256,
        "exclude": str(Path(exclude).resolve()) if exclude is not None else None,
        "allow_train_patients": allow_train_patients,
        "mpp_override": mpp_override,
        "reader": reader,
        "showing": asdict(showing),
        "background": background,
        "seed": seed,
    }
    most = min(config.budget_per_slide * len(guarded.admitted), config.budget or 1 << 62)
    say(
        f"{len(guarded.admitted)} slides, model {finder.name} at {finder.mpp:g} µm/px; then at most {most} windows of "
        f"{windows.tile_px} px at {windows.mpp:g} µm/px, into {out}"
    )

    with open_writer(out, info, parameters, slides=len(entries), overwrite=overwrite) as writer:
        run = _Run(writer, how, fingerprints, dict(unreadable), alone=len(entries) == 1)
        run.keep_out(entries, guarded)
        candidates = run.look(guarded.admitted, on_progress)
        picked = choose(
            candidates,
            windows.tile_px,
            shares,
            budget_per_slide=config.budget_per_slide,
            budget=config.budget,
            min_suspicion=config.min_suspicion,
            max_overlap_fraction=config.max_overlap_fraction,
            seed=seed,
        )
        if candidates and not picked:
            raise RunError(
                f"no window of {len(candidates)} slides qualifies for --select {config.select}",
                fix="--select random takes windows without findings",
            )
        rows = run.cut(guarded.admitted, picked, on_progress)
        writer.finish()
        write_store_page(TileStore(out))
    count = Counter(window.strategy for window in picked)
    return MineResult(out, finder.name, tuple(rows), guarded.refused, dict(count), run.resumed)


class _Run:
    """Both passes over the admitted slides; what goes wrong with one of several becomes its row."""

    def __init__(
        self, writer: StoreWriter, how: _How, fingerprints: dict[str, str], errors: dict[str, str], *, alone: bool
    ) -> None:
        self._writer, self._how, self._fingerprints, self._alone = writer, how, fingerprints, alone
        self._errors = errors  # slide_id -> why the slide gives no tiles
        self.resumed = 0

    def keep_out(self, entries: Sequence[SlideEntry], guarded: Guarded) -> None:
        """List what the guard refused in slides.parquet; tiles that an earlier run mined there leave the store."""
        reasons = dict(guarded.refused)
        for entry in entries:
            if entry.slide_id in reasons:
                self._writer.fail_slide(_row_of(entry, f"kept out: {reasons[entry.slide_id]}"))

    def look(self, entries: Sequence[SlideEntry], on_progress: OnProgress) -> list[Candidates]:
        """The scored windows of every slide that can be read."""
        found = []
        for done, entry in enumerate(entries):
            on_progress(done, len(entries), "slides")
            candidates = self._or_noted(entry, partial(self._candidates, entry, on_progress))
            if candidates is not None:
                found.append(candidates)
        on_progress(len(entries), len(entries), "slides")
        return found

    def cut(self, entries: Sequence[SlideEntry], picked: Sequence[Picked], on_progress: OnProgress) -> list[SlideRow]:
        """Store the windows picked; a row a slide, by slide id."""
        of_slide: dict[str, list[Picked]] = {}
        for window in picked:
            of_slide.setdefault(window.slide_id, []).append(window)
        rows, done = [], 0
        for entry in sorted(entries, key=lambda entry: entry.slide_id):
            mine = of_slide.get(entry.slide_id, [])
            row = self._or_noted(entry, partial(self._store, entry, mine))
            if row is None:
                row = _row_of(entry, self._errors[entry.slide_id])
                self._writer.fail_slide(row)
            rows.append(row)
            done += len(mine)
            on_progress(done, len(picked), "tiles")
        return rows

    def _or_noted(self, entry: SlideEntry, work: Callable[[], T]) -> T | None:
        """What `work` returns; None, the reason noted, for a slide that fails or has failed and is not the only one."""
        if entry.slide_id in self._errors:
            return None
        try:
            return work()
        except DiskError:  # no other slide would fare better
            raise
        except Exception as error:  # whatever befalls one slide must not cost the night's other slides
            if self._alone:
                raise
            log.exception("slide %s", entry.slide_id)
            reason = str(error) if isinstance(error, CytopipeError) else f"{type(error).__name__}: {error}"
        self._how.say(f"{entry.slide_id} failed: {reason}")
        self._errors[entry.slide_id] = reason
        return None

    def _facts(self, entry: SlideEntry) -> dict[str, Any]:
        """What a slide's windows depend on beside the parameters of the run."""
        return {"fingerprint": self._fingerprints[entry.slide_id], "mpp": entry.mpp}

    def _candidates(self, entry: SlideEntry, on_progress: OnProgress) -> Candidates:
        how = self._how
        kept = read_candidates(self._writer.folder, entry.slide_id, self._facts(entry))
        if kept is not None:
            self.resumed += 1
            return kept
        with _open(entry, how) as slide:
            candidates = find_candidates(
                slide,
                entry.slide_id,
                how.finder,
                how.windows,
                background=how.background,
                force=how.force,
                on_progress=on_progress,
                say=how.say,
            )
        write_candidates(self._writer.folder, candidates, self._facts(entry))
        return candidates

    def _store(self, entry: SlideEntry, picked: Sequence[Picked]) -> SlideRow:
        row = _row_of(entry)
        chosen = repr([(window.x, window.y, window.score, window.strategy) for window in picked])
        facts = self._facts(entry) | {"patient": row.patient, "windows": hashlib.sha256(chosen.encode()).hexdigest()}
        if self._writer.is_done(entry.slide_id, facts):
            return self._writer.slide_row(entry.slide_id)
        how = self._how
        with _open(entry, how) as slide:
            view = MppView(slide, how.windows.mpp, force=how.force)
            foreground = find_foreground(slide, how.background)
            row = row.of_slide(slide, foreground, self._fingerprints[entry.slide_id])
            tiles = cut_picked(
                picked, view, foreground, self._writer.info, model_sha256=how.finder.sha256, workers=how.workers
            )
            return self._writer.add_slide(row, tiles, [], facts)


def _fingerprints(entries: Sequence[SlideEntry]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """slide_id -> fingerprint, and (slide_id, reason) of files that cannot be read."""
    fingerprints, unreadable = {}, []
    for entry in entries:
        try:
            fingerprints[entry.slide_id] = fingerprint_of(entry.path)
        except OSError as error:
            unreadable.append((entry.slide_id, f"{entry.path} cannot be read ({error.strerror})"))
    if unreadable and len(entries) == 1:
        raise UserError(unreadable[0][1])
    return fingerprints, unreadable


def _say_guarded(guarded: Guarded, has_store: bool, say: Say) -> None:
    """Say what the guard decided. Raises UserError when it admits no slide."""
    for slide_id, reason in guarded.refused:
        say(f"{slide_id} is kept out: {reason}")
    if not guarded.admitted:
        raise UserError(
            f"no slide is left: {len(guarded.refused)} are kept out", fix="give other slides, or --allow-train-patients"
        )
    if not has_store:
        say("without --exclude nothing keeps slides of validation or test patients out")
    if guarded.without_patient:
        say(
            f"warning: the patients of {guarded.without_patient} slides are unknown: only their ids and files were "
            "compared with the labelled store; a column patient in the slide list closes the gap"
        )


def _check(entry: SlideEntry, how: _How) -> None:
    """Open a lone slide before anything is written: what is wrong with it is raised here."""
    with _open(entry, how) as slide:
        for view in (MppView(slide, mpp, force=how.force) for mpp in (how.finder.mpp, how.windows.mpp)):
            if view.warning:
                how.say(f"warning: {entry.slide_id}: {view.warning}")


def _open(entry: SlideEntry, how: _How) -> Slide:
    mpp_override = entry.mpp or how.mpp_override
    return open_slide(entry.path, reader=how.reader, mpp_override=mpp_override, showing=how.showing)


def _row_of(entry: SlideEntry, error: str | None = None) -> SlideRow:
    """The row of a slide before it was opened. Mined windows are `train`: the guard keeps the other parts out."""
    patient = entry.patient or entry.slide_id
    path, stratum, diagnosis = str(entry.path), entry.stratum, entry.diagnosis
    return SlideRow(entry.slide_id, patient, "train", path, stratum=stratum, diagnosis=diagnosis, error=error)
