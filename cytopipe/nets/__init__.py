"""Networks and the model bundle. Composed from torchvision's parts behind our own verbs (DESIGN 5, METHODS 1.7)."""

from cytopipe.nets.backbones import normalise
from cytopipe.nets.bundle import Bundle, BundleSpec, Thresholds, inference_state, list_bundles, load_bundle, save_bundle
from cytopipe.nets.detnet import Detections, DetNet, DetOutput, build_net
from cytopipe.nets.spec import ARCHITECTURES, NetSpec

__all__ = [
    "ARCHITECTURES",
    "Bundle",
    "BundleSpec",
    "DetNet",
    "DetOutput",
    "Detections",
    "NetSpec",
    "Thresholds",
    "build_net",
    "inference_state",
    "list_bundles",
    "load_bundle",
    "normalise",
    "save_bundle",
]
