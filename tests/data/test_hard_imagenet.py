"""Hard ImageNet, its masks and the long tail and constant test sets from their published layouts."""

import collections
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from l2r2.config import TruthSettings
from l2r2.datasets import load_dataset
from l2r2.datasets.hard_imagenet import MAX_PICKLE_BYTES, from_hard_imagenet, read_plain_pickle
from l2r2.errors import DatasetError
from l2r2.images import read
from l2r2.localization.truth import TruthLocalizer
from tests.data.layouts_b import BALL, SIZE, SKI, SNORKEL, TENCH, draw, draw_mask, dump, halves, hard_imagenet, shifted

CLASSES = (SKI, SNORKEL, BALL)


@pytest.fixture
def layout(tmp_path):
    """The folders of ImageNet and of the masks."""
    return hard_imagenet(tmp_path)


def make(layout, tmp_path, **options):
    return from_hard_imagenet(*layout, tmp_path / "out", **options)


def refused(message, layout, tmp_path, **options):
    with pytest.raises(DatasetError, match=rf"^{re.escape(message)}$"):
        make(layout, tmp_path, **options)
    assert not (tmp_path / "out" / "dataset.json").exists()


def foreground(row):
    """What a mask's file holds, as the localizer of ground truth reads it."""
    with Image.open(row["mask"]) as image:
        return np.asarray(image.convert("L")) > 0


def row_of(made, part):
    rows = made.table.filter(pl.col("path").str.contains(part, literal=True))
    assert len(rows) == 1
    return rows.row(0, named=True)


LEFT = halves(1, 0).astype(bool)


def test_a_tenth_of_train_is_val_and_imagenets_val_is_the_test_set(tmp_path, layout):
    made = make(layout, tmp_path)
    # 12 groups a class: one is given to each of train and val, 0.9 of the other 10 are 9
    by_split = {split: len(made.split(split)) for split in ("train", "val", "test")}
    assert by_split == {"train": 30, "val": 6, "test": 30}
    assert dict(made.split("val").table.group_by("label").len().iter_rows()) == dict.fromkeys(CLASSES, 2)
    assert made.class_names == CLASSES
    assert {path.parent.parent.name for path in made.split("test").paths()} == {"val"}
    assert made.card.root == layout[0]
    assert made.card.notes == {"seed": 0, "val_share": 0.1, "left_out_of_train": 0, "masks": 66}
    assert [made.words(wnid) for wnid in CLASSES] == ["ski", "snorkel", "volleyball"]
    read_again = load_dataset(tmp_path / "out")
    assert read_again.table.equals(made.table)


def test_val_is_held_out_by_seed(tmp_path, layout):
    held = [make(layout, tmp_path / str(i), seed=seed).split("val").digest for i, seed in enumerate((0, 0, 1))]
    assert held[0] == held[1] != held[2]


def test_grey_masks_are_cut_at_half(tmp_path, layout):
    made = make(layout, tmp_path)
    for row in made.table.iter_rows(named=True):
        assert Path(row["mask"]).is_relative_to(tmp_path / "out" / "masks")
        assert np.array_equal(foreground(row), LEFT)


def test_each_photograph_has_its_own_mask(tmp_path, layout):
    photos, masks = layout
    for i, photo in enumerate(sorted((photos / "train" / SKI).iterdir())):
        grey = np.zeros(SIZE[::-1], np.uint8)
        grey[: i + 1] = 255
        draw_mask((masks / "train" / f"{SKI}_{photo.name}").with_suffix(".png"), grey)
        (masks / "train" / f"{SKI}_{photo.name}").unlink()
    made = make(layout, tmp_path)
    for i, photo in enumerate(sorted((photos / "train" / SKI).iterdir())):
        assert foreground(row_of(made, photo.name)).sum() == (i + 1) * SIZE[0]


def test_the_localizer_of_ground_truth_finds_what_the_masks_hold(tmp_path, layout):
    made = make(layout, tmp_path)
    row = made.table.row(0, named=True)
    region = TruthLocalizer(TruthSettings()).locate_known(read(made.paths()[0]), row)
    assert region.box_xyxy_px == (0, 0, SIZE[0] // 2, SIZE[1])


def replace_first_mask(layout, grey, suffix=".png"):
    old = layout[1] / "val" / f"{SKI}_ILSVRC2012_val_00000011.JPEG"
    old.unlink()
    return draw_mask(old.with_suffix(suffix), grey)


@pytest.mark.parametrize("white", [1, 255, 128])
def test_a_black_and_white_png_is_used_as_it_is(tmp_path, layout, white):
    mask = replace_first_mask(layout, halves(white, 0))
    row = row_of(make(layout, tmp_path), "val_00000011.")
    assert row["mask"] == str(mask)
    assert np.array_equal(foreground(row), LEFT)


@pytest.mark.parametrize("levels", [(255, 1), (128, 127)])
def test_a_grey_png_is_not_used_as_it_is(tmp_path, layout, levels):
    mask = replace_first_mask(layout, halves(*levels))
    row = row_of(make(layout, tmp_path), "val_00000011.")
    assert row["mask"] != str(mask)
    assert np.array_equal(foreground(row), LEFT)


def test_a_black_mask_has_no_foreground(tmp_path, layout):
    replace_first_mask(layout, halves(100, 0))
    assert not foreground(row_of(make(layout, tmp_path), "val_00000011.")).any()


def test_a_mask_of_another_scale_is_brought_to_its_photograph(tmp_path, layout):
    replace_first_mask(layout, halves(255, 0, (48, 40)))
    assert np.array_equal(foreground(row_of(make(layout, tmp_path), "val_00000011.")), LEFT)


def test_a_mask_of_another_shape(tmp_path, layout):
    mask = replace_first_mask(layout, halves(255, 0, (20, 24)))
    photo = layout[0] / "val" / SKI / mask.name.removeprefix(f"{SKI}_").replace(".png", ".JPEG")
    refused(f"the mask of {photo} is 20×24, the photograph 24×20; expected one shape", layout, tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_turned_as_its_photograph_is(tmp_path, layout, orientation):
    """The photograph is white where its mask is; both are stored in one frame and read upright."""
    grey = np.zeros(SIZE[::-1], np.uint8)
    grey[:8, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = layout[0] / "val" / SKI / "ILSVRC2012_val_00000011.JPEG"
    Image.fromarray(grey).convert("RGB").save(photo, exif=exif, quality=100)
    replace_first_mask(layout, grey)
    row = row_of(make(layout, tmp_path), "val_00000011.")
    assert np.array_equal(foreground(row), read(photo)[..., 0] > 127)


def test_a_damaged_mask(tmp_path, layout):
    mask = layout[1] / "val" / f"{SKI}_ILSVRC2012_val_00000011.JPEG"
    mask.write_bytes(mask.read_bytes()[:100])
    with pytest.raises(DatasetError, match=rf"^mask {re.escape(str(mask))} cannot be read: .*; get it again$"):
        make(layout, tmp_path)
    assert not (tmp_path / "out" / "masks").exists()


def test_photographs_without_masks_have_none(tmp_path, layout):
    for mask in sorted((layout[1] / "train").glob(f"{BALL}_*"))[:5]:
        mask.unlink()
    made = make(layout, tmp_path)
    assert made.table["mask"].null_count() == 5
    assert made.card.notes["masks"] == 61
    assert len(made) == 66


def test_masks_without_photographs(tmp_path, layout):
    lost = [draw_mask(layout[1] / "val" / f"{SKI}_{i}.png", halves(255, 0)) for i in range(2)]
    refused(f"2 of 68 masks have no photograph, first {lost[0]}", layout, tmp_path)


@pytest.mark.parametrize("folder", ["train", "val"])
def test_no_folder_of_masks(tmp_path, layout, folder):
    shutil.rmtree(layout[1] / folder)
    message = f"{layout[1] / folder} is no folder; expected {layout[1]}/{{train,val}}/<wnid>_<name of the photograph>"
    refused(message, layout, tmp_path)


def test_an_empty_folder_of_masks(tmp_path, layout):
    shutil.rmtree(layout[1] / "val")
    (layout[1] / "val").mkdir()
    refused(f"{layout[1] / 'val'} has no masks; expected <wnid>_<name of the photograph>", layout, tmp_path)


def test_a_mask_that_names_no_class(tmp_path, layout):
    mask = draw_mask(layout[1] / "train" / "ski_1.png", halves(255, 0))
    refused(f"{mask} is not named <wnid>_<name of the photograph>", layout, tmp_path)


def test_classes_that_imagenet_lacks(tmp_path, layout):
    for wnid in (BALL, SNORKEL):
        shutil.rmtree(layout[0] / "train" / wnid)
    message = (
        f"2 of 3 classes have no photographs under {layout[0] / 'train'}, first {SNORKEL}; "
        f"expected {layout[0]}/{{train,val}}/<wnid>/*.JPEG"
    )
    refused(message, layout, tmp_path)


def test_a_copy_of_a_test_photograph_is_left_out_of_train(tmp_path, layout):
    test = layout[0] / "val" / SKI / "ILSVRC2012_val_00000011.JPEG"
    shutil.copy(test, layout[0] / "train" / BALL / "copy.JPEG")
    made = make(layout, tmp_path)
    assert made.card.notes["left_out_of_train"] == 1
    assert not made.table["path"].str.contains("copy").any()


def test_train_that_holds_the_test_set_is_refused(tmp_path, layout):
    for photo in (layout[0] / "val" / SKI).iterdir():
        shutil.copy(photo, layout[0] / "train" / SKI)
    with pytest.raises(DatasetError, match=r"^10 of 30 test photographs are in train too; expected at most 5%"):
        make(layout, tmp_path)


@pytest.mark.parametrize("place", ["", "hard/"])
def test_the_published_lists_name_the_classes(tmp_path, layout, place):
    """Also a class of which there are no masks; the lists lie in the folder of masks or beside it."""
    shutil.move(layout[1] / "meta", tmp_path / "lists")
    dump(tmp_path / "lists" / "hard_imagenet_idx.pkl", [890, 0, 795, 801])
    shutil.move(tmp_path / "lists", tmp_path / place / "meta")
    made = make(layout, tmp_path)
    assert made.class_names == (TENCH, *CLASSES)
    assert made.table.filter(pl.col("label") == TENCH)["mask"].null_count() == 22


def test_without_the_lists_the_classes_are_those_with_masks(tmp_path):
    made = make(hard_imagenet(tmp_path, meta=False), tmp_path)
    assert made.class_names == CLASSES


def test_a_mask_of_a_class_that_is_not_listed(tmp_path, layout):
    file = layout[1] / "meta" / "hard_imagenet_idx.pkl"
    dump(file, [795, 801])
    refused(f"{layout[1]} has masks of {BALL}, which {file} does not list", layout, tmp_path)


WITHOUT = "remove it, and the classes are those that have masks"


@pytest.mark.parametrize("value", [["n04228054"], {795: 4}, {795: "ski"}, None])
def test_a_list_of_names_that_is_none(tmp_path, layout, value):
    file = layout[1] / "meta" / "idx_to_wnid.pkl"
    dump(file, value)
    refused(f"{file} is no dict of index to wnid; {WITHOUT}", layout, tmp_path)


@pytest.mark.parametrize("value", [[], [1], ["795"], {795: 1}, 795])
def test_a_list_of_indices_that_is_none(tmp_path, layout, value):
    file = layout[1] / "meta" / "hard_imagenet_idx.pkl"
    dump(file, value)
    refused(f"{file} is no list of indices that idx_to_wnid.pkl has; {WITHOUT}", layout, tmp_path)


class Attack:
    """What it pickles to runs a function when it is read."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_calls_something_is_refused_and_not_run(tmp_path, layout, protocol):
    mark = tmp_path / "mark"
    file = layout[1] / "meta" / "hard_imagenet_idx.pkl"
    attack = pickle.dumps([795, Attack(mark)], protocol)
    file.write_bytes(attack)
    with pytest.raises(
        DatasetError,
        match=rf"^{re.escape(str(file))} cannot be read: it wants .+, only plain values are read; remove it",
    ):
        make(layout, tmp_path)
    assert not mark.exists()
    pickle.loads(attack)
    assert mark.exists()  # the same bytes do run where nothing is refused


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.int64(795), "numpy"),
        (collections.OrderedDict({1: "a"}), "collections.OrderedDict"),
        (eval, "builtins.eval"),
        (Path("a"), "pathlib"),
    ],
)
def test_unexpected_content_is_named(tmp_path, value, name):
    dump(tmp_path / "a.pkl", value)
    with pytest.raises(DatasetError, match=rf"a\.pkl cannot be read: it wants {re.escape(name)}"):
        read_plain_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("value", [{1: "a", "b": [1.5, (2, None)]}, [True, -(10**30)], "ü"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_plain_values_are_read(tmp_path, value, protocol):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
    assert read_plain_pickle(tmp_path / "a.pkl") == value


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps(list(range(9)))[:-3], b"\x80\x05N", b"\x80\x7fN."])
def test_a_damaged_pickle(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(content)
    place = re.escape(str(tmp_path / "a.pkl"))
    with pytest.raises(DatasetError, match=rf"^{place} cannot be read: .+; {WITHOUT}$"):
        read_plain_pickle(tmp_path / "a.pkl")


def test_a_pickle_that_is_too_large(tmp_path):
    dump(tmp_path / "a.pkl", "a" * MAX_PICKLE_BYTES)
    size = (tmp_path / "a.pkl").stat().st_size
    message = f"{tmp_path / 'a.pkl'} has {size:,} bytes; at most 1,048,576 are read; {WITHOUT}"
    with pytest.raises(DatasetError, match=rf"^{re.escape(message)}$"):
        read_plain_pickle(tmp_path / "a.pkl")


@pytest.fixture
def more(tmp_path):
    """Long tail and constant test sets; classes by name or wnid, one mask a class."""
    return {"long_tail": shifted(tmp_path / "lt", 9000), "constant": shifted(tmp_path / "ct", 9500)}


def test_long_tail_and_constant_are_test_sets(tmp_path, layout, more):
    made = make(layout, tmp_path, **more)
    assert made.test_sets == ("ct", "lt", "test")
    for split, root in (("lt", more["long_tail"]), ("ct", more["constant"])):
        part = made.split(split)
        assert [(path.parent.parent, path.parent.name) for path in part.paths()] == [
            (root, name) for name in sorted(("ski", "Snorkel", BALL)) for _ in range(2)
        ]
        labels = {"ski": SKI, "Snorkel": SNORKEL, BALL: BALL}
        assert part.table["label"].to_list() == [labels[path.parent.name] for path in part.paths()]
        masks = {path.name: row["mask"] for path, row in zip(part.paths(), part.table.to_dicts(), strict=True)}
        assert masks["1.jpg"] is None
        assert Path(masks["0.jpg"]).is_relative_to(tmp_path / f"{split}_masks")
    assert made.card.notes["masks"] == 72


def test_either_may_be_left_out_and_needs_no_masks(tmp_path, layout, more):
    shutil.rmtree(tmp_path / "ct_masks")
    made = make(layout, tmp_path, constant=more["constant"])
    assert made.test_sets == ("ct", "test")
    assert made.split("ct").table["mask"].null_count() == 6


def test_a_name_may_have_underscores(tmp_path, layout):
    dump(layout[1] / "meta" / "idx_to_wnid.pkl", {795: SKI, 801: SNORKEL, 890: BALL, 3: "n04162706"})
    dump(layout[1] / "meta" / "hard_imagenet_idx.pkl", [795, 801, 890, 3])
    for folder, seed in (("train", 1), ("val", 2)):
        for i in range(2):
            draw(layout[0] / folder / "n04162706" / f"{i}.JPEG", 7000 + 10 * seed + i)
    lt = shifted(tmp_path / "lt", 9000, names=("Seat_Belt",))
    assert set(make(layout, tmp_path, long_tail=lt).split("lt").table["label"]) == {"n04162706"}


def test_a_copy_of_a_long_tail_photograph_is_left_out_of_train(tmp_path, layout, more):
    shutil.copy(more["long_tail"] / "ski" / "0.jpg", layout[0] / "train" / SKI / "copy.JPEG")
    made = make(layout, tmp_path, **more)
    assert made.card.notes["left_out_of_train"] == 1
    assert len(made.split("train")) + len(made.split("val")) == 36


@pytest.mark.parametrize("there", [False, True])
def test_no_long_tail_photographs(tmp_path, layout, there):
    place = tmp_path / "lt"
    if there:
        (place / "ski").mkdir(parents=True)
    what = f"no photographs under {place}" if there else f"{place} is no folder"
    refused(f"{what}; expected {place}/<wnid or name of the class>/*", layout, tmp_path, long_tail=place)


def test_a_long_tail_folder_that_is_no_class(tmp_path, layout):
    lt = shifted(tmp_path / "lt", 9000, names=("ski", "tench"))
    message = (
        f"{lt / 'tench'} is no class of Hard ImageNet; "
        f"expected one of {SKI} (ski), {SNORKEL} (snorkel), {BALL} (volleyball)"
    )
    refused(message, layout, tmp_path, long_tail=lt)


def test_long_tail_masks_without_photographs(tmp_path, layout, more):
    lost = draw_mask(tmp_path / "lt_masks" / "ski" / "9.png", halves(255, 0))
    refused(f"1 of 4 masks have no photograph, first {lost}", layout, tmp_path, **more)


@pytest.mark.parametrize("inside", [0, 1])
def test_sources_are_never_replaced(tmp_path, layout, inside):
    moved = list(layout)
    moved[inside] = Path(shutil.move(layout[inside], tmp_path / "out" / "masks"))
    before = sorted(p for p in moved[inside].rglob("*"))
    message = (
        f"{moved[inside]} lies in {tmp_path / 'out/masks'}, which is written anew; "
        "choose another folder for the data set"
    )
    refused(message, moved, tmp_path)
    assert sorted(p for p in moved[inside].rglob("*")) == before
