"""Networks and the model bundle. Composed of torchvision's parts behind our own verbs (DESIGN 5; METHODS 1.7, 1.8)."""

from cytopipe.nets.backbones import normalise
from cytopipe.nets.bundle import Bundle, BundleSpec, Thresholds, inference_state, list_bundles, load_bundle, save_bundle
from cytopipe.nets.detnet import Detections, DetNet, DetOutput, RoISample, build_net
from cytopipe.nets.losses import classification_loss
from cytopipe.nets.net import Net
from cytopipe.nets.pretrained import Loaded, init_weights
from cytopipe.nets.receptive import receptive_radius_px
from cytopipe.nets.segnet import Decoded, SegNet, build_segnet
from cytopipe.nets.spec import ARCHITECTURES, SEMANTIC_ARCHITECTURES, NetSpec, SegSpec

__all__ = [
    "ARCHITECTURES",
    "SEMANTIC_ARCHITECTURES",
    "Bundle",
    "BundleSpec",
    "Decoded",
    "DetNet",
    "DetOutput",
    "Detections",
    "Loaded",
    "Net",
    "NetSpec",
    "RoISample",
    "SegNet",
    "SegSpec",
    "Thresholds",
    "build_net",
    "build_segnet",
    "classification_loss",
    "inference_state",
    "init_weights",
    "list_bundles",
    "load_bundle",
    "normalise",
    "receptive_radius_px",
    "save_bundle",
]
