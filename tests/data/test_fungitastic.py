"""FungiTastic-Mini from its published layout."""

import itertools
import json
import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from typer.testing import CliRunner

from l2r2.config import TruthSettings
from l2r2.datasets import load_dataset
from l2r2.datasets.fungitastic import decode_mask, from_fungitastic
from l2r2.datasets.masks import fit_mask
from l2r2.errors import DatasetError
from l2r2.images import read
from l2r2.localization.truth import TruthLocalizer
from tests.data.layouts_a import (
    FUNGI,
    SIZE,
    commands,
    draw,
    encode,
    fungi_masks,
    fungi_rows,
    fungitastic,
    write_csv,
)

MUSCARIA, EDULIS, MARGINATA = (name for name, *_ in FUNGI)
FIRST = "FungiTastic-Mini/train/500p/0-0.JPG"


def refused(message, root, out, **options):
    with pytest.raises(DatasetError, match=rf"^{message}$"):
        from_fungitastic(root, out, **options)
    assert not (out / "dataset.json").exists()


def metadata(root):
    return root / "metadata" / "FungiTastic-Mini"


def csv_of(root, split="Train"):
    return metadata(root) / f"FungiTastic-Mini-ClosedSet-{split}.csv"


def without(rows, *columns):
    return [{name: value for name, value in row.items() if name not in columns} for row in rows]


@pytest.mark.parametrize("between", ["ClosedSet-", ""])
def test_both_names_of_the_tables(tmp_path, between):
    made = from_fungitastic(fungitastic(tmp_path / "fungi", between=between), tmp_path / "out")
    assert made.class_names == (MUSCARIA, EDULIS, MARGINATA)
    assert made.table.group_by("split").len().sort("split").rows() == [("test", 12), ("train", 24), ("val", 12)]
    assert load_dataset(tmp_path / "out").digest == made.digest


def test_paths_start_at_the_root(tmp_path):
    root = fungitastic(tmp_path / "fungi")
    made = from_fungitastic(root, tmp_path / "out")
    assert made.card.root == root.resolve()
    assert made.table["path"][0] == FIRST
    assert all(path.is_file() for path in made.paths())


def test_groups_are_observations(tmp_path):
    made = from_fungitastic(fungitastic(tmp_path / "fungi"), tmp_path / "out").split("val")
    assert made.groups().tolist() == [f"1{k}0{i // 2}" for k in range(3) for i in range(4)]


def test_metadata_and_notes(tmp_path):
    made = from_fungitastic(fungitastic(tmp_path / "fungi"), tmp_path / "out")
    assert made.card.metadata == ("habitat", "substrate", "month")
    assert made.metadata()[0] == {"habitat": "Deciduous woodland, beech", "substrate": "soil", "month": "6"}
    assert made.table.select("latitude", "elevation", "longitude").row(0) == ("55.9", "12", None)
    assert made.card.notes == {"size": "500p", "seed": 0, "left_out": 0}


@pytest.mark.parametrize("missing", ["column", "value"])
def test_a_month_is_taken_from_the_date_where_there_is_none(tmp_path, missing):
    rows = fungi_rows()
    for split, part in rows.items():
        rows[split] = without(part, "month") if missing == "column" else [row | {"month": ""} for row in part]
    made = from_fungitastic(fungitastic(tmp_path / "fungi", rows), tmp_path / "out")
    assert [made.split(split).metadata(["month"])[0]["month"] for split in rows] == ["6", "7", "8"]


def test_poisonous_species_are_hazardous(tmp_path):
    rows = fungi_rows()
    rows["train"] = [row | {"poisonous": {"0": "0", "1": "1.0"}[row["poisonous"]]} for row in rows["train"]]
    rows["train"][1]["poisonous"] = ""
    rows["test"] = [row | {"poisonous": "1"} for row in rows["test"]]
    made = from_fungitastic(fungitastic(tmp_path / "fungi", rows), tmp_path / "out")
    assert made.card.hazardous == (MUSCARIA, MARGINATA)


def test_other_sizes(tmp_path):
    made = from_fungitastic(fungitastic(tmp_path / "fungi", size="fullsize"), tmp_path / "out", size="fullsize")
    assert made.table["path"][0] == FIRST.replace("500p", "fullsize")


def test_species_name_the_classes_where_there_is_no_scientific_name(tmp_path):
    rows = {split: without(part, "scientificName") for split, part in fungi_rows().items()}
    made = from_fungitastic(fungitastic(tmp_path / "fungi", rows), tmp_path / "out")
    assert made.class_names == (MUSCARIA, EDULIS, MARGINATA)


def test_species_name_the_classes_where_one_has_two_scientific_names(tmp_path):
    rows = fungi_rows()
    rows["train"][0]["scientificName"] = "Amanita muscaria var. regalis"
    made = from_fungitastic(fungitastic(tmp_path / "fungi", rows), tmp_path / "out")
    assert made.class_names == (MUSCARIA, EDULIS, MARGINATA)


def test_names_that_are_no_classes(tmp_path):
    rows = fungi_rows()
    rows["val"][0] |= {"scientificName": "Amanita regalis", "species": "Amanita regalis"}
    root = fungitastic(tmp_path / "fungi", rows)
    refused(
        f"{metadata(root)}: category 3 is named Amanita muscaria and Amanita regalis; expected one to one",
        root,
        tmp_path / "out",
    )


def test_the_older_column_of_classes(tmp_path):
    rows = {split: [row | {"class_id": row["category_id"]} for row in part] for split, part in fungi_rows().items()}
    rows = {split: without(part, "category_id") for split, part in rows.items()}
    rows["test"] = without(rows["test"], "species", "scientificName")
    rows["test"][0]["class_id"] = "-1"
    made = from_fungitastic(fungitastic(tmp_path / "fungi", rows), tmp_path / "out").split("test")
    assert made.table["label"].to_list() == [None, *[MUSCARIA] * 3, *[EDULIS] * 4, *[MARGINATA] * 4]


def test_an_unknown_category_has_no_label(tmp_path):
    rows = fungi_rows()
    rows["test"][0] |= {"category_id": "-1", "scientificName": "Mycena sp.", "species": "Mycena sp."}
    made = from_fungitastic(fungitastic(tmp_path / "fungi", rows), tmp_path / "out").split("test")
    assert made.table["label"].null_count() == 1
    assert made.table["label"][0] is None


def test_an_unknown_category_in_train(tmp_path):
    rows = fungi_rows()
    rows["train"][0]["category_id"] = "-1"
    root = fungitastic(tmp_path / "fungi", rows)
    refused(f"1 photographs of train or val have no label, first {FIRST}", root, tmp_path / "out")


@pytest.fixture
def unlabelled():
    rows = fungi_rows()
    rows["test"] = without(rows["test"], "species", "scientificName", "category_id", "poisonous")
    return rows


def test_a_test_set_without_labels(tmp_path, unlabelled):
    made = from_fungitastic(fungitastic(tmp_path / "fungi", unlabelled), tmp_path / "out")
    assert made.split("test").table["label"].null_count() == 12


def test_labels_of_the_test_set_from_elsewhere(tmp_path, unlabelled):
    """The other table counts its categories otherwise, and has photographs that are not here."""
    root = fungitastic(tmp_path / "fungi", unlabelled)
    labelled = [
        {"filename": row["filename"], "scientificName": row["scientificName"], "category_id": "7"}
        for row in [*fungi_rows()["test"][::-1][1:], fungi_rows()["train"][0] | {"scientificName": EDULIS}]
    ]
    write_csv(root / "metadata" / "FungiTastic" / "FungiTastic-test-DEV.csv", labelled)
    made = from_fungitastic(root, tmp_path / "out")
    assert made.split("test").table["label"].to_list() == [*[MUSCARIA] * 4, *[EDULIS] * 4, *[MARGINATA] * 3, None]
    assert made.split("train").table["label"][0] == MUSCARIA


def test_labels_from_elsewhere_without_names(tmp_path, unlabelled):
    root = fungitastic(tmp_path / "fungi", unlabelled)
    file = root / "metadata" / "FungiTastic" / "FungiTastic-test-DEV.csv"
    write_csv(file, [{"filename": "a.JPG", "category_id": "1"}])
    refused(f"{file} lacks column 'scientificName'; it has filename, category_id", root, tmp_path / "out")


def test_the_sequenced_test_set(tmp_path):
    rows = fungi_rows()
    rows["dna"] = rows["test"][:4]
    made = from_fungitastic(fungitastic(tmp_path / "fungi", rows), tmp_path / "out")
    assert made.test_sets == ("dna", "test")
    assert made.split("dna").table["path"][0] == "FungiTastic-Mini/test/500p/0-2000.JPG"


def test_an_observation_in_train_and_val(tmp_path):
    rows = fungi_rows()
    rows["val"][0]["observationID"] = "0"
    root = fungitastic(tmp_path / "fungi", rows)
    refused("group '0' is in train and val; a group must stay in one of train, val and test", root, tmp_path / "out")


def test_an_observation_that_is_whole_in_train_and_val(tmp_path):
    """Its copies are not left out as those of another observation are: that would hide the fault."""
    rows = fungi_rows()
    rows["val"] += rows["train"][:2]
    root = fungitastic(tmp_path / "fungi", rows)
    refused("group '0' is in train and val; a group must stay in one of train, val and test", root, tmp_path / "out")


def test_copies_under_another_observation_stay_in_the_later_split(tmp_path):
    root = fungitastic(tmp_path / "fungi")
    photos = root / "FungiTastic-Mini"
    train, val, test = (
        photos / split / "500p" / f"0-{k}.JPG" for split, k in [("train", 0), ("val", 1000), ("test", 2000)]
    )
    val.write_bytes(train.read_bytes())
    (photos / "val" / "500p" / "0-1100.JPG").write_bytes(test.read_bytes())
    made = from_fungitastic(root, tmp_path / "out")
    assert made.card.notes["left_out"] == 2
    assert set(made.table["path"]) == {
        p.relative_to(root).as_posix()
        for p in photos.rglob("*.JPG")
        if p not in (train, photos / "val/500p/0-1100.JPG")
    }


def test_a_species_of_test_alone(tmp_path):
    rows = fungi_rows()
    rows["test"][0] |= {"category_id": "99", "scientificName": "Mycena pura", "species": "Mycena pura"}
    root = fungitastic(tmp_path / "fungi", rows)
    message = "class 'Mycena pura' is in 'test' but has no photograph in train; move some there"
    refused(message, root, tmp_path / "out")


def test_a_rare_species_may_be_missing_in_val_and_test(tmp_path):
    """As published: of 215 species, val has 196 and test 193."""
    rows = fungi_rows()
    for split in ("val", "test"):
        rows[split] = [row for row in rows[split] if row["species"] != EDULIS]
    made = from_fungitastic(fungitastic(tmp_path / "fungi", rows), tmp_path / "out")
    assert made.class_names == (MUSCARIA, EDULIS, MARGINATA)
    assert set(made.split("val").labels()) == {0, 2}


def test_another_root(tmp_path):
    folder = tmp_path / "metadata" / "FungiTastic-Mini"
    message = (
        f"{tmp_path} is no FungiTastic: {folder} is no folder; expected {tmp_path}/metadata/FungiTastic-Mini/*.csv and "
        f"{tmp_path}/FungiTastic-Mini/{{train,val,test}}/<size>/*"
    )
    refused(re.escape(message), tmp_path, tmp_path / "out")


def test_a_missing_table(tmp_path):
    root = fungitastic(tmp_path / "fungi")
    csv_of(root, "Val").unlink()
    message = (
        f"{metadata(root)} has no val table; expected FungiTastic-Mini-ClosedSet-Val.csv or FungiTastic-Mini-Val.csv"
    )
    refused(message, root, tmp_path / "out")


def test_a_size_that_is_not_there(tmp_path):
    root = fungitastic(tmp_path / "fungi")
    place = root / "FungiTastic-Mini" / "test" / "300p"
    refused(f"{place} is no folder; expected the photographs of size 300p", root, tmp_path / "out", size="300p")


def test_a_size_that_does_not_exist(tmp_path):
    root = fungitastic(tmp_path / "fungi")
    refused("size is '500'; expected one of 300p, 500p, 720p, fullsize", root, tmp_path / "out", size="500")


def test_missing_photographs(tmp_path):
    root = fungitastic(tmp_path / "fungi")
    for name in ("0-0.JPG", "1-2.JPG"):
        (root / "FungiTastic-Mini" / "train" / "500p" / name).unlink()
    refused(f"2 of 48 photographs are missing, first {root / FIRST}", root, tmp_path / "out")


@pytest.mark.parametrize("column", ["filename", "observationID", "habitat", "substrate"])
def test_a_table_that_lacks_a_column(tmp_path, column):
    rows = fungi_rows()
    root = fungitastic(tmp_path / "fungi", rows)
    left = without(rows["test"], column)
    file = write_csv(csv_of(root, "Test"), left)
    refused(f"{file} lacks column '{column}'; it has {', '.join(left[0])}", root, tmp_path / "out")


def test_a_table_without_month_and_date(tmp_path):
    rows = fungi_rows()
    root = fungitastic(tmp_path / "fungi", rows)
    left = without(rows["val"], "month", "eventDate")
    file = write_csv(csv_of(root, "Val"), left)
    refused(f"{file} lacks column 'month'; it has {', '.join(left[0])}", root, tmp_path / "out")


def test_tables_without_names(tmp_path):
    rows = {split: without(part, "scientificName", "species") for split, part in fungi_rows().items()}
    root = fungitastic(tmp_path / "fungi", rows)
    message = f"{metadata(root)} has no names in train; expected column 'scientificName' or 'species', it has .+"
    refused(message, root, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", "filename\ngrün.JPG\n".encode("latin1"), b"filename,habitat\na,b,c,d\n"])
def test_a_table_that_cannot_be_read(tmp_path, content):
    root = fungitastic(tmp_path / "fungi")
    csv_of(root).write_bytes(content)
    refused(f"{re.escape(str(csv_of(root)))} cannot be read: .+; expected CSV in UTF-8", root, tmp_path / "out")


CAP = np.zeros(SIZE[::-1], dtype=bool)
CAP[2:5, 6:15] = True
STEM = np.zeros(SIZE[::-1], dtype=bool)
STEM[4:11, 9:12] = True
CORNER = np.zeros(SIZE[::-1], dtype=bool)
CORNER[0, 0] = True


@pytest.mark.parametrize("as_text", [False, True])
def test_the_parts_of_a_photograph_are_one_mask(tmp_path, as_text):
    root = fungitastic(tmp_path / "fungi")
    fungi_masks(root, [("0-0.JPG", "cap", CAP), ("1-0.JPG", "cap", CORNER), ("0-0.JPG", "stem", STEM)], as_text=as_text)
    fungi_masks(root, [("0-1000.JPG", "cap", STEM)], split="Validation", as_text=as_text)
    made = from_fungitastic(root, tmp_path / "out")
    assert made.table["mask"].drop_nulls().to_list() == [
        str((tmp_path / "out" / "masks" / name).resolve())
        for name in ("train/0-0.JPG.png", "train/1-0.JPG.png", "val/0-1000.JPG.png")
    ]
    with Image.open(made.table["mask"][0]) as image:
        assert np.array_equal(np.asarray(image.convert("L")), 255 * (CAP | STEM))
    boxes = made.table.select("box_x0", "box_y0", "box_x1", "box_y1").rows()
    assert boxes[:3] == [(6, 2, 15, 11), (0, 0, 1, 1), (None, None, None, None)]


def test_masks_are_ground_truth(tmp_path):
    root = fungitastic(tmp_path / "fungi")
    fungi_masks(root, [("0-0.JPG", "cap", CAP)])
    made = from_fungitastic(root, tmp_path / "out")
    row = made.table.row(0, named=True)
    region = TruthLocalizer(TruthSettings()).locate_known(read(made.paths()[0]), row)
    assert np.array_equal(region.mask, CAP)
    assert region.box_xyxy_px == tuple(row[name] for name in ("box_x0", "box_y0", "box_x1", "box_y1"))


def test_without_masks_there_are_no_columns_for_them(tmp_path):
    made = from_fungitastic(fungitastic(tmp_path / "fungi"), tmp_path / "out")
    assert not {"mask", "box_x0"} & set(made.table.columns)


def test_masks_of_the_full_size_are_brought_to_the_photographs(tmp_path):
    root = fungitastic(tmp_path / "fungi")
    fungi_masks(root, [("0-0.JPG", "cap", CAP.repeat(7, axis=0).repeat(7, axis=1))])
    made = from_fungitastic(root, tmp_path / "out")
    with Image.open(made.table["mask"][0]) as image:
        assert np.array_equal(np.asarray(image), CAP)


def test_masks_of_another_shape(tmp_path):
    root = fungitastic(tmp_path / "fungi")
    fungi_masks(root, [("0-0.JPG", "cap", CAP.T)])
    message = f"the mask of {root / FIRST} is 18×24, the photograph 24×18; expected one shape"
    refused(message, root, tmp_path / "out")


def test_masks_are_turned_as_the_photographs_are(tmp_path):
    """Orientation 6: shown after a quarter turn clockwise."""
    photo = draw(tmp_path / "turned.jpg", 0, orientation=6)
    turned = fit_mask(CAP, photo)
    assert np.array_equal(turned, np.rot90(CAP, -1))
    assert turned.shape == read(photo).shape[:2]


def test_a_photograph_with_a_mask_that_cannot_be_read(tmp_path):
    root = fungitastic(tmp_path / "fungi")
    fungi_masks(root, [("0-0.JPG", "cap", CAP)])
    (root / FIRST).write_bytes(b"none")
    refused(f"{root / FIRST} cannot be read: .+; get it again", root, tmp_path / "out")


@given(arrays.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))).filter(np.any))
def test_runs_are_row_by_row(mask):
    height, width = mask.shape
    assert np.array_equal(decode_mask(encode(mask), width, height), mask)


def test_runs_by_hand():
    """2 × 3: one background, two foreground, then three background; the box is not used."""
    assert decode_mask([1, 2, 3, 9, 9, 9, 9], 3, 2).tolist() == [[False, True, True], [False, False, False]]


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ([1, 2, 428, 0, 0, 0, 0], "its runs sum to 431; expected 18 × 24 = 432"),
        ([3, 4], "its runs sum to 0; expected 18 × 24 = 432"),
        ([440, -8, 0, 0, 0, 0], "its rle has a run of -8; expected lengths of 0 or more"),
        (None, "its rle is 'None'; expected whole numbers"),
        ("1, two, 237, 0, 0, 0, 0", "its rle is '1, two, 237, 0, 0, 0, 0'; expected whole numbers"),
    ],
)
def test_a_malformed_mask(tmp_path, rle, message):
    root = fungitastic(tmp_path / "fungi")
    file = fungi_masks(root, [("0-0.JPG", "stem", STEM)])
    pl.read_parquet(file).drop("rle").with_columns(rle=pl.Series([rle])).write_parquet(file)
    refused(re.escape(f"{file}, part 'stem' of 0-0.JPG: {message}"), root, tmp_path / "out")


def test_a_mask_without_a_size(tmp_path):
    root = fungitastic(tmp_path / "fungi")
    file = fungi_masks(root, [("0-0.JPG", "stem", STEM)])
    pl.read_parquet(file).with_columns(width=pl.lit(None, pl.Int64)).write_parquet(file)
    message = f"{file}, part 'stem' of 0-0.JPG: its runs sum to 432; expected 18 × 0 = 0"
    refused(message, root, tmp_path / "out")


def test_parts_of_two_sizes(tmp_path):
    root = fungitastic(tmp_path / "fungi")
    file = fungi_masks(root, [("0-0.JPG", "cap", CAP), ("0-0.JPG", "stem", STEM.repeat(2, axis=0).repeat(2, axis=1))])
    message = f"{file}, part 'stem' of 0-0.JPG: it is 48×36; expected 24×18 as the first"
    refused(message, root, tmp_path / "out")


def test_masks_of_no_photograph(tmp_path):
    root = fungitastic(tmp_path / "fungi")
    file = fungi_masks(root, [("other.JPG", "cap", CAP)])
    message = f"no mask of {file} is of a photograph of train; it has ['other.JPG'], expected names such as 0-0.JPG"
    refused(re.escape(message), root, tmp_path / "out")


def test_masks_that_lack_a_column(tmp_path):
    root = fungitastic(tmp_path / "fungi")
    file = fungi_masks(root, [("0-0.JPG", "cap", CAP)])
    pl.read_parquet(file).drop("rle").write_parquet(file)
    refused(f"{file} lacks column 'rle'; it has file_name, label, width, height", root, tmp_path / "out")


def test_masks_that_cannot_be_read(tmp_path):
    root = fungitastic(tmp_path / "fungi")
    file = fungi_masks(root, [("0-0.JPG", "cap", CAP)])
    file.write_bytes(file.read_bytes()[:50])
    refused(f"{re.escape(str(file))} cannot be read: .+; expected Parquet", root, tmp_path / "out")


def test_published_masks_are_never_written_over(tmp_path):
    root = fungitastic(tmp_path / "fungi")
    file = fungi_masks(root, [("0-0.JPG", "cap", CAP)])
    message = f"{file} lies in {root / 'masks'}, which is written anew; choose another folder for the data set"
    refused(message, root, root)
    assert file.is_file()


def test_the_command(tmp_path):
    root = fungitastic(tmp_path / "fungi", size="300p")
    arguments = ["fungitastic", str(root), "--out", str(tmp_path / "out"), "--size", "300p", "--json"]
    result = CliRunner().invoke(commands(), arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["splits"] == {"train": 24, "val": 12, "test": 12}
    assert found["digest"] == load_dataset(tmp_path / "out").digest


NAMES = ("fungitastic", "spawrious", "dogs", "pets", "imagenet", "hard-imagenet", "counter-animal")


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself(name):
    result = CliRunner().invoke(commands(), [name, "--help"])
    assert result.exit_code == 0, result.output
    assert f"Example: l2r2 data {name} " in result.stdout


def test_the_digest_changes_with_metadata_alone(tmp_path):
    rows = fungi_rows()
    digests = set()
    for habitat, out in itertools.product(("dune", "bog"), ("a", "b")):
        rows["val"][0]["habitat"] = habitat
        digests.add(from_fungitastic(fungitastic(tmp_path / "fungi", rows), tmp_path / out).digest)
    assert len(digests) == 2
