"""Windows that are no grid: at random over the foreground, around objects; and what regions do to all of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Point, Polygon, box

from cytopipe.core.errors import RunError, UserError
from cytopipe.core.seeds import rng_from
from cytopipe.formats.annotations import Annotation
from cytopipe.slides import Foreground, MppView
from cytopipe.tiles import TileConfig, plan_tiles, tile_config
from cytopipe.tiles.regions import Area
from cytopipe.tiles.windows import CENTRED_FRACTION, Place, random_windows, windows_around
from tests.array_slide import ArraySlide

SIZE = WIDTH, HEIGHT = 1000, 800
CELL_PX = 20.0  # side of a mask px


@pytest.fixture(scope="module")
def view():
    return MppView(ArraySlide(np.zeros((HEIGHT, WIDTH, 3), np.uint8), mpp=0.25), 0.5)  # 500 x 400 px


def foreground(*boxes: tuple[int, int, int, int]) -> Foreground:
    """A foreground of rectangles x0 y0 x1 y1 in mask px of 20 level-0 px."""
    mask = np.zeros((40, 50), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return Foreground(mask, (CELL_PX, CELL_PX), "light")


def cell(x: float, y: float, class_name: str = "LSIL", radius: float = 10) -> Annotation:
    return Annotation(f"{class_name}-{x}-{y}", class_name, Point(x, y).buffer(radius))


def random_config(count: int, **more: object) -> TileConfig:
    return TileConfig.model_validate({"tile_px": 60, "random": count, **more})


def centres_of(plan, kind: str) -> np.ndarray:
    boxes = plan.boxes[[origin == kind for origin in plan.origin]]
    return (boxes[:, :2] + boxes[:, 2:]) / 2


# Random windows


def test_as_many_random_windows_are_taken_as_asked_for_each_another_place_and_centred_on_foreground(view):
    mask = foreground((10, 10, 20, 15), (40, 30, 45, 32))

    plan = plan_tiles(view, SIZE, None, mask, random_config(300), rng_from(0, "S-1"))

    assert len(plan.origins) == len(set(plan.origins)) == 300
    assert plan.kept.all()
    assert set(plan.origin) == {"random"}
    assert plan.origins == sorted(plan.origins, key=lambda origin: (origin[1], origin[0]))
    centres = centres_of(plan, "random")
    area = shapely.union_all([box(200, 200, 400, 300), box(800, 600, 900, 640)]).buffer(1)  # half a view px, rounded
    assert shapely.contains_xy(area, centres).all()


def test_random_windows_fall_on_foreground_in_proportion_to_its_area(view):
    # the first rectangle is nine times the second; 2,000 draws: a share of 0.9 has a standard error of 0.0067
    mask = foreground((6, 6, 24, 24), (40, 20, 46, 26))

    plan = plan_tiles(view, SIZE, None, mask, random_config(2000), rng_from(1, "S-1"))

    share = (centres_of(plan, "random")[:, 0] < 600).mean()
    assert share == pytest.approx(0.9, abs=4 * 0.0067)


def test_the_same_seed_and_slide_give_the_same_windows_and_another_of_either_gives_others(view):
    def origins(*seed: object) -> list[tuple[int, int]]:
        return plan_tiles(view, SIZE, None, foreground((5, 5, 45, 35)), random_config(50), rng_from(*seed)).origins

    assert origins(3, "S-1") == origins(3, "S-1")
    assert origins(3, "S-1") != origins(4, "S-1")
    assert origins(3, "S-1") != origins(3, "S-2")


def test_more_random_windows_hold_the_fewer_ones(view):
    few, many = (
        plan_tiles(view, SIZE, None, foreground((5, 5, 45, 35)), random_config(count), rng_from(3, "S-1"))
        for count in (50, 5000)
    )

    assert set(few.origins) < set(many.origins)


def test_random_windows_stay_inside_the_slide(view):
    everywhere = foreground((0, 0, 50, 40))

    plan = plan_tiles(view, SIZE, None, everywhere, random_config(500), rng_from(0, "S-1"))

    x, y = np.array(plan.origins).T
    assert (x.min(), y.min(), x.max(), y.max()) == (0, 0, 500 - 60, 400 - 60)


def test_a_foreground_with_fewer_places_than_windows_gives_them_all_and_says_so(view):
    one_px = foreground((25, 20, 26, 21))  # 20 level-0 px: centres at 0.5 µm/px lie at 10 or 11 places along each side

    plan = plan_tiles(view, SIZE, None, one_px, random_config(4371), rng_from(0, "S-1"))

    assert len(plan.origins) in range(100, 122)
    (note,) = plan.notes
    assert note == f"the foreground has places for {len(plan.origins)} of the 4371 random windows only"


def test_a_slide_smaller_than_a_window_has_one_random_window():
    small = MppView(ArraySlide(np.zeros((30, 40, 3), np.uint8), mpp=0.5), 0.5)

    plan = plan_tiles(small, (40, 30), None, None, random_config(3), rng_from(0))

    assert plan.origins == [(0, 0)]


def test_a_random_window_with_too_little_foreground_is_drawn_again(view):
    mask = foreground((0, 0, 25, 40))
    config = random_config(200, min_foreground=0.9)

    plan = plan_tiles(view, SIZE, None, mask, config, rng_from(0))

    assert len(plan.origins) == 200
    assert (mask.fractions(plan.boxes) >= 0.9).all()


def test_random_windows_without_a_foreground_rule_lie_all_over_the_slide(view):
    config = random_config(1000, foreground=False)

    plan = plan_tiles(view, SIZE, None, foreground((0, 0, 1, 1)), config, rng_from(0))

    quarters = Counter((x > 250 - 30, y > 200 - 30) for x, y in plan.origins)
    assert min(quarters.values()) > 180  # 250 each, standard deviation 14


def test_random_windows_of_a_slide_without_foreground_are_an_error(view):
    with pytest.raises(RunError, match="no foreground was found; --no-foreground"):
        plan_tiles(view, SIZE, None, foreground(), random_config(5), rng_from(0))


def test_what_a_mask_px_has_beyond_the_slide_does_not_count_for_its_area():
    place = Place(510, 500, (510, 500), (1.0, 1.0), 10)  # of the second mask px of 500 px a fiftieth is on the slide

    corners = random_windows(
        place, np.array([[True, True]]), (500.0, 500.0), 400, rng_from(0), lambda c, _: np.ones(len(c), bool)
    )

    assert (corners[:, 0] >= 490).mean() < 0.1


def test_the_part_of_a_mask_px_beyond_the_slide_draws_nothing():
    place = Place(100, 100, (100, 100), (1.0, 1.0), 10)

    corners = random_windows(
        place, np.array([[False, True]]), (90.0, 100.0), 400, rng_from(0), lambda c, _: np.ones(len(c), bool)
    )

    # the second mask px is 10 px wide on the slide: centres 90 to 100, corners 85 to 95, shifted to 90 at most
    assert set(corners[:, 0]) == set(range(85, 91))


# Windows around objects


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 999), st.floats(0, 799)), min_size=1, max_size=60),
    st.integers(16, 600),
    st.randoms(use_true_random=False),
)
def test_every_object_has_a_window_centred_on_it_as_far_as_the_slide_reaches(points, tile_px, random):
    place = Place(500, 400, SIZE, (2.0, 2.0), tile_px)

    corners = windows_around(place, np.array(points))

    ideal = place.around(np.array(points))
    off = np.abs(ideal[:, None, :] - corners[None, :, :]).max(axis=2)
    assert (off.min(axis=1) <= CENTRED_FRACTION * tile_px).all()
    apart = np.abs(corners[:, None, :] - corners[None, :, :]).max(axis=2)
    assert (apart[~np.eye(len(corners), dtype=bool)] > CENTRED_FRACTION * tile_px).all()
    random.shuffle(points)
    assert windows_around(place, np.array(points)).tolist() == corners.tolist()


def test_windows_lie_around_objects_and_see_their_neighbours_too(view):
    objects = [cell(500, 400), cell(520, 400, "normal"), cell(500, 404, "nucleus", 4), cell(5, 790)]
    config = TileConfig(tile_px=60, around_objects=True)

    plan = plan_tiles(view, SIZE, objects, foreground(), config)

    # the nucleus lies 2 px from the centre of its cell's window, the neighbour 10 px: a twentieth of the side is 3 px
    assert plan.origins == [(220, 170), (230, 170), (0, 340)]
    assert set(plan.origin) == {"object"}
    assert plan.kept.all()
    assert plan.for_objects.all()  # there is no foreground at all
    assert plan.unseen == 0
    assert [(row.object_id, row.x) for row in plan.objects if row.y == 170] == [
        ("LSIL-500-400", 220),
        ("normal-520-400", 220),
        ("nucleus-500-404", 220),
        ("LSIL-500-400", 230),
        ("normal-520-400", 230),
        ("nucleus-500-404", 230),
    ]


def test_random_windows_may_be_taken_beside_those_around_objects(view):
    config = random_config(40, around_objects=True)

    plan = plan_tiles(view, SIZE, [cell(500, 400)], foreground((5, 5, 45, 35)), config, rng_from(0))

    assert Counter(plan.origin) == {"random": 40, "object": 1}
    assert len(set(plan.origins)) == 41


def test_a_random_window_is_never_one_that_lies_around_an_object():
    small = MppView(ArraySlide(np.zeros((64, 64, 3), np.uint8), mpp=0.5), 0.5)  # 25 places for a window of 60 px
    config = random_config(500, around_objects=True)

    plan = plan_tiles(small, (64, 64), [cell(32, 32)], None, config, rng_from(0))

    assert Counter(plan.origin) == {"random": 24, "object": 1}
    assert len(set(plan.origins)) == 25


def test_windows_around_objects_of_a_slide_without_any_are_an_error(view):
    with pytest.raises(RunError, match="no object is annotated, and windows are wanted around objects only"):
        plan_tiles(view, SIZE, [], foreground((5, 5, 45, 35)), TileConfig(tile_px=60, around_objects=True))


# Regions of interest, annotated areas


def test_only_tiles_that_meet_a_region_are_kept_and_the_region_is_no_object(view):
    regions = [
        Annotation("r1", "scanned", box(130, 130, 230, 150)),
        Annotation("r2", "scanned", Polygon([(700, 500), (720, 500), (710, 530)])),
    ]
    inside, outside = cell(140, 140), cell(900, 200)

    plan = plan_tiles(
        view, SIZE, [*regions, inside, outside], foreground((0, 0, 50, 40)), TileConfig(tile_px=60, roi="scanned")
    )

    assert [plan.origins[i] for i in np.flatnonzero(plan.kept)] == [(60, 60), (300, 240)]
    assert (plan.outside == ~plan.kept).all()
    assert [row.object_id for row in plan.objects] == [inside.object_id]
    assert plan.annotated == {"LSIL": 2}
    assert plan.unseen == 1


def test_inside_a_region_glass_is_dropped_as_elsewhere(view):
    region = Annotation("r", "scanned", box(0, 0, 480, 120))

    plan = plan_tiles(view, SIZE, [region], foreground((6, 0, 12, 40)), TileConfig(tile_px=60, roi="scanned"))

    assert [plan.origins[i] for i in np.flatnonzero(plan.kept)] == [(60, 0)]
    assert [plan.origins[i] for i in np.flatnonzero(~plan.kept & ~plan.outside)] == [(0, 0), (120, 0), (180, 0)]


def test_random_windows_are_centred_inside_the_region_and_on_foreground(view):
    region = Annotation("r", "scanned", Point(500, 400).buffer(150))
    config = random_config(400, roi="scanned")

    plan = plan_tiles(view, SIZE, [region], foreground((0, 0, 25, 40)), config, rng_from(0))

    centres = centres_of(plan, "random")
    assert len(centres) == 400
    assert shapely.contains_xy(region.geometry.buffer(1.5), centres).all()
    assert (centres[:, 0] <= 500 + 1).all()


def test_a_slide_without_the_region_of_interest_is_refused_with_the_nearest_class(view):
    with pytest.raises(
        UserError, match="no region of interest 'scaned' is outlined on the slide; did you mean 'scanned'"
    ):
        plan_tiles(
            view,
            SIZE,
            [Annotation("r", "scanned", box(0, 0, 10, 10))],
            None,
            TileConfig(tile_px=60, roi="scaned"),
        )


def test_tiles_wholly_inside_the_annotated_area_are_labelled_and_others_are_not(view):
    # two halves of an area that holds the four tiles of 120 level-0 px in the corner, the seam through two of them
    halves = [
        Annotation("a", "annotated", box(0, 0, 60, 240.001)),
        Annotation("b", "annotated", box(60, 0, 239.999, 240.001)),
        Annotation("c", "annotated", box(500, 500, 700, 700)),
    ]
    config = TileConfig(tile_px=60, annotated_area="annotated")

    plan = plan_tiles(view, SIZE, halves, None, config)

    assert {plan.origins[i] for i in np.flatnonzero(plan.labelled)} == {(0, 0), (60, 0), (0, 60), (60, 60)}
    assert plan.kept.all()
    assert plan.annotated == {}


def test_an_annotated_slide_without_an_annotated_area_has_no_labelled_tile_and_says_so(view):
    plan = plan_tiles(view, SIZE, [cell(100, 100)], None, TileConfig(tile_px=60, annotated_area="annotated"))

    assert not plan.labelled.any()
    assert plan.notes == ("no area is outlined as 'annotated': none of its tiles is labelled",)


def test_without_an_annotated_area_all_tiles_of_an_annotated_slide_are_labelled_and_no_others(view):
    config = TileConfig(tile_px=60)

    assert plan_tiles(view, SIZE, [], None, config).labelled.all()
    assert not plan_tiles(view, SIZE, None, None, config).labelled.any()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 90), st.floats(0, 90), st.floats(5, 60), st.booleans()), min_size=1, max_size=5),
    st.integers(10, 60),
)
def test_an_area_meets_and_holds_boxes_as_a_slow_look_at_each_says(outlines, side):
    shapes = [Point(x, y).buffer(r) if is_round else box(x, y, x + r, y + r) for x, y, r, is_round in outlines]
    corners = np.array([(x, y) for y in range(-30, 130, side) for x in range(-30, 130, side)], dtype=np.float64)
    boxes = np.concatenate([corners, corners + side], axis=1)

    area, union = Area(shapes), shapely.union_all(shapes)
    meets, holds = area.meets(boxes), area.holds(boxes)

    for corner, is_met, is_held in zip(boxes, meets, holds, strict=True):
        share = union.intersection(box(*corner)).area / side**2
        if not 0 < share < 1e-9:  # a touch of rounding either way
            assert is_met == (share > 0)
        if abs(share - (1 - 1e-5)) > 1e-9:
            assert is_held == (share > 1 - 1e-5)


# Settings


@pytest.mark.parametrize(
    ("given_values", "message"),
    [
        ({"random": 5, "overlap_px": 10}, "overlap_px is of the grid, and random takes windows instead of it"),
        ({"around_objects": True, "edge": "pad"}, "edge 'pad' is of the grid, and around_objects takes windows inside"),
        ({"random": 0}, "tile.random: Input should be greater than or equal to 1"),
        ({"roi": "area", "ignore": ["area"]}, "class 'area' is to be ignored, and outlines an area"),
        ({"background": "grey"}, "tile.background: Input should be 'auto', 'light' or 'dark'"),
        ({"min_sharpness": 3.0, "measure": False}, "min_sharpness needs what measure=false leaves out"),
        ({"min_sharpness": -1.0}, "tile.min_sharpness: Input should be greater than or equal to 0"),
        ({"roi": ""}, "tile.roi: String should have at least 1 character"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_a_line(given_values, message):
    with pytest.raises(UserError, match=message):
        tile_config(given_values)
