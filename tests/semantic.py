"""A semantic bundle small enough for tests: random weights, a radius of 26 px, and what it says of a slide untiled."""

from __future__ import annotations

from pathlib import Path

import torch

from cytopipe.core.classes import class_named
from cytopipe.nets import Bundle, BundleSpec, SegSpec, build_segnet, inference_state, receptive_radius_px, save_bundle

CLASSES = (class_named("nucleus"), class_named("cell"))


def semantic_bundle(folder: Path, *, tile_px: int = 128, mpp: float = 0.5, seed: int = 0, **changes: object) -> Bundle:
    """A unet of three levels whose classes all occur: its logits are made large, and centred on grey."""
    torch.manual_seed(seed)
    spec = SegSpec(architecture="unet", classes=CLASSES, widths=(4, 6, 6))
    net = build_segnet(spec)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
        logits = net.eval()(torch.randn(4, 3, 64, 64))
        net.body.logits.bias -= logits.mean(dim=(0, 2, 3))
    said = {"name": "tiny-semantic", "net": spec, "mpp": mpp, "tile_px": tile_px, "weights_sha256": ""}
    said["receptive_field_px"] = receptive_radius_px(spec)
    return save_bundle(folder, BundleSpec(**{**said, **changes}), inference_state(net), "card")
