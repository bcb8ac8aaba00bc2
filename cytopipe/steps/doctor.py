"""Whether this installation works: each check does a small piece of real work through the rooms that a run would use.

Enters: the folder that shall be written to.  Leaves: one `Check` each for packages, device, codecs and readers, disk,
models. Seconds, not minutes.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from cytopipe._version import __version__
from cytopipe.core.errors import CytopipeError, RunError
from cytopipe.core.progress import Say, unsaid
from cytopipe.core.resources import cores

PACKAGES = ("numpy", "openslide-python", "tifffile", "imagecodecs", "shapely", "pyarrow")
REINSTALL = "install cytopipe again into a fresh environment"
ROOMY_GB = 2.0  # less than a small slide's tiles and results need
SLIDE_PX = 600  # of the test slide: more than one tile each way, so that the readers' tiling is exercised


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that works or does not: `finding` says what was met, `fix` what to do (empty when ok)."""

    name: str
    ok: bool
    finding: str
    fix: str = ""


def doctor(folder: Path = Path(), *, say: Say = unsaid) -> list[Check]:
    """Check the installation, and that `folder` can be written to. A failed check is a row, not an exception."""
    say("checking the installation, takes a few seconds")
    checks = [
        ("python", _python),
        ("torch", _torch),
        ("device", _device),
        ("codecs and readers", _readers),
        ("output folder", lambda: _disk(folder)),
        ("temporary folder", lambda: _disk(Path(tempfile.gettempdir()))),
    ]
    return [*(_checked(name, check) for name, check in checks), *_models()]


def _checked(name: str, check: Callable[[], str]) -> Check:
    """Run one check; what a broken installation raises becomes its row."""
    try:
        return Check(name, True, check())
    except CytopipeError as error:
        return Check(name, False, error.what, str(error))
    except ImportError as error:
        return Check(name, False, f"cannot be imported ({error})", f"{error}; {REINSTALL}")
    except (OSError, RuntimeError) as error:
        return Check(name, False, f"{type(error).__name__}: {error}", f"{error}; {REINSTALL}")


def _python() -> str:
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    system = f"Python {platform.python_version()} on {platform.system()}"
    return f"cytopipe {__version__}, {system}, {cores()} cores; {packages}"


def _torch() -> str:
    """torchvision's compiled operators fail to load when it was built for another torch: run one."""
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    if kept != [0, 2]:
        raise RunError(
            f"torchvision's nms kept boxes {kept} where 0 and 2 are right",
            fix="install torch and torchvision together, in one command",
        )
    return (
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, nms runs, {torch.get_num_threads()} threads"
    )


def _device() -> str:
    """A GPU that is listed may still be unusable (driver too old): multiply on it."""
    import torch

    if not torch.cuda.is_available():
        return "no GPU; the processor is used (--device cpu)"
    product = torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")
    if product.sum().item() != 512:
        raise RunError("the GPU multiplies wrongly", fix="use --device cpu and look at the driver")
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"{names}, CUDA {torch.version.cuda}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"


def _readers() -> str:
    """Write a small JPEG-compressed slide and read it back with each reader for tiled slides."""
    import numpy as np

    from cytopipe.slides import open_slide
    from cytopipe.slides.writer import PyramidWriter

    ramp = np.linspace(0, 255, SLIDE_PX).astype(np.uint8)
    rgb = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(128)), axis=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "doctor.tif"
        with PyramidWriter(path, SLIDE_PX, SLIDE_PX, mpp=0.25, objective=40, quality=95) as writer:
            writer.write_band(rgb)
        for reader in ("tiff", "openslide"):
            with open_slide(path, reader=reader) as slide:
                difference = np.abs(slide.read(0, 0, 0, SLIDE_PX, SLIDE_PX).astype(int) - rgb).max()
                if difference > 16:  # JPEG at quality 95 keeps a smooth ramp within a few grey levels
                    raise RunError(
                        f"reader {reader} is off by {difference} grey levels on a JPEG slide",
                        fix=REINSTALL,
                    )
    return "JPEG slide written, and read back by tiff and openslide"


def _disk(folder: Path) -> str:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"cytopipe")
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < ROOMY_GB:
        raise RunError(
            f"{folder.resolve()} has {free_gb:.1f} GB free, less than {ROOMY_GB:.0f} GB",
            fix="free some space, or write elsewhere with --out",
        )
    return f"{folder.resolve()} may be written, {free_gb:.0f} GB free"


def _models() -> list[Check]:
    """Each shipped bundle is built: sha256 and shapes of its weights are compared with its model.toml."""
    from cytopipe.nets import list_bundles, load_bundle

    def builds(name: str) -> str:
        bundle = load_bundle(name)
        bundle.build()
        spec = bundle.spec
        return f"{spec.net.task}, {len(spec.net.classes)} classes, {spec.mpp} µm/px, sha256 {spec.weights_sha256[:12]}"

    names = list_bundles()
    if not names:
        return [Check("models", False, "no model is shipped with this installation", "install cytopipe again")]
    return [_checked(f"model {name}", partial(builds, name)) for name in names]
