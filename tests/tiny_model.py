"""A model of a few thousand weights that answers within milliseconds: what it finds is random and means nothing, but
it depends on the pixels, and is the same whenever it is asked.
"""

from __future__ import annotations

from pathlib import Path

TILE_PX = 128


def write_tiny_model(folder: Path, *, most: int = 12, classes: tuple[str, ...] = ("nucleus", "LSIL")) -> Path:
    """Write the bundle of a Mask R-CNN with windows of 128 px at 0.5 µm/px; at most `most` objects a window."""
    import torch

    from cytopipe.core.classes import ObjectClass
    from cytopipe.nets import BundleSpec, NetSpec, Thresholds, build_net, inference_state, save_bundle

    net = NetSpec(
        architecture="mask-rcnn-mobilenetv2-fpn",
        classes=tuple(
            ObjectClass(name=name, kind="nucleus" if name == "nucleus" else "cell", suspicious=name == "LSIL")
            for name in classes
        ),
        width=0.25,
        fpn_channels=8,
        head_dim=16,
        mask_channels=8,
        anchor_px=(8, 12, 16, 24, 32),
    )
    torch.manual_seed(3)
    weights = inference_state(build_net(net).eval())
    spec = BundleSpec(
        name="tiny",
        net=net,
        mpp=0.5,
        tile_px=TILE_PX,
        max_object_px=40.0,
        receptive_field_px=310,
        thresholds=Thresholds(score={"nucleus": 0.3, "cell": 0.3}, max_detections=most),
        stain_glass=(240.0, 241.0, 243.0),
        stain_density=(0.1, 0.14, 0.12),
        weights_sha256="",
    )
    save_bundle(folder, spec, weights, "# tiny\n")
    return folder
