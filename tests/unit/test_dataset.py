"""Data sets in files: COCO with its images, folders of images and masks, lists; and what training reads of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely

from cytopipe.core.errors import UserError
from cytopipe.data import FilePool, StoreDataset, open_dataset
from cytopipe.data.files import read_class_map, read_rgb
from cytopipe.train.stores import chosen_classes, open_stores, with_fraction

HEIGHT, WIDTH = 60, 80
DISCS = ((20, 20, 8), (55, 35, 10))  # x, y, radius, px


def disc_map(discs=DISCS) -> np.ndarray:
    """0 and the number of each disc."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    found = np.zeros((HEIGHT, WIDTH), np.uint16)
    for number, (cx, cy, radius) in enumerate(discs, start=1):
        found[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = number
    return found


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), pixels)
    return path


def write_mask(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), values)
    return path


def folder(tmp_path: Path, kind: str, count: int = 4, lacking: int = 0) -> Path:
    """images/ and masks/ or labels/ of `count` images, the last `lacking` without annotation."""
    for n in range(count):
        write_image(tmp_path / "images" / f"im{n}.png", n)
        if n < count - lacking:
            values = disc_map()
            values = (values > 0).astype(np.uint8) * 255 if kind == "masks" else values
            write_mask(tmp_path / kind / f"im{n}.png", values)
    return tmp_path


def write_voc(path: Path, boxes: list[tuple[str, int, int, int, int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1 in boxes
    )
    path.write_text(f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>{objects}</annotation>")


def write_coco(path: Path, images: list[str], annotations: list[dict], categories=("nucleus", "cell")) -> Path:
    listed = [{"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in enumerate(images)]
    classes = [{"id": i, "name": name} for i, name in enumerate(categories, start=1)]
    path.write_text(json.dumps({"images": listed, "annotations": annotations, "categories": classes}))
    return path


def write_list(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def pool_of(data, **how) -> FilePool:
    return data.pool(np.arange(len(data.ids)), data.classes, **how)


def quiet(line: str) -> None:
    """For `say`."""


@pytest.mark.parametrize("kind", ["masks", "labels"])
def test_a_folder_of_images_and_masks_or_label_maps_gives_the_pixels_that_were_marked(tmp_path, kind):
    data = open_dataset(folder(tmp_path, kind), "nucleus")
    pool = pool_of(data)

    objects = pool.objects(0)

    assert data.ids == ["im0", "im1", "im2", "im3"]
    assert [c.name for c in data.classes] == ["nucleus"]
    assert (pool.class_map(0) == (disc_map() > 0)).all()
    assert objects.labels.tolist() == [1, 1]
    assert sorted(shapely.area(objects.geometry)) == sorted((disc_map() == n).sum() for n in (1, 2))
    assert (pool.image(2) == read_rgb(tmp_path / "images/im2.png")).all()
    assert (data.mpp, data.unit, pool.name(3)) == (None, "image", "im3")


def test_touching_nuclei_are_one_object_of_a_mask_and_two_of_a_label_map(tmp_path):
    touching = disc_map(((20, 30, 10), (39, 30, 10)))
    for kind, values in (("masks", (touching > 0).astype(np.uint8)), ("labels", touching)):
        write_image(tmp_path / kind / "images/a.png")
        write_mask(tmp_path / kind / kind / "a.png", values)

    counts = [len(pool_of(open_dataset(tmp_path / k, "nucleus")).objects(0).labels) for k in ("masks", "labels")]

    assert counts == [1, 2]


def test_images_without_a_mask_are_unlabelled_and_not_empty(tmp_path):
    data = open_dataset(folder(tmp_path, "masks", count=5, lacking=2), "nucleus")

    assert data.labelled.tolist() == [True, True, True, False, False]


def test_a_folder_of_images_alone_is_unlabelled(tmp_path):
    for n in range(3):
        write_image(tmp_path / f"x{n}.jpg", n)

    data = open_dataset(tmp_path)

    assert data.ids == ["x0", "x1", "x2"]
    assert not data.labelled.any()
    with pytest.raises(UserError, match="has no labelled image"):
        open_stores(tmp_path, None, 0, quiet)


def test_masks_that_name_no_class_ask_for_one(tmp_path):
    with pytest.raises(UserError, match="--label-class"):
        open_dataset(folder(tmp_path, "masks"))


def test_a_mask_of_an_image_that_is_not_there_is_an_error_that_names_it(tmp_path):
    folder(tmp_path, "masks")
    write_mask(tmp_path / "masks/lost.png", np.zeros((4, 4), np.uint8))

    with pytest.raises(UserError, match="1 images that are not there: lost"):
        open_dataset(tmp_path, "nucleus")


def test_a_mask_of_another_size_than_its_image_is_an_error(tmp_path):
    folder(tmp_path, "masks")
    write_mask(tmp_path / "masks/im1.png", np.zeros((30, 40), np.uint8))

    with pytest.raises(UserError, match="is 40 x 30 px, and its image 80 x 60"):
        open_dataset(tmp_path, "nucleus")  # from the headers, before a run begins


@pytest.mark.parametrize(
    ("values", "classes", "expected"),
    [
        ([0, 1, 1], 1, [0, 1, 1]),
        ([0, 255, 255], 1, [0, 1, 1]),
        ([0, 1, 255], 1, [0, 1, 255]),  # 255 beside a 1 is not to be learned
        ([3, 120, 250], 1, [0, 0, 1]),  # stored with loss
        ([0, 7, 9], 1, [0, 1, 1]),  # numbers of objects
        ([0, 1, 2], 2, [0, 1, 2]),
        ([0, 2, 255], 2, [0, 2, 255]),
        ([0, 0, 0], 2, [0, 0, 0]),
    ],
)
def test_the_values_of_a_mask_are_classes_or_foreground(tmp_path, values, classes, expected):
    path = write_mask(tmp_path / "mask.png", np.array([values], np.uint8))

    assert read_class_map(path, classes).tolist() == [expected]


def test_a_value_of_a_class_that_nobody_named_is_an_error(tmp_path):
    path = write_mask(tmp_path / "mask.png", np.array([[0, 1, 3]], np.uint8))

    with pytest.raises(UserError, match="value 3, and 2 classes"):
        read_class_map(path, 2)


def test_a_colour_picture_is_no_mask(tmp_path):
    path = write_image(tmp_path / "mask.png")

    with pytest.raises(UserError, match="no mask"):
        read_class_map(path, 1)


def test_grey_and_transparent_images_are_read_as_rgb_and_deep_ones_refused(tmp_path):
    grey = write_mask(tmp_path / "grey.png", np.full((4, 5), 90, np.uint8))
    clear = write_mask(tmp_path / "clear.png", np.dstack([np.full((4, 5), v, np.uint8) for v in (10, 20, 30, 0)]))
    deep = write_mask(tmp_path / "deep.png", np.full((4, 5), 900, np.uint16))

    assert (read_rgb(grey) == 90).all()
    assert read_rgb(clear)[0, 0].tolist() == [30, 20, 10]
    with pytest.raises(UserError, match="uint16"):
        read_rgb(deep)
    with pytest.raises(UserError, match="no image"):
        read_rgb(write_list(tmp_path / "x.png", [{"image": "text"}]))


def test_several_classes_of_masks_are_learned_in_any_order_and_what_is_not_learned_is_background(tmp_path):
    write_image(tmp_path / "images/a.png")
    write_mask(tmp_path / "masks/a.png", (disc_map() * (disc_map() > 0)).astype(np.uint8))
    data = open_dataset(tmp_path, "nucleus, cell")
    both = pool_of(data)
    turned = data.pool(np.arange(1), data.classes[::-1])
    one = data.pool(np.arange(1), data.classes[1:])

    assert (both.class_map(0) == disc_map()).all()
    assert (turned.class_map(0) == np.array([0, 2, 1], np.uint8)[disc_map()]).all()
    assert (one.class_map(0) == (disc_map() == 2)).all()
    assert sorted(both.objects(0).labels.tolist()) == [1, 2]


def test_a_folder_of_voc_boxes_names_its_classes(tmp_path):
    for n in range(2):
        write_image(tmp_path / f"images/im{n}.jpg", n)
    write_voc(tmp_path / "annotations/im0.xml", [("WBC", 10, 5, 30, 25), ("RBC", 40, 30, 60, 50)])
    write_voc(tmp_path / "annotations/im1.xml", [])

    data = open_dataset(tmp_path)
    objects = pool_of(data).objects(0)

    assert [c.name for c in data.classes] == ["RBC", "WBC"]
    assert shapely.bounds(objects.geometry).tolist() == [[10, 5, 30, 25], [40, 30, 60, 50]]
    assert objects.labels.tolist() == [2, 1]
    assert data.labelled.all()  # an image in which nobody found anything is annotated


def test_a_coco_file_finds_its_images_beside_it_or_in_images(tmp_path):
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "images/b.png", 1)
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    annotations = [
        {"id": 1, "image_id": 0, "category_id": 2, "segmentation": square, "bbox": [10, 10, 20, 20], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "segmentation": [], "bbox": [60, 40, 40, 40], "iscrowd": 0},
        {"id": 3, "image_id": 1, "category_id": 1, "segmentation": square, "bbox": [10, 10, 20, 20], "iscrowd": 1},
    ]
    data = open_dataset(write_coco(tmp_path / "all.json", ["a.png", "b"], annotations))
    pool = pool_of(data)

    assert [c.name for c in data.classes] == ["nucleus", "cell"]
    assert pool.objects(0).labels.tolist() == [2]
    assert pool.objects(0).whole.tolist() == [True]
    assert shapely.bounds(pool.objects(1).geometry).tolist() == [[60, 40, 80, 60]]  # cut at the image's border
    assert pool.objects(1).whole.tolist() == [False]
    assert (pool.class_map(1)[10:30, 10:30] == 255).all()  # a crowd is not learned
    assert pool.class_map(1)[0, 0] == 0


def test_a_coco_file_whose_image_is_missing_says_which(tmp_path):
    path = write_coco(tmp_path / "all.json", ["a.png"], [])

    with pytest.raises(UserError, match=r"'a.png', which is not there"):
        open_dataset(path)


def listed(tmp_path: Path) -> list[dict[str, str]]:
    """Six images of three patients with masks, label maps and boxes."""
    rows = []
    for n in range(6):
        write_image(tmp_path / f"im{n}.png", n)
        if n % 3 == 0:
            write_mask(tmp_path / f"ann{n}.png", (disc_map() > 0).astype(np.uint8) * 255)
        elif n % 3 == 1:
            write_mask(tmp_path / f"ann{n}.png", disc_map())
        else:
            write_voc(tmp_path / f"ann{n}.xml", [("nucleus", 10, 10, 30, 30)])
        split = ("train", "train", "val", "val", "test", "test")[n]
        name = f"ann{n}.png" if n % 3 < 2 else f"ann{n}.xml"
        rows.append({"image": f"im{n}.png", "annotation": name, "patient": f"P{n // 2}", "split": split})
    return rows


def test_a_list_gives_patients_parts_and_annotations_of_any_format(tmp_path):
    data = open_dataset(write_list(tmp_path / "list.csv", listed(tmp_path)), "nucleus")
    pool = pool_of(data)

    assert data.splits == ["train", "train", "val", "val", "test", "test"]
    assert data.patients == ["P0", "P0", "P1", "P1", "P2", "P2"]
    assert data.states_patients
    assert [len(pool.objects(i).labels) for i in range(6)] == [2, 2, 1, 2, 2, 1]
    assert [int(pool.class_map(i).sum()) for i in (0, 1)] == [int((disc_map() > 0).sum())] * 2
    assert pool.class_map(2).sum() == 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "training"}, "row 3: split 'training'"),
        ({"image": "gone.png"}, "row 3: names 'gone.png', which is not there"),
        ({"annotation": "gone.xml"}, "row 3: names 'gone.xml', which is not there"),
        ({"patient": "P0"}, "row 3: patient 'P0' is in train and in val"),
        ({"image": ""}, "row 3: names no image"),
        ({"image": "im1.png", "patient": "P1"}, "2 images are called 'im1.png'"),
    ],
)
def test_a_list_that_is_wrong_says_in_which_row(tmp_path, change, message):
    rows = listed(tmp_path)
    rows[2] |= change

    with pytest.raises(UserError, match=message):
        open_dataset(write_list(tmp_path / "list.csv", rows), "nucleus")


def test_a_list_without_the_column_image_is_refused(tmp_path):
    with pytest.raises(UserError, match="no column image"):
        open_dataset(write_list(tmp_path / "list.csv", [{"picture": "a.png"}]))


def test_resized_images_keep_objects_and_classes_in_place(tmp_path):
    data = open_dataset(folder(tmp_path, "labels"), "nucleus")
    plain, square = pool_of(data), pool_of(data, resize_px=120)

    assert square.image(0).shape == (120, 120, 3)
    assert square.class_map(0).shape == (120, 120)
    scaled = shapely.bounds(plain.objects(0).geometry) * [1.5, 2, 1.5, 2]
    np.testing.assert_allclose(shapely.bounds(square.objects(0).geometry), scaled)
    assert square.class_map(0).sum() == 3 * plain.class_map(0).sum()


def test_resized_masks_are_resized_as_label_maps_are(tmp_path):
    masks = pool_of(open_dataset(folder(tmp_path / "a", "masks"), "nucleus"), resize_px=240)
    labels = pool_of(open_dataset(folder(tmp_path / "b", "labels"), "nucleus"), resize_px=240)

    assert (masks.class_map(0) == labels.class_map(0)).all()


def test_an_image_on_black_goes_on_as_black_and_a_tile_as_glass(tmp_path):
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[20:40, 20:40] = 200
    write_mask(tmp_path / "images/a.png", image)

    assert pool_of(open_dataset(tmp_path)).beyond(0) == (0, 0, 0)


def test_the_digest_follows_what_annotates_and_not_where_it_lies(tmp_path):
    first, second = folder(tmp_path / "a", "labels"), folder(tmp_path / "b", "labels")
    same = open_dataset(first, "nucleus").digest() == open_dataset(second, "nucleus").digest()

    write_mask(second / "labels/im0.png", disc_map(DISCS[:1]))

    assert same
    assert open_dataset(first, "nucleus").digest() != open_dataset(second, "nucleus").digest()
    assert open_dataset(first, "nucleus").digest() != open_dataset(first, "cell").digest()


def test_a_tile_store_is_a_dataset_as_well(labelled_store):
    data = open_dataset(labelled_store)

    assert isinstance(data, StoreDataset)
    assert data.unit == "tile"
    assert len(data.ids) == len(data.patients) == len(data.splits) == len(data.labelled)
    with pytest.raises(UserError, match="they have a resolution"):
        data.pool(np.arange(2), data.classes, resize_px=128)


def test_a_folder_that_is_nothing_says_so(tmp_path):
    with pytest.raises(UserError, match="store"):
        open_dataset(tmp_path / "nothing")


def test_images_without_parts_keep_some_for_validation_and_no_image_serves_twice(tmp_path):
    said: list[str] = []

    stores = open_stores(folder(tmp_path, "masks", count=20), None, 0, said.append, label_class="nucleus")

    assert len(stores.val_rows) == 2
    assert sorted([*stores.train_rows, *stores.val_rows]) == list(range(20))
    assert "(2 images)" in said[0]


def test_the_parts_of_a_list_are_kept_and_its_test_part_is_never_touched(tmp_path):
    path = write_list(tmp_path / "list.csv", listed(tmp_path))

    stores = open_stores(path, path, 0, quiet, label_class="nucleus")

    assert stores.train_rows.tolist() == [0, 1]
    assert stores.val_rows.tolist() == [2, 3]
    assert set(stores.unlabelled_rows) <= {0, 1}


def test_of_one_dataset_the_images_whose_labels_are_not_used_are_the_unlabelled_ones(tmp_path):
    path = folder(tmp_path, "masks", count=24, lacking=4)
    stores = open_stores(path, path, 0, quiet, label_class="nucleus")

    few = with_fraction(stores, "1/6", 0, quiet)

    bare = {"im20", "im21", "im22", "im23"}
    assert {stores.unlabelled.ids[i] for i in stores.unlabelled_rows} == bare
    assert len(few.train_rows) == 3
    assert not set(few.unlabelled_rows) & (set(few.train_rows) | set(few.val_rows))
    assert len(few.unlabelled_rows) == 24 - 3 - len(few.val_rows)
    assert bare < {few.unlabelled.ids[i] for i in few.unlabelled_rows}


def test_fractions_of_images_lie_inside_each_other(tmp_path):
    stores = open_stores(folder(tmp_path, "masks", count=40), None, 0, quiet, label_class="nucleus")

    small, large = (set(with_fraction(stores, share, 0, quiet).train_rows) for share in ("1/8", "1/4"))

    assert small < large < set(stores.train_rows)


def test_unlabelled_images_of_a_test_patient_are_refused(tmp_path):
    labelled = write_list(tmp_path / "list.csv", listed(tmp_path))
    write_image(tmp_path / "other.png", 99)
    leaky = write_list(tmp_path / "more.csv", [{"image": "other.png", "patient": "P2"}])

    with pytest.raises(UserError, match="keeps for validation or test: P2"):
        open_stores(labelled, leaky, 0, quiet, label_class="nucleus")


def test_an_unlabelled_copy_of_a_test_image_is_refused_whatever_it_is_called(tmp_path):
    labelled = write_list(tmp_path / "list.csv", listed(tmp_path))
    more = tmp_path / "more"
    write_image(more / "renamed.png", 5)  # the pixels of im5, a test image
    write_image(more / "new.png", 77)

    with pytest.raises(UserError, match=r"keeps for validation or test: im5.png"):
        open_stores(labelled, more, 0, quiet, label_class="nucleus")


def test_unlabelled_copies_of_images_set_aside_for_validation_are_left_out_and_said(tmp_path):
    labelled = folder(tmp_path / "few", "masks", count=10)
    everything = tmp_path / "all"
    for n in range(15):
        write_image(everything / f"copy{n}.png", n)
    said: list[str] = []

    stores = open_stores(labelled, everything, 0, said.append, label_class="nucleus")

    aside = {f"copy{i}" for i in stores.val_rows}
    assert {stores.unlabelled.ids[i] for i in stores.unlabelled_rows} == {f"copy{n}" for n in range(15)} - aside
    assert f"{len(aside)} images of all are left out" in said[-1]


def test_a_class_that_the_annotations_do_not_have_is_named_with_the_nearest(tmp_path):
    data = open_dataset(folder(tmp_path, "masks"), "nucleus")

    with pytest.raises(UserError, match="nucleus"):
        chosen_classes(data, ["nucleos"])


def test_an_annotation_of_a_category_that_the_file_does_not_name_is_an_error_and_no_background(tmp_path):
    write_image(tmp_path / "a.png")
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 1, "name": "nucleus"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": n, "bbox": [5, 5, 9, 9], "area": 81, "iscrowd": 0} for n in (1, 2)
        ],
    }
    (tmp_path / "c.json").write_text(json.dumps(document))

    with pytest.raises(UserError, match="annotation 2 is of category 2, which its categories do not name"):
        open_dataset(tmp_path / "c.json")


def test_what_is_nothing_to_train_on_is_told_what_would_be(tmp_path):
    (tmp_path / "slide.svs").write_bytes(b"II*\0")

    with pytest.raises(UserError, match=r"nowhere: is not there; give a tile store .* a COCO file"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"slide\.svs: is nothing to train on; give a tile store"):
        open_dataset(tmp_path / "slide.svs")


def test_a_class_that_the_data_do_not_have_is_called_a_class(tmp_path):
    data = open_dataset(folder(tmp_path, "masks"), "nucleus")

    with pytest.raises(UserError, match=r"has no class 'nucleous', which train\.classes names; did you mean 'nucleus'"):
        chosen_classes(data, ["nucleous"])
