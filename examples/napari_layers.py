"""Bring the results of `cytopipe infer` into the form of napari's layers: shapes, points and label images.

    python examples/napari_layers.py results/SLIDE            # says what the layers would hold
    python examples/napari_layers.py results/SLIDE --show     # opens them (pip install "napari[all]")

`layers_of(folder)` gives napari's own layer tuples, (data, keywords, kind): `napari.layers.Layer.create(*one)` makes a
layer of one, and a reader plugin returns them as they are. Coordinates are (y, x) in micrometres where the slide has a
resolution, else level-0 px, so that they lie on an image that was added with the same scale. The label images are there
where `cytopipe convert results/SLIDE --write zarr` has made them; they are read only where they are looked at.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import zarr

from cytopipe.formats.colours import class_colours
from cytopipe.formats.results import LABELS_NAME, Results, read_results, shapes_of

MAX_SHAPES = 20_000  # napari draws more outlines than this too slowly: then only points and label images


def layers_of(folder: Path) -> list[tuple[Any, dict[str, Any], str]]:
    """The layers of a results folder: a points layer, a shapes layer a class (of not too many cells), label images."""
    results = read_results(folder)
    scale = (1.0, 1.0) if results.mpp is None else results.mpp[::-1]
    layers = [points_of(results, scale)]
    if len(results.objects) <= MAX_SHAPES:
        layers += [shapes_layer(results, k, scale) for k in np.unique(results.objects.class_index).tolist()]
    if (folder / LABELS_NAME).is_dir():
        layers += labels_of(folder / LABELS_NAME)
    return layers


def features_of(results: Results, rows: np.ndarray) -> dict[str, Any]:
    """What napari shows of a cell under the pointer: columns of equal length."""
    objects = results.objects
    names = np.array([c.name for c in results.classes], dtype=object)
    return {
        "object_id": np.array(results.object_ids, dtype=object)[rows],
        "class": names[objects.class_index[rows]],
        "score": objects.score[rows],
        "suspicion": results.suspicion[rows],
    }


def points_of(results: Results, scale: tuple[float, float]) -> tuple[Any, dict[str, Any], str]:
    """The middles of all cells, coloured by class."""
    objects = results.objects
    middles = (objects.xyxy[:, [1, 0]] + objects.xyxy[:, [3, 2]]) / 2
    rows = np.arange(len(objects))
    return middles, {"name": "cells", "scale": scale, "features": features_of(results, rows), "size": 12}, "points"


def shapes_layer(results: Results, class_index: int, scale: tuple[float, float]) -> tuple[Any, dict[str, Any], str]:
    """The outlines of one class; of cells with holes or in parts, the outer line of the largest part."""
    rows = np.flatnonzero(results.objects.class_index == class_index)
    outlines = []
    for shape in shapes_of(results.objects)[rows]:
        largest = max(shapely.get_parts(shape), key=shapely.area)
        outlines.append(shapely.get_coordinates(largest.exterior)[:-1, ::-1])
    names = [c.name for c in results.classes]
    red, green, blue = class_colours(names)[names[class_index]]
    keywords = {
        "name": names[class_index],
        "shape_type": "polygon",
        "scale": scale,
        "features": features_of(results, rows),
        "edge_color": (red / 255, green / 255, blue / 255, 1.0),
        "face_color": (0.0, 0.0, 0.0, 0.0),
        "edge_width": 2,
    }
    return outlines, keywords, "shapes"


def labels_of(path: Path) -> list[tuple[Any, dict[str, Any], str]]:
    """The label images of labels.zarr, each a pyramid, finest first."""
    group = zarr.open_group(path, mode="r")
    facts: dict[str, Any] = dict(group.attrs).get("ome") or dict(group.attrs)  # OME-Zarr 0.5, or 0.4
    layers: list[tuple[Any, dict[str, Any], str]] = []
    for name in facts["labels"]:
        layer = group[name]
        own: dict[str, Any] = dict(layer.attrs).get("ome") or dict(layer.attrs)
        datasets = own["multiscales"][0]["datasets"]
        pyramid = [layer[dataset["path"]] for dataset in datasets]
        finest = datasets[0]["coordinateTransformations"][0]["scale"]
        layers.append((pyramid, {"name": name, "scale": tuple(finest), "multiscale": True}, "labels"))
    return layers


def main() -> None:
    """Say what the layers of a results folder would hold, or show them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="results/SLIDE")
    parser.add_argument("--show", action="store_true", help="open napari")
    given = parser.parse_args()
    layers = layers_of(given.folder)
    if not given.show:
        for data, keywords, kind in layers:
            print(kind, keywords["name"], data[0].shape if kind == "labels" else len(data))
        return
    import napari

    viewer = napari.Viewer()
    for layer in layers:
        viewer.add_layer(napari.layers.Layer.create(*layer))
    napari.run()


if __name__ == "__main__":
    main()
