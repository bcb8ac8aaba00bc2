"""The end of a run: its folder becomes a model bundle, with both networks kept, a card and a report's numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.torch import load_file

from cytopipe._version import __version__
from cytopipe.nets import (
    Bundle,
    BundleSpec,
    Net,
    NetSpec,
    SegSpec,
    Thresholds,
    build_net,
    build_segnet,
    inference_state,
    receptive_radius_px,
    save_bundle,
)
from cytopipe.nets.bundle import load_state, save_state
from cytopipe.train.engine import Engine, Parts
from cytopipe.train.validate import Validation, validate

TASKS = {  # title of the card, and what its figures compare
    "detection": ("Detection", "box IoU"),
    "instance": ("Instance segmentation", "box and mask IoU"),
    "semantic": ("Semantic segmentation", "px, means over images"),
}
UNKNOWN_MPP = 1.0  # of images that do not say theirs: `steps/train.py` says so aloud
OBJECT_PERCENTILE = 99.9  # of the longer side of the training objects: `max_object_px` (DESIGN 5)


@dataclass(frozen=True, slots=True)
class Finished:
    """The bundle of a run, which network it is, at which iteration, and how it validated."""

    bundle: Bundle
    network: str
    iteration: int
    validation: Validation


def finish(engine: Engine, facts: dict[str, str]) -> Finished:
    """Write model.toml, weights, card and both networks into the run's folder. `facts`: data, licences, command, for
    model.toml.
    """
    parts, progress, spec = engine.parts, engine.progress, engine.parts.student.spec
    best: Net = build_segnet(spec) if isinstance(spec, SegSpec) else build_net(spec)
    load_state(best, engine.best_state())
    validation = validate(best.to(parts.device), parts.validation, parts.settings.val_tiles)
    save_state(engine.folder / "student.safetensors", inference_state(engine.student))
    if engine.teacher is not None:
        save_state(engine.folder / "teacher.safetensors", inference_state(engine.teacher.net))
    bundle_spec = BundleSpec(
        name=engine.folder.resolve().name,
        net=spec,
        mpp=float(parts.batches.labelled.mpp or parts.settings.mpp or UNKNOWN_MPP),
        tile_px=parts.settings.window_px,
        max_object_px=0.0 if isinstance(spec, SegSpec) else _largest_object_px(parts),
        receptive_field_px=_radius_px(spec),
        thresholds=Thresholds(score=validation.thresholds),
        training={
            "method": parts.method.name,
            "iterations": str(parts.settings.iterations),
            "chosen": f"{progress.best_network} after {progress.best_t} iterations, by validation "
            f"{parts.settings.metric}",
            "seed": str(parts.seed),
            "cytopipe": __version__,
            **facts,
        },
        metrics={key: round(value, 4) for key, value in validation.metrics.items()},
        weights_sha256="",
    )
    bundle = save_bundle(engine.folder, bundle_spec, load_file(engine.best_state()), card_text(bundle_spec))
    return Finished(bundle, progress.best_network, progress.best_t, validation)


def _largest_object_px(parts: Parts) -> float:
    sides = parts.batches.labelled.longer_sides_px()
    return round(float(np.percentile(sides, OBJECT_PERCENTILE)) if len(sides) else parts.settings.crop_px / 4, 1)


def _radius_px(spec: NetSpec | SegSpec) -> int:
    return receptive_radius_px(spec) if isinstance(spec, SegSpec) else RECEPTIVE_FIELD_PX[spec.backbone]


# Theoretical radius of what a feature of P5 depends on, px of the input: half of (1 + sum over layers of (kernel - 1) *
# stride so far), plus the pyramid's top-down path (one 3x3 convolution at stride 32) and the RPN head's (one more);
# Araujo et al., Distill 2019.
RECEPTIVE_FIELD_PX = {"mobilenetv2": 310, "resnet18": 282, "resnet34": 514, "resnet50": 306, "resnet101": 578}


def card_text(spec: BundleSpec, *, extra: str = "") -> str:
    """The model card of a run: what it is, on what it was trained, how it validated, what it is not for."""
    classes = ", ".join(f"{c.name} ({c.kind}{', suspicious' if c.suspicious else ''})" for c in spec.net.classes)
    rows = "\n".join(f"| {key} | {value:.3f} |" for key, value in spec.metrics.items())
    task, measured = TASKS[spec.net.task]
    cuts = ", ".join(f"{kind} {cut:g}" for kind, cut in spec.thresholds.score.items())
    thresholds = f"Score thresholds (best F1 at box IoU 0.5 on validation): {cuts}.\n" if cuts else ""
    facts = "\n".join(f"- {key}: {value}" for key, value in spec.training.items())
    return f"""# {spec.name}

{task} with {spec.net.architecture} at {spec.mpp:g} µm/px.

Classes: {classes}.

## Training

{facts}

## Validation ({measured}, tiles of patients or tiles kept apart)

| metric | value |
|---|---|
{rows}

{thresholds}{extra}
## Not for

This is no medical device. It must not be used to diagnose, to triage patients, or to decide on treatment. It was
not tested on slides of scanners, stains or preparations other than those named above.
"""


def network_facts(finished: Finished) -> dict[str, Any]:
    """What a command prints of a finished run."""
    return {
        "bundle": str(finished.bundle.folder),
        "network": finished.network,
        "iteration": finished.iteration,
        **finished.validation.metrics,
    }
