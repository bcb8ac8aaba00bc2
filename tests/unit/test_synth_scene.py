"""What lies on a synthetic slide: sizes, shares and places of its cells, and their truth."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
import shapely
from shapely import Polygon

from cytopipe.core.seeds import rng_from
from cytopipe.synth import Scene, annotations_of
from cytopipe.synth.cells import CELL_CLASSES, KINDS, LESIONS, draw_cell
from cytopipe.synth.matter import reach_of
from cytopipe.synth.scene import REACH_UM
from cytopipe.synth.stain import draw_stain

MPP = 0.25


def scene_of(width=6000, height=6000, *, mpp=MPP, seed=1, cells_per_mm2=300.0, lesion_fraction=0.06):
    return Scene(width, height, mpp=mpp, seed=seed, cells_per_mm2=cells_per_mm2, lesion_fraction=lesion_fraction)


def blocks_of(scene):
    return [scene.block(row, column) for row in range(scene.rows) for column in range(scene.columns)]


def cells_of(scene):
    return [cell for block in blocks_of(scene) for cell in block.cells]


def truth_of(scene):
    return [a for block in blocks_of(scene) for a in annotations_of(block, "s", "p", scene.width, scene.height)]


def area_um2(outline, mpp=MPP):
    return Polygon(outline).area * mpp**2


@pytest.fixture(scope="module")
def crowded():
    """Cells of all classes, a few hundred, also at the border."""
    return scene_of(4000, 3000, seed=5, cells_per_mm2=800, lesion_fraction=0.5)


def test_the_same_seed_gives_the_same_slide_and_another_seed_another():
    def outlines(seed):
        return [cell.outline.tolist() for cell in cells_of(scene_of(2000, 2000, seed=seed))]

    assert outlines(1) == outlines(1)
    assert outlines(1) != outlines(2)


def test_the_truth_is_valid_lies_on_the_slide_and_pairs_each_nucleus_with_one_cell_around_it(crowded):
    truth = truth_of(crowded)
    slide = shapely.box(0, 0, crowded.width, crowded.height)

    cells = {a.attributes["cell_id"]: a for a in truth if a.class_name != "nucleus"}
    nuclei = defaultdict(list)
    for annotation in truth:
        assert annotation.geometry.is_valid
        assert slide.covers(annotation.geometry)
        if annotation.class_name == "nucleus":
            nuclei[annotation.attributes["cell_id"]].append(annotation.geometry)
    assert cells.keys() == nuclei.keys()
    assert len({a.object_id for a in truth}) == len(truth)
    assert {a.class_name for a in truth} == {"nucleus", *CELL_CLASSES}
    for cell_id, shapes in nuclei.items():
        assert len(shapes) == 1 or (len(shapes) == 2 and cells[cell_id].class_name == "LSIL")
        assert all(cells[cell_id].geometry.contains(shape) for shape in shapes)


def test_the_two_nuclei_of_a_cell_do_not_lie_in_each_other(crowded):
    pairs = [[Polygon(n.outline) for n in cell.nuclei] for cell in cells_of(crowded) if len(cell.nuclei) == 2]

    assert pairs
    assert all(a.intersection(b).area < 0.2 * min(a.area, b.area) for a, b in pairs)


def test_cells_at_the_border_are_cut_there_and_keep_whole_nuclei(crowded):
    whole = {c.cell_id: Polygon(c.outline).area for c in cells_of(crowded)}
    truth = {a.attributes["cell_id"]: a.geometry.area for a in truth_of(crowded) if a.class_name != "nucleus"}

    cut = [cell_id for cell_id, area in truth.items() if area < whole[cell_id] - 1]

    assert cut
    assert all(Polygon(n.outline).within(shapely.box(0, 0, 4000, 3000)) for c in cells_of(crowded) for n in c.nuclei)


@pytest.mark.parametrize("density", [100, 300, 1000])
def test_the_density_of_cells_is_the_one_asked_for(density):
    side = int(4000 * np.sqrt(300 / density))  # three hundred cells a slide
    counts = [len(cells_of(scene_of(side, side, seed=seed, cells_per_mm2=density))) for seed in range(6)]

    # Groups of about two by Poisson's law, and the swing of the density: six slides even them out to about 5%.
    assert np.mean(counts) == pytest.approx(300, rel=0.15)


def test_the_default_slide_of_8192_px_holds_over_a_thousand_cells():
    assert len(cells_of(scene_of(8192, 8192, seed=3))) > 1000


# Lesions lie in groups of about five, so the share of 1,800 cells spreads like that of 360: 0.013 and 0.026.
@pytest.mark.parametrize(("fraction", "tolerance"), [(0.0, 0.0), (0.06, 0.04), (0.5, 0.08), (1.0, 0.0)])
def test_the_share_of_lesions_is_the_one_asked_for(fraction, tolerance):
    scenes = [scene_of(4900, 4900, seed=seed, lesion_fraction=fraction) for seed in range(4)]
    classes = Counter(cell.class_name for scene in scenes for cell in cells_of(scene))

    share = sum(classes[name] for name in LESIONS) / classes.total()

    assert share == pytest.approx(fraction, abs=tolerance)
    assert {name for name in LESIONS if classes[name]} == (set(LESIONS) if fraction else set())


def test_no_cells_are_placed_where_none_are_wanted():
    assert cells_of(scene_of(cells_per_mm2=0)) == []


def test_what_a_block_owns_stays_within_its_reach():
    scene = scene_of(cells_per_mm2=600, lesion_fraction=0.5, seed=2)
    reach = REACH_UM / MPP
    for row in range(scene.rows):
        for column in range(scene.columns):
            block = scene.block(row, column)
            points = [cell.outline for cell in block.cells]
            points += [np.array(reach_of(matter)).reshape(2, 2) for matter in block.matter]
            for outline in points:
                corner = np.array([column, row]) * scene.block_px
                assert (outline > corner - reach).all()
                assert (outline < corner + scene.block_px + reach).all()


@pytest.fixture(scope="module")
def samples():
    """Sixty cells of each kind."""
    stain = draw_stain(rng_from(0, "stain"))
    return {
        kind: [draw_cell(rng_from(kind, k), str(k), kind, np.array([500.0, 500.0]), MPP, stain) for k in range(60)]
        for kind in KINDS
    }


def mean_nucleus_um2(cells):
    return float(np.mean([area_um2(cell.nuclei[0].outline) for cell in cells if len(cell.nuclei) == 1]))


def test_nuclei_of_lesions_have_the_sizes_by_which_cytologists_tell_them(samples):
    # The Bethesda System: multiples of the area of a normal intermediate nucleus.
    normal = mean_nucleus_um2(samples["intermediate"])

    assert 2.2 < mean_nucleus_um2(samples["asc-us"]) / normal < 3.2
    assert mean_nucleus_um2(samples["lsil"]) / normal > 3
    assert mean_nucleus_um2(samples["superficial"]) < 0.7 * normal
    assert 1.5 < mean_nucleus_um2(samples["reactive"]) / normal < 2.5


def test_hsil_nuclei_fill_small_cells(samples):
    def filled(kind):
        return np.mean([area_um2(c.nuclei[0].outline) / area_um2(c.outline) for c in samples[kind]])

    assert filled("hsil") > 0.35
    assert filled("hsil") > 2 * filled("parabasal")
    assert np.mean([area_um2(c.outline) for c in samples["hsil"]]) < np.pi * 25**2 / 4


def test_glandular_nuclei_are_long(samples):
    def length(cell):
        x, y = np.array(Polygon(cell.nuclei[0].outline).minimum_rotated_rectangle.exterior.coords)[:3].T
        sides = np.hypot(np.diff(x), np.diff(y))
        return sides.max() / sides.min()

    assert np.mean([length(c) for c in samples["agc"]]) > 1.4
    assert np.mean([length(c) for c in samples["parabasal"]]) < 1.25


def test_a_slide_of_another_resolution_shows_cells_of_the_same_size_in_um():
    def mean_um2(mpp):
        cells = cells_of(scene_of(int(1500 / mpp), int(1500 / mpp), mpp=mpp, lesion_fraction=0))
        return np.mean([area_um2(cell.outline, mpp) for cell in cells])

    assert mean_um2(0.5) == pytest.approx(mean_um2(0.25), rel=0.05)
