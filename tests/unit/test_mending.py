"""The rule for outlines that are not fine: each line of the table in `formats/mending.py`, as it is met."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from shapely import MultiPolygon, Polygon, box

from cytopipe.core.errors import UserError
from cytopipe.formats.drawn import Drawn, Page, Wish, annotations_from
from cytopipe.formats.mending import MAX_CROSSINGS, Refused, outline_of

SQUARE = [(0, 0), (10, 0), (10, 10), (0, 10)]
HOLE = [(2, 2), (4, 2), (4, 4), (2, 4)]


def moved(ring, dx, dy):
    return [(x + dx, y + dy) for x, y in ring]


def read(*drawn, size=None, **wish):
    return annotations_from(Page(drawn), Wish(slide_size=size, **wish))


@pytest.mark.parametrize(
    ("polygons", "area", "words"),
    [
        ([[[(0, 0), (10, 10), (10, 0), (0, 10)]]], 50, "self-intersection"),
        ([[[(0, 0), (10, 0), (10, 10), (0, 10), (0, 0), (10, 0), (10, 10), (0, 10)]]], 100, "enclosed area is kept"),
        ([[[(0, 0), (5, 0), (5, 5), (9, 5), (5, 5), (0, 5)]]], 25, "enclosed area is kept"),
        ([[SQUARE], [moved(SQUARE, 5, 0)]], 150, "enclosed area is kept"),
        ([[SQUARE, moved(HOLE, 7, 0)]], 98, "enclosed area is kept"),
        ([[SQUARE, moved(HOLE, 20, 0)]], 100, "enclosed area is kept"),
        ([[SQUARE, HOLE, moved(HOLE, 1, 0)]], 94, "enclosed area is kept"),
        ([[SQUARE, [(1, 1), (2, 2)]]], 100, "a hole without area is left out"),
        ([[SQUARE, [(1, 1), (2, 2), (3, 3)]]], 100, "enclosed area is kept"),
        ([[SQUARE], [[(50, 50), (60, 60)]]], 100, "a part of it has 2 points, left out"),
        ([[SQUARE], [[(50, 50), (60, 60), (70, 70)]]], 100, "enclosed area is kept"),
    ],
    ids=[
        "bow tie",
        "run twice",
        "spike",
        "parts overlap",
        "hole over the border",
        "hole outside",
        "holes overlap",
        "hole of two points",
        "hole on a line",
        "part of two points",
        "part on a line",
    ],
)
def test_what_can_be_mended_keeps_its_area_and_says_so(polygons, area, words):
    geometry, mended = outline_of(polygons)

    assert geometry.is_valid
    assert geometry.area == pytest.approx(area)
    assert words in "; ".join(mended)


def test_a_ring_that_winds_twice_round_its_middle_keeps_it_and_one_that_comes_back_leaves_its_hole():
    tips = [(50 + 40 * np.sin(4 * np.pi * k / 5), 50 - 40 * np.cos(4 * np.pi * k / 5)) for k in range(5)]
    inner = [(3, 3), (3, 6), (6, 6), (6, 3)]  # against the outline: there and back on the same line

    pentagram, _ = outline_of([[tips]])
    keyhole, _ = outline_of([[[*SQUARE, (0, 0), *inner, (3, 3), (0, 0)]]])

    assert pentagram.contains(shapely.Point(50, 50))
    assert keyhole.area == pytest.approx(91)
    assert not keyhole.intersects(box(4, 4, 5, 5))


@pytest.mark.parametrize(
    ("polygons", "reason"),
    [
        ([], "no rings"),
        ([[[(0, 0), (5, 5)]]], "has 2 points"),
        ([[[(0, 0), (5, 5), (0, 0), (5, 5)]]], "has 2 points"),
        ([[[(0, 0), (5, 5), (9, 9)]]], "encloses no area"),
        ([[SQUARE, SQUARE]], "encloses no area"),
        ([[[(0, 0), (float("nan"), 0), (1, 1)]]], "not a finite number"),
        ([[[(0, 0), (float("inf"), 0), (1, 1)]]], "not a finite number"),
        ([[SQUARE], [[(0, 0), (float("nan"), 0), (1, 1)]]], "not a finite number"),
        ([[[(0, 0), (3e9, 0), (1, 1)]]], "3e\\+09 px lies outside of any slide"),
        ([[[(0, 0), ("7", 0), (1, 1)]]], "not pairs of numbers"),
        ([[[0, 1, 2, 3, 4, 5]]], "not pairs of numbers"),
    ],
)
def test_what_cannot_be_mended_is_refused_with_its_reason(polygons, reason):
    with pytest.raises(Refused, match=reason):
        outline_of(polygons)


def test_a_scribble_is_refused_before_its_crossings_are_computed():
    scribble = np.random.default_rng(0).uniform(0, 1000, (20_000, 2))  # about 4e7 crossings, which no memory holds

    with pytest.raises(Refused, match=f"more than {MAX_CROSSINGS} times"):
        outline_of([[scribble]])


def test_only_a_format_that_closes_its_rings_has_an_open_one_to_mend():
    assert outline_of([[SQUARE]], closes_rings=True)[1] == ["a ring is not closed"]
    assert outline_of([[SQUARE]])[1] == []
    assert outline_of([[[*SQUARE, SQUARE[0]]]], closes_rings=True)[1] == []


def test_objects_outside_of_the_slide_are_refused_and_those_on_its_border_cut_off():
    inside, across, beyond, touching = (Drawn(name, "RBC", [[moved(SQUARE, dx, 0)]]) for name, dx in (
        ("inside", 90), ("across", 95), ("beyond", 500), ("touching", 100)))  # fmt: skip

    found = read(inside, across, beyond, touching, size=(100, 50))

    assert {a.object_id: a.geometry.bounds for a in found.objects} == {
        "inside": (90, 0, 100, 10),
        "across": (95, 0, 100, 10),
    }
    assert [str(problem) for problem in found.problems] == [
        "across mended: the part outside of the slide is cut off",
        "beyond refused: lies outside of the slide of 100 x 50 px",
        "touching refused: lies outside of the slide of 100 x 50 px",
    ]
    assert (found.mended, found.refused) == (1, 2)


def test_without_a_slide_nothing_is_cut_off():
    found = read(Drawn("far", "RBC", [[moved(SQUARE, -95, 5000)]]))

    assert found.objects[0].geometry.bounds == (-95, 5000, -85, 5010)
    assert found.problems == []


def test_an_object_has_one_problem_that_says_all_that_was_mended():
    ring = [(-5, 0), (5, 10), (5, 0), (-5, 10)]

    found = read(Drawn("a", "RBC", [[SQUARE]]), Drawn("a", "RBC", [[ring]], closes_rings=True), size=(100, 100))

    assert [p.object_id for p in found.problems] == ["a-2"]
    assert found.mended == 1
    for words in ("not closed", "self-intersection", "outside of the slide", "id a is used twice"):
        assert words in found.problems[0].what


def test_classes_are_renamed_first_and_ignored_then_and_counted():
    drawn = [Drawn(str(k), name, [[SQUARE]]) for k, name in enumerate(("RBC", "rbc", "WBC", "Dust", "dirt"))]

    found = read(*drawn, class_map={"rbc": "RBC", "dirt": "Dust", "WBC": "WBC"}, ignore=["Dust"])

    assert [a.class_name for a in found.objects] == ["RBC", "RBC", "WBC"]
    assert found.ignored == {"Dust": 2}
    assert found.problems == []


def test_objects_without_a_class_are_refused_unless_a_class_is_given_for_them():
    drawn = Drawn("a", "", [[SQUARE]])

    assert [str(p) for p in read(drawn).problems] == ["a refused: has no class"]
    assert [a.class_name for a in read(drawn, label_class="nucleus").objects] == ["nucleus"]


def test_many_objects_of_one_id_get_ids_of_their_own():
    found = read(*(Drawn("x", "RBC", [[SQUARE]]) for _ in range(2000)), Drawn("x-2", "RBC", [[SQUARE]]))

    assert len({a.object_id for a in found.objects}) == 2001


@pytest.mark.parametrize(
    ("stated", "slide", "factor"),
    [((100, 50), (100, 50), 1), ((100, 50), (400, 200), 4), ((100, 50), (403, 203), 4), ((25, 13), (103, 50), 4)],
)
def test_a_file_made_on_a_whole_fraction_of_the_slide_is_scaled(stated, slide, factor):
    page = Page([Drawn("a", "RBC", [[SQUARE]])], size=stated)

    found = annotations_from(page, Wish(slide_size=slide))

    assert found.objects[0].geometry.equals(box(0, 0, 10 * factor, 10 * factor))


@pytest.mark.parametrize(("stated", "slide"), [((100, 50), (150, 75)), ((100, 50), (50, 25)), ((100, 50), (400, 50))])
def test_a_file_made_for_another_size_is_refused_with_both_sizes(stated, slide):
    with pytest.raises(UserError, match=f"{stated[0]} x {stated[1]} px, and the slide has {slide[0]} x {slide[1]}"):
        annotations_from(Page([], size=stated), Wish(slide_size=slide), where="a.xml")


def test_mended_outlines_are_polygons_or_multipolygons_and_nothing_else():
    two_parts, _ = outline_of([[[(0, 0), (10, 10), (10, 0), (0, 10)]]])
    one_part, _ = outline_of([[SQUARE], [moved(SQUARE, 5, 0)]])

    assert isinstance(two_parts, MultiPolygon)
    assert isinstance(one_part, Polygon)
