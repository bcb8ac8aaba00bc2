"""`evaluate`: compare located objects with annotations, and write the numbers down."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytopipe.core.errors import CytopipeError, RunError, UserError, nearest_fix
from cytopipe.core.files import FolderLock, disk_error, write_json
from cytopipe.core.journal import open_journal
from cytopipe.core.progress import OnProgress, Say, silent, unsaid

if TYPE_CHECKING:
    from cytopipe.evaluate import Evaluation, Located, Truth, TruthFiles, TruthStore
    from cytopipe.formats.qupath import Frame

FILE_NAME = "evaluation.json"
FOLDER_NAME = "evaluation"


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """What `evaluate` found.

    evaluation   the tables
    parameters   what they depend on
    failed       (slide_id, reason) of slides that could not be read
    out          the folder that holds evaluation.json
    """

    evaluation: Evaluation
    parameters: dict[str, Any]
    failed: tuple[tuple[str, str], ...]
    out: Path


def evaluate(
    results: Path,
    truth: Path,
    *,
    out: Path | None = None,
    iou: float = 0.5,
    score_threshold: float = 0.0,
    frame: Frame = "bounds",
    roi: str | None = None,
    split: str | None = None,
    overwrite: bool = False,
    on_progress: OnProgress = silent,
    say: Say = unsaid,
) -> EvaluateResult:
    """Measure located objects against a truth, and write evaluation.json.

    results          the results folder of one slide or of several, or a QuPath GeoJSON
    truth            a GeoJSON, a folder of <slide_id>.geojson, or a labelled tile store
    out              default: `evaluation` in the results folder, beside a GeoJSON
    iou              box IoU at which a result reaches a true object, in (0, 1]
    score_threshold  results of a lower score are left out of the counts (not of the average precision)
    frame, roi, split   see `evaluate.open_truth`; the frame is also that of RESULTS where it is a GeoJSON
    Raises UserError when nothing can be compared; a slide of several that cannot be read stands in `failed`.
    """
    from cytopipe.evaluate import evaluate_slides, open_truth
    from cytopipe.evaluate.located import one_class_list

    if not 0 < iou <= 1 or not 0 <= score_threshold <= 1:
        raise UserError(
            f"--iou {iou:g}, --score-threshold {score_threshold:g}", fix="both lie between 0 and 1, the IoU above 0"
        )
    folders = _results_at(results)
    source = open_truth(truth, frame=frame, roi=roi, split=split)
    pairs, failed = _read(folders, source, frame, on_progress, say)
    classes = one_class_list([located for located, _ in pairs])
    evaluation = evaluate_slides(pairs, classes, iou=iou, score_threshold=score_threshold)
    for line in _remarks(pairs, evaluation):
        say(line)

    parameters = {
        "results": str(results.resolve()),
        "truth": str(truth.resolve()),
        "iou": iou,
        "score_threshold": score_threshold,
    }
    parameters |= {"frame": frame, "roi": roi, "split": getattr(source, "split", None)}
    out = out or (results.parent / f"{results.stem}-{FOLDER_NAME}" if results.is_file() else results / FOLDER_NAME)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    with FolderLock(out):
        open_journal(out, "evaluate", parameters, overwrite=overwrite)
        document = {"parameters": parameters, **dataclasses.asdict(evaluation), "failed": failed}
        write_json(out / FILE_NAME, _without_nan(document))
    return EvaluateResult(evaluation, parameters, tuple(failed), out)


def _results_at(results: Path) -> list[Path]:
    from cytopipe.formats.results import find_results

    if results.is_file():
        return [results]
    if not results.is_dir():
        raise UserError("no such file or folder", where=str(results), fix="give the --out of infer, or a GeoJSON")
    return find_results(results)


def _read(
    folders: list[Path], source: TruthFiles | TruthStore, frame: Frame, on_progress: OnProgress, say: Say
) -> tuple[list[tuple[Located, Truth]], list[tuple[str, str]]]:
    """Pairs of what was located and what is true, and the slides that could not be read. UserError without any pair."""
    from cytopipe.evaluate import TruthFiles, read_located

    single_file = source.only if isinstance(source, TruthFiles) else None
    if single_file is not None and len(folders) > 1:
        raise UserError(
            f"one truth for the results of {len(folders)} slides",
            where=str(single_file),
            fix="give a folder of SLIDE_ID.geojson",
        )
    known = source.slides()
    pairs: list[tuple[Located, Truth]] = []
    failed: list[tuple[str, str]] = []
    without: list[str] = []
    for done, folder in enumerate(folders):
        on_progress(done, len(folders), "slides")
        slide_id = folder.name
        try:
            located, lines = read_located(folder, frame=frame)
            slide_id = located.slide_id
            if single_file is None and slide_id not in known:
                without.append(slide_id)
                continue
            truth = source.read(slide_id, located.bounds_offset)
        except CytopipeError as error:
            if len(folders) == 1:
                raise
            failed.append((slide_id, str(error)))
            continue
        for line in (*lines, *truth.lines):
            say(f"{slide_id}: {line}")
        pairs.append((located, truth))
    on_progress(len(folders), len(folders), "slides")
    if not pairs and failed:
        raise RunError(f"none of {len(folders)} slides could be read, the first because: {failed[0][1]}")
    if not pairs:
        fix = nearest_fix(without[0], known, "slides with a truth")
        raise UserError(f"there is no truth for {', '.join(without[:3])}", fix=fix)
    if without:
        say(f"{len(without)} slides have results but no truth, left out: {', '.join(without[:5])}")
    unseen = sorted(known - {located.slide_id for located, _ in pairs} - {name for name, _ in failed})
    if unseen:
        say(f"{len(unseen)} slides have a truth but no results, left out: {', '.join(unseen[:5])}")
    return pairs, failed


def _remarks(pairs: list[tuple[Located, Truth]], evaluation: Evaluation) -> list[str]:
    """What the reader of the tables must know."""
    covers = sorted({truth.covers for _, truth in pairs})
    lines = [
        f"the truth covers {covers[0]}" if len(covers) == 1 else f"the truth covers, by slide: {'; '.join(covers)}"
    ]
    for name, count in evaluation.unknown.items():
        lines.append(f"class {name!r} of the truth ({count} objects) is unknown to the model: counted by kind only")
    for name, count in evaluation.other_kinds.items():
        lines.append(
            f"class {name!r} of the truth ({count} objects) is of a kind that the model does not locate: not counted"
        )
    if not all(located.has_scores for located, _ in pairs):
        lines.append("the results tell no scores: average precision is left out")
    elif scores := [located.score.min() for located, _ in pairs if len(located)]:
        lines.append(
            f"average precision sees what the results hold: objects with a score of {min(scores):.2g} and more"
        )
    return lines


def _without_nan(value: Any) -> Any:
    """The same tree with null for NaN, which JSON cannot say."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
