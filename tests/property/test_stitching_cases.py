"""The stitching rule case by case: what each of its steps is for, on windows of 100 px that overlap by 40 px, g = 8."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely

from cytopipe.core.objects import JOINED, TRUNCATED, Objects, no_objects
from cytopipe.infer.frames import scale_objects
from cytopipe.infer.stitching import Stitcher, no_views, stitch
from cytopipe.infer.stitching.clusters import Pairs, clusters
from cytopipe.infer.windows import plan_windows
from tests.property.stitch_scenes import CLASSES, Cell, as_views, octagon, rows_of

WINDOWS = plan_windows(220, 220, 100, 40)  # 3 × 3, at 0, 60 and 120
GUARD_PX = 8


def box(x0, y0, x1, y1, label=0, score=0.5):
    return Cell((x0, y0, x1, y1), label, score, None)


def masked(polygon, label=0, score=0.5):
    return Cell(polygon.bounds, label, score, polygon)


def reports(windows=WINDOWS, **reported):
    """Views of all windows: `w4=[cells]` for those that see something."""
    return {k: as_views(reported.get(f"w{k}", [])) for k in range(len(windows))}


def boxes_of(objects: Objects) -> list[list[float]]:
    return objects.xyxy.tolist()


def views_at(places: list[tuple[int, int]]) -> Objects:
    """Views alike but for the window and the left edge of the box, which are given."""
    n, window = len(places), np.array([window for window, _ in places], np.int32)
    boxes = np.array([[x, 0.0, x + 10, 10] for _, x in places])
    scores = np.zeros(n, np.float32)
    return Objects(
        boxes, np.zeros(n, np.int32), scores, scores[:, None], np.full(n, None, object), np.zeros(n, np.uint8), window
    )


def members(cluster: np.ndarray) -> list[set[int]]:
    """The rows of each cluster, clusters by their first row."""
    return [set(np.flatnonzero(cluster == name).tolist()) for name in dict.fromkeys(cluster.tolist())]


def test_a_cell_at_the_corner_of_four_windows_is_reported_once_by_the_window_that_sees_it_best():
    cell = box(70, 71, 85, 88)

    objects = stitch(WINDOWS, reports(w0=[cell], w1=[cell], w3=[cell], w4=[cell]), GUARD_PX)

    assert boxes_of(objects) == [[70, 71, 85, 88]]
    assert objects.flags.tolist() == [0]
    assert objects.window.tolist() == [0]  # d: 12, 10, 11, 10


def test_a_cell_that_three_windows_of_one_axis_see_is_reported_once():
    windows = plan_windows(165, 80, 100, 60)  # the last one is shifted inwards: 0, 40 and 65

    objects = stitch(windows, reports(windows, **{f"w{k}": [box(75, 20, 90, 40)] for k in range(3)}), GUARD_PX)

    assert windows.starts_x.tolist() == [0, 40, 65]
    assert boxes_of(objects) == [[75, 20, 90, 40]]


def test_overlapping_and_equal_cells_of_one_window_all_stay():
    cells = [box(10, 10, 30, 30), box(12, 10, 32, 30), box(10, 10, 30, 30, label=1), box(10, 10, 30, 30)]

    objects = stitch(WINDOWS, reports(w0=cells), GUARD_PX)

    assert len(objects) == 4


def test_equal_boxes_of_two_classes_find_their_own_twins():
    cells = [box(70, 20, 90, 40, label=1, score=0.75), box(70, 20, 90, 40, label=2, score=0.5)]

    objects = stitch(WINDOWS, reports(w0=cells, w1=cells[::-1]), GUARD_PX)

    assert sorted(objects.class_index.tolist()) == [1, 2]


def test_twins_that_differ_by_a_pixel_are_one_cell_with_the_look_of_the_better_view():
    objects = stitch(WINDOWS, reports(w0=[box(69, 20, 84, 40, label=1)], w1=[box(70, 21, 84, 41, label=2)]), GUARD_PX)

    assert boxes_of(objects) == [[69, 20, 84, 40]]  # d = 16 in window 0, 10 in window 1
    assert objects.class_index.tolist() == [1]


@pytest.mark.parametrize(("of_cell", "of_cut"), [("w0", "w1"), ("w1", "w0")])
def test_a_view_that_its_own_window_or_the_other_may_have_cut_is_no_twin(of_cell, of_cut):
    cell = box(68, 70, 92, 88)
    cut = box(62, 70, 94, 88)  # IoU 0.75, but 2 px from an inner edge of window 1; 6 px from those of windows 0 and 3

    objects = stitch(WINDOWS, reports(**{of_cell: [cell], of_cut: [cut]}), GUARD_PX)

    assert boxes_of(objects) == [[62, 70, 94, 88], [68, 70, 92, 88]]
    assert objects.flags.tolist() == [TRUNCATED, 0]


def test_masks_decide_where_there_are_masks():
    upper = shapely.Polygon([(70, 20), (90, 20), (70, 40)])
    lower = shapely.Polygon([(90, 20), (90, 40), (70, 40)])

    by_box = stitch(WINDOWS, reports(w0=[box(*upper.bounds)], w1=[box(*lower.bounds)]), GUARD_PX)
    by_mask = stitch(WINDOWS, reports(w0=[masked(upper)], w1=[masked(lower)]), GUARD_PX)

    assert len(by_box) == 1
    assert sorted(shape.wkt for shape in by_mask.geometry) == sorted([upper.wkt, lower.wkt])


def test_masks_that_fill_little_of_their_boxes_may_still_be_twins():
    slim = shapely.union_all([shapely.box(70, 20, 72, 40), shapely.box(70, 38, 90, 40)])
    slimmer = shapely.union_all([shapely.box(70, 20, 72, 40), shapely.box(70, 38, 76, 40)])  # boxes: IoU 0.3

    objects = stitch(WINDOWS, reports(w0=[masked(slim)], w1=[masked(slimmer)]), GUARD_PX)

    assert len(objects) == 1


@pytest.mark.parametrize(("right", "expected"), [(80, 1), (79.75, 2)])
def test_masks_that_share_half_of_their_union_are_twins_and_less_is_not_enough(right, expected):
    seen = {"w0": [masked(shapely.box(70, 20, 90, 40))], "w1": [masked(shapely.box(70, 20, right, 40))]}

    assert len(stitch(WINDOWS, reports(**seen), GUARD_PX)) == expected


def test_a_sliver_at_a_window_edge_vanishes_where_another_window_saw_the_place_uncut():
    objects = stitch(WINDOWS, reports(w0=[box(96, 20, 100, 40)]), GUARD_PX)

    assert len(objects) == 0


def test_a_sliver_at_the_border_of_the_slide_is_whole():
    objects = stitch(WINDOWS, reports(w0=[box(0, 20, 4, 40)]), GUARD_PX)

    assert objects.flags.tolist() == [0]


def test_a_cut_view_next_to_a_window_that_was_skipped_stays_and_is_flagged():
    views = {0: as_views([box(80, 20, 100, 40)])}

    objects = stitch(WINDOWS, views, GUARD_PX)

    assert boxes_of(objects) == [[80, 20, 100, 40]]
    assert objects.flags.tolist() == [TRUNCATED]


def test_a_cut_view_next_to_a_window_that_could_not_be_read_stays_too():
    views, stitcher = reports(w0=[box(80, 20, 100, 40)]), Stitcher(WINDOWS, GUARD_PX)

    for k in views:
        if k == 1:
            stitcher.leave_out(k)
        else:
            stitcher.add(k, views[k])

    assert stitcher.finish().flags.tolist() == [TRUNCATED]


def test_pieces_of_a_long_cell_are_joined_to_their_hull_with_the_class_of_the_largest():
    left, middle = box(20, 20, 100, 40, label=1, score=0.75), box(60, 20, 150, 40, label=2)

    objects = stitch(WINDOWS, reports(w0=[left], w1=[middle]), GUARD_PX)

    assert boxes_of(objects) == [[20, 20, 150, 40]]
    assert objects.flags.tolist() == [JOINED]
    assert (objects.class_index.tolist(), objects.score.tolist(), objects.window.tolist()) == ([2], [0.5], [1])


def test_pieces_of_a_long_cell_with_masks_are_united():
    cell = octagon(20, 20, 150, 40)
    left, right = cell.intersection(shapely.box(0, 0, 100, 100)), cell.intersection(shapely.box(60, 0, 160, 100))

    objects = stitch(WINDOWS, reports(w0=[masked(left)], w1=[masked(right)]), GUARD_PX)

    assert objects.flags.tolist() == [JOINED]
    assert objects.geometry[0].symmetric_difference(cell).area == pytest.approx(0, abs=1e-9)


def test_pieces_are_compared_where_both_windows_see():
    left, right = box(5, 20, 100, 40), box(60, 20, 160, 40)  # IoU 0.26; of what both windows show, 1

    objects = stitch(WINDOWS, reports(w0=[left], w1=[right]), GUARD_PX)

    assert boxes_of(objects) == [[5, 20, 160, 40]]


def test_the_same_class_counts_before_a_like_score():
    seen = box(70, 20, 85, 40, label=1, score=0.5)  # d = 15 in window 0, 10 in window 1
    twin, other = box(70, 20, 85, 40, label=1, score=0.875), box(70, 20, 85, 40, label=2, score=0.5)

    objects = stitch(WINDOWS, reports(w0=[seen], w1=[twin, other]), GUARD_PX)

    assert sorted(zip(objects.class_index.tolist(), objects.score.tolist(), strict=True)) == [(1, 0.5), (2, 0.5)]


def test_a_piece_that_touches_the_common_part_of_two_windows_along_a_line_is_still_compared():
    # of the left piece, windows 0 and 1 both show the lower bar, and the upper one's end as a line at x = 60
    left = shapely.union_all([shapely.box(5, 10, 60, 15), shapely.box(5, 15, 20, 30), shapely.box(5, 30, 100, 40)])

    objects = stitch(WINDOWS, reports(w0=[masked(left)], w1=[masked(shapely.box(60, 30, 155, 40))]), GUARD_PX)

    assert boxes_of(objects) == [[5, 10, 155, 40]]


def test_a_view_whose_partner_was_refused_takes_no_second_one_in_that_window():
    table = views_at([(0, 0), (0, 0), (1, 0), (1, 0), (2, 0)])
    # 2 joins 4 and 4 joins 1, so that 2 is in a cluster with window 0: pair (0, 2) is refused, and (0, 3) comes late
    pairs = Pairs(np.array([2, 1, 0, 0]), np.array([4, 4, 2, 3]), np.array([0.9, 0.8, 0.7, 0.6]))

    assert members(clusters(pairs, table)) == [{0}, {1, 2, 4}, {3}]


def test_pairs_of_equal_overlap_join_by_box_and_not_by_window():
    table = views_at([(0, 2), (0, 3), (1, 1), (2, 4)])
    pairs = Pairs(np.array([0, 1, 2]), np.array([3, 2, 3]), np.full(3, 0.9))  # a chain with window 0 at both ends

    assert members(clusters(pairs, table)) == [{0, 2, 3}, {1}]


def test_a_piece_waits_for_a_view_that_may_turn_out_to_be_its_other_piece():
    # windows 3 and 4 both see the long cell at 4 <= d < 8, cut differently at its lower end, where row 2 may see it too
    views = reports(w0=[box(66, 96, 94, 100)], w3=[box(66, 96, 94, 154)], w4=[box(66, 124, 94, 156)])
    stitcher = Stitcher(WINDOWS, GUARD_PX)

    for k in range(6):
        stitcher.add(k, views[k])
    early = stitcher.completed()
    for k in range(6, 9):
        stitcher.add(k, views[k])
    late = stitcher.finish()

    assert len(early) == 0
    assert boxes_of(late) == [[66, 96, 94, 154]]
    assert late.flags.tolist() == [JOINED]
    assert rows_of(late) == rows_of(stitch(WINDOWS, views, GUARD_PX))


def test_of_pieces_of_equal_area_that_of_the_first_window_gives_the_class_however_late_it_was_decided():
    # row 1 may see the left piece settled, 4 px from its edge, and not the right one, 3 px from it: that waits alone
    views, stitcher = reports(w0=[box(20, 64, 100, 84, 1)], w1=[box(60, 63, 140, 83, 2)]), Stitcher(WINDOWS, GUARD_PX)

    tables = []
    for row in range(3):
        for k in WINDOWS.of_row(row):
            stitcher.add(k, views[k])
        tables.append(stitcher.completed())

    assert [table.class_index.tolist() for table in tables] == [[], [1], []]
    assert rows_of(tables[1]) == rows_of(stitch(WINDOWS, views, GUARD_PX))


def test_views_that_tie_in_box_class_and_score_are_ordered_by_their_masks():
    one, two = masked(octagon(20, 20, 40, 40)), masked(shapely.box(20, 20, 40, 40))

    objects, again = (stitch(WINDOWS, reports(w0=cells), GUARD_PX) for cells in ([one, two], [two, one]))

    assert rows_of(objects) == rows_of(again)


def test_a_slide_without_windows_to_run_has_no_objects():
    assert len(stitch(WINDOWS, {}, GUARD_PX)) == 0


def test_windows_report_once_only_if_they_are_run_and_all_before_the_end():
    stitcher = Stitcher(WINDOWS, GUARD_PX, np.arange(9) < 2)
    stitcher.add(0, no_views(CLASSES))

    with pytest.raises(ValueError, match="window 0 has reported already"):
        stitcher.add(0, no_views(CLASSES))
    with pytest.raises(ValueError, match="window 2 was not to be run"):
        stitcher.add(2, no_views(CLASSES))
    with pytest.raises(ValueError, match=r"windows \[1\] are due"):
        stitcher.finish()


def test_windows_of_different_class_lists_are_refused():
    stitcher = Stitcher(WINDOWS, GUARD_PX)
    stitcher.add(0, no_views(CLASSES))

    with pytest.raises(ValueError, match="reports 2 classes, others 3"):
        stitcher.add(1, no_views(2))


def test_a_view_whose_polygon_is_not_valid_is_refused():
    bow_tie = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])

    with pytest.raises(ValueError, match="not valid"):
        as_views([masked(bow_tie)])


def test_objects_are_scaled_to_level_0_axis_by_axis():
    objects = stitch(WINDOWS, reports(w0=[masked(octagon(10, 20, 30, 40)), box(50, 60, 70, 90)]), GUARD_PX)

    scaled = scale_objects(objects, (2.0, 4.0))

    assert boxes_of(scaled) == [[20, 80, 60, 160], [100, 240, 140, 360]]
    assert scaled.geometry[0].equals(octagon(20, 80, 60, 160))
    assert scaled.geometry[1] is None
    assert objects.geometry[0].equals(octagon(10, 20, 30, 40))
    assert rows_of(scale_objects(no_objects(2), (2.0, 2.0))) == []
    assert rows_of(replace(scaled, xyxy=objects.xyxy, geometry=objects.geometry)) == rows_of(objects)
