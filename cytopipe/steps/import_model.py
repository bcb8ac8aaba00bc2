"""A model bundle from a user's own weights: what `cytopipe models import` does.

Enters: a file of weights (safetensors, or a state dict of torch read without executing anything in it) by our names or
torchvision's, and what the file cannot say.  Leaves: a bundle folder that `infer`, `mine-unlabeled` and `train --init`
take.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from cytopipe.core.classes import class_named
from cytopipe.core.errors import UserError
from cytopipe.core.files import sha256_of
from cytopipe.steps.catalogue import ModelFacts, show_model

DEFAULT_SCORE = 0.5  # nothing is known of the weights' scores
DEFAULT_TILE_PX = 1024


def import_model(
    weights: Path,
    out: Path,
    *,
    architecture: str,
    classes: Sequence[str],
    mpp: float,
    tile_px: int = DEFAULT_TILE_PX,
    max_object_px: float | None = None,
) -> ModelFacts:
    """Make a bundle; returns its facts.

    architecture   one of `nets.ARCHITECTURES` or `nets.SEMANTIC_ARCHITECTURES`
    classes        names of the foreground classes, in the order of the weights' outputs (0 is background)
    mpp            µm/px of the images that the weights were trained on
    tile_px        side of the inference window, px at that mpp
    max_object_px  longest side of an object, px at that mpp; detection and instance models need it

    Raises UserError for weights that are no state dict, or do not fit the architecture and classes in every tensor, by
    name; for values out of range; and for a folder that is not empty.
    """
    from cytopipe.nets import (
        SEMANTIC_ARCHITECTURES,
        BundleSpec,
        NetSpec,
        SegSpec,
        Thresholds,
        build_net,
        build_segnet,
        inference_state,
        receptive_radius_px,
        save_bundle,
    )
    from cytopipe.nets.pretrained import load_matching, read_state
    from cytopipe.train.finish import RECEPTIVE_FIELD_PX, card_text

    if not weights.is_file():
        raise UserError("is no file", where=str(weights))
    if out.exists() and any(out.iterdir()):
        raise UserError("is not empty", where=str(out), fix="choose another --out")
    if tile_px <= 0 or tile_px % 64:
        raise UserError(f"--tile-px {tile_px}", fix="a multiple of 64 is expected")
    state = read_state(weights)
    semantic = architecture in SEMANTIC_ARCHITECTURES
    try:
        values = {
            "architecture": architecture,
            "classes": tuple(class_named(name) for name in classes),
            "frozen_batch_norm": not any(name.endswith("num_batches_tracked") for name in state),
        }
        net = build_segnet(SegSpec(**values)) if semantic else build_net(NetSpec.model_validate(values))
        if not semantic and max_object_px is None:
            raise UserError(f"{architecture} needs --max-object-px", fix="give the longest side of an object, px")
        spec = BundleSpec(
            name=out.resolve().name,
            net=net.spec,
            mpp=mpp,
            tile_px=tile_px,
            max_object_px=0.0 if semantic else max_object_px,
            receptive_field_px=receptive_radius_px(net.spec) if semantic else RECEPTIVE_FIELD_PX[net.spec.backbone],
            thresholds=Thresholds(score={} if semantic else {c.kind: DEFAULT_SCORE for c in net.spec.classes}),
            training={"imported": weights.name, "imported_sha256": sha256_of(weights)},
            weights_sha256="",
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {first['msg']}" if where else first["msg"], where=str(weights)) from error
    missing = load_matching(net, state, str(weights))
    if missing:
        raise UserError(
            f"does not fill the whole network: {missing[0]!r} is missing, or belongs to another number of classes than "
            f"the {len(classes)} given",
            where=str(weights),
            fix="check --architecture and --classes; `train --init` takes weights of a trunk alone",
        )
    save_bundle(out, spec, inference_state(net), card_text(spec, extra=NOTE))
    return show_model(str(out))


NOTE = """
## Imported

These weights come from elsewhere. cytopipe pools RoIs with aligned=True: a torchvision model, which was trained
half a cell off, finds its boxes slightly shifted until it is trained further. Score thresholds are not measured.
"""
