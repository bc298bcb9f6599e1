"""ImageNet-1k and its clean labels from their published layouts."""

import hashlib
import re
import shutil
import subprocess
import sys

import polars as pl
import pytest
from timm.data import ImageNetInfo

from l2r2.datasets import load_dataset
from l2r2.datasets.imagenet import from_imagenet
from l2r2.datasets.wordnet import class_words, imagenet_wnids, lemmas
from l2r2.errors import DatasetError
from tests.data.layouts_b import BIRD, CLEAN, INDICES, MACHINE, TENCH, clean_labels, draw, imagenet, val_name


@pytest.fixture
def root(tmp_path):
    return imagenet(tmp_path / "imagenet")


def refused(message, root, out, **options):
    with pytest.raises(DatasetError, match=rf"^{re.escape(message)}$"):
        from_imagenet(root, out, **options)
    assert not out.exists()


def counts(made):
    return dict(made.table.group_by("split").len().iter_rows())


def digests(made, *splits):
    return set(made.table.filter(pl.col("split").is_in(splits))["digest"])


def test_the_official_validation_split_is_the_test_set(tmp_path, root):
    made = from_imagenet(root, tmp_path / "out", val_share=0.25)
    # 12 groups a class: one is given to each of train and val, 0.75 of the other 10 are 7.5, rounded to 8
    assert counts(made) == {"train": 27, "val": 9, "test": 30}
    assert {path.parent.parent.name for path in made.split("test").paths()} == {"val"}
    assert {path.parent.parent.name for path in made.split("val").paths()} == {"train"}
    assert dict(made.split("val").table.group_by("label").len().iter_rows()) == dict.fromkeys(INDICES, 3)
    assert made.card.notes == {"seed": 0, "val_share": 0.25, "left_out_of_train": 0}
    assert load_dataset(tmp_path / "out").digest == made.digest


def test_labels_are_wnids_and_words_say_them(tmp_path, root):
    made = from_imagenet(root, tmp_path / "out")
    assert made.class_names == (TENCH, BIRD, MACHINE)
    assert all(path.parent.name == label for path, label in zip(made.paths(), made.table["label"], strict=True))
    assert [made.words(label) for label in made.class_names] == ["tench", "crane (bird)", "crane (machine)"]


def test_val_is_held_out_by_seed(tmp_path, root):
    held = [
        digests(from_imagenet(root, tmp_path / str(i), val_share=0.25, seed=seed), "val")
        for i, seed in enumerate((0, 0, 1))
    ]
    assert held[0] == held[1] != held[2]


def test_digests_are_of_the_files(tmp_path, root):
    made = from_imagenet(root, tmp_path / "out")
    assert made.table["digest"].to_list() == [hashlib.sha256(p.read_bytes()).hexdigest() for p in made.paths()]


def test_test_sets_alone_need_no_train_folder(tmp_path, root):
    shutil.rmtree(root / "train")
    made = from_imagenet(root, tmp_path / "out", train=False)
    assert counts(made) == {"test": 30}
    assert made.class_names == made.card.classes == (TENCH, BIRD, MACHINE)


def test_a_copy_of_a_test_photograph_is_left_out_of_train(tmp_path, root):
    copy = root / "train" / BIRD / "copy.JPEG"
    shutil.copy(root / "val" / TENCH / f"{val_name(0)}.JPEG", copy)
    made = from_imagenet(root, tmp_path / "out")
    assert made.card.notes["left_out_of_train"] == 1
    assert copy not in made.paths()
    assert counts(made)["test"] == 30
    assert not digests(made, "train", "val") & digests(made, "test")


def test_train_that_holds_the_test_set_is_refused(tmp_path, root):
    for i in range(2):
        shutil.copy(root / "val" / TENCH / f"{val_name(i)}.JPEG", root / "train" / TENCH)
    message = (
        "2 of 30 test photographs are in train too; expected at most 5%, the published folders have a few copies, "
        "look for a test folder that was copied into train"
    )
    refused(message, root, tmp_path / "out")


@pytest.mark.parametrize("seed", range(6))
def test_copies_within_train_stay_together(tmp_path, root, seed):
    """Some copies have one label, some two; as in ImageNet itself."""
    for i in range(6):
        shutil.copy(root / "train" / TENCH / f"{TENCH}_{i}.JPEG", root / "train" / TENCH / f"again_{i}.JPEG")
        shutil.copy(root / "train" / BIRD / f"{BIRD}_{i}.JPEG", root / "train" / MACHINE / f"other_{i}.JPEG")
    made = from_imagenet(root, tmp_path / "out", val_share=0.3, seed=seed)
    assert len(made.split("train")) + len(made.split("val")) == 48
    assert not digests(made, "train") & digests(made, "val")
    kept = made.table.filter(pl.col("path").str.contains("other"))
    assert kept["split"].to_list() == ["train"] * 6


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_out_of_range(tmp_path, root, share):
    refused(f"val_share is {share}; expected a share above 0 and below 1", root, tmp_path / "out", val_share=share)


@pytest.mark.parametrize("folder", ["train", "val"])
def test_no_folder(tmp_path, root, folder):
    shutil.rmtree(root / folder)
    refused(f"{root / folder} is no folder; expected {root}/{{train,val}}/<wnid>/*.JPEG", root, tmp_path / "out")


def test_photographs_that_are_not_sorted_into_classes(tmp_path, root):
    shutil.rmtree(root / "val")
    draw(root / "val" / f"{val_name(0)}.JPEG", 1)
    message = (
        f"{root / 'val'} has no class folders; expected {root}/{{train,val}}/<wnid>/*.JPEG, "
        "sort its photographs into them first"
    )
    refused(message, root, tmp_path / "out")


def test_a_folder_that_is_no_class(tmp_path, root):
    (root / "train" / "tench").mkdir()
    message = f"{root / 'train/tench'} is no class of ImageNet-1k; expected {root}/{{train,val}}/<wnid>/*.JPEG"
    refused(message, root, tmp_path / "out")


def test_classes_without_photographs(tmp_path, root):
    for wnid in (MACHINE, BIRD):
        shutil.rmtree(root / "train" / wnid)
        (root / "train" / wnid).mkdir()
    message = (
        f"2 of 3 classes have no photographs under {root / 'train'}, first {BIRD}; "
        f"expected {root}/{{train,val}}/<wnid>/*.JPEG"
    )
    refused(message, root, tmp_path / "out")


@pytest.mark.parametrize(("here", "there"), [("train", "val"), ("val", "train")])
def test_classes_of_one_folder_only(tmp_path, root, here, there):
    for wnid in (MACHINE, BIRD):
        shutil.rmtree(root / there / wnid)
    message = (
        f"2 of 3 classes of {root / here} are not in {root / there}, first {BIRD}; expected the same classes in both"
    )
    refused(message, root, tmp_path / "out")


def test_a_class_of_one_photograph(tmp_path, root):
    for path in sorted((root / "train" / TENCH).iterdir())[1:]:
        path.unlink()
    message = f"class '{TENCH}': 1 groups for 2 splits (train, val); expected at least as many"
    refused(message, root, tmp_path / "out")


@pytest.fixture
def clean(tmp_path):
    return clean_labels(tmp_path / "clean_validation.csv")


def listed(made):
    """Number of the photograph → label, in the test set "clean"."""
    rows = made.split("clean").table["path", "label"].iter_rows()
    return {int(path[-13:-5]): label for path, label in rows}


@pytest.mark.parametrize("train", [True, False])
def test_clean_labels_that_agree(tmp_path, root, clean, train):
    made = from_imagenet(root, tmp_path / "out", clean=clean, train=train)
    assert made.test_sets == ("clean", "test")
    assert listed(made) == {1: TENCH, 2: TENCH, 11: BIRD}
    assert digests(made, "clean") < digests(made, "test")
    assert made.card.notes["clean_rule"] == "agree"
    assert made.card.notes["clean"] == 3


def test_single_clean_labels_may_be_other_labels(tmp_path, root, clean):
    made = from_imagenet(root, tmp_path / "out", clean=clean, clean_rule="single")
    assert listed(made) == {1: TENCH, 2: TENCH, 4: BIRD, 11: BIRD}
    fourth = made.split("test").table.filter(pl.col("path").str.contains(val_name(3)))
    assert fourth["label"].to_list() == [TENCH]


def test_clean_labels_change_nothing_else(tmp_path, root, clean):
    with_clean = from_imagenet(root, tmp_path / "with", clean=clean)
    without = from_imagenet(root, tmp_path / "without")
    for split in ("train", "val", "test"):
        assert with_clean.split(split).digest == without.split(split).digest


@pytest.mark.parametrize("column", ["id", "original_label", "proposed_labels"])
def test_a_csv_that_lacks_a_column(tmp_path, root, column):
    names = ["id", "original_label", "proposed_labels", "validation"]
    names[names.index(column)] = "else"
    file = clean_labels(tmp_path / "c.csv", header=",".join(names))
    refused(f"{file} lacks column {column!r}; it has {', '.join(names)}", root, tmp_path / "out", clean=file)


@pytest.mark.parametrize("value", ["1000", "-1", "tench", "", '"0, 1"', "0.5"])
def test_an_original_label_that_is_no_index(tmp_path, root, value):
    file = clean_labels(tmp_path / "c.csv", [*CLEAN[:1], (f"{val_name(1)}.JPEG", value, "0", "*")])
    shown = repr(value.strip('"') or None)
    message = f"{file}: original_label of {val_name(1)} is {shown}; expected ImageNet indices, 0 to 999"
    refused(message, root, tmp_path / "out", clean=file)


@pytest.mark.parametrize("value", ["1000", '"0, 1000"', "tench", "-1"])
def test_a_proposed_label_that_is_no_index(tmp_path, root, value):
    file = clean_labels(tmp_path / "c.csv", [*CLEAN[:1], (f"{val_name(1)}.JPEG", "0", value, "*")])
    shown = repr(value.strip('"'))
    message = f"{file}: proposed_labels of {val_name(1)} is {shown}; expected ImageNet indices, 0 to 999"
    refused(message, root, tmp_path / "out", clean=file)


def test_a_photograph_that_is_listed_twice(tmp_path, root):
    file = clean_labels(tmp_path / "c.csv", [*CLEAN, (val_name(0), "0", "0", "*")])
    message = f"{file} has 2 rows that share an id, first {val_name(0)}; expected each once"
    refused(message, root, tmp_path / "out", clean=file)


@pytest.mark.parametrize("rows", [(), (("img_1.JPEG", "0", "0", "*"),), CLEAN[-1:]])
def test_no_row_that_matches(tmp_path, root, rows):
    file = clean_labels(tmp_path / "c.csv", rows)
    message = f"no row of {file} names a photograph under {root / 'val'}; expected ids as {val_name(0)}"
    refused(message, root, tmp_path / "out", clean=file)


def test_photographs_that_are_missing(tmp_path, root, clean):
    for i in (1, 2):
        (root / "val" / TENCH / f"{val_name(i)}.JPEG").unlink()
    message = f"2 of 7 photographs of {clean} are missing under {root / 'val'}, first {val_name(1)}"
    refused(message, root, tmp_path / "out", clean=clean)


def test_indices_in_another_order(tmp_path, root):
    file = clean_labels(tmp_path / "c.csv", [(val_name(10), "0", "0", "*")])
    message = f"{file} has {val_name(10)} as {TENCH}, it lies in {BIRD}; expected indices that count the sorted wnids"
    refused(message, root, tmp_path / "out", clean=file)


def test_no_clean_label(tmp_path, root):
    file = clean_labels(tmp_path / "c.csv", CLEAN[2:5])
    message = f"none of 3 rows of {file} has a clean label by rule 'agree'; try the other rule"
    refused(message, root, tmp_path / "out", clean=file)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe,\n\xff,\n", b"id,original_label\na,1,2,3\n"])
def test_a_csv_that_cannot_be_read(tmp_path, root, content):
    file = tmp_path / "c.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DatasetError, match=rf"^{re.escape(str(file))} cannot be read: .+; expected clean_validation"):
        from_imagenet(root, tmp_path / "out", clean=file)


def test_the_order_is_timms():
    assert list(imagenet_wnids()) == ImageNetInfo().label_names()
    assert {wnid: imagenet_wnids().index(wnid) for wnid in INDICES} == INDICES


def test_lemmas_are_timms():
    described = ImageNetInfo().label_descriptions(as_dict=True)
    assert all(", ".join(lemmas(wnid)) == described[wnid] for wnid in imagenet_wnids())


def test_a_thousand_classes_have_a_thousand_words():
    words = class_words(imagenet_wnids())
    assert len(set(words.values())) == len(words) == 1000
    assert words["n03710637"] == "maillot"
    assert words["n02100583"] == "vizsla"


def test_an_unknown_id_has_no_words():
    assert class_words(["n00000000", TENCH]) == {TENCH: "tench"}


def test_words_do_not_import_timm():
    code = (
        "import sys; from l2r2.datasets.wordnet import class_words, imagenet_wnids; class_words(imagenet_wnids()); "
        "import fractions; print([name in sys.modules for name in ('timm', 'torch', 'fractions')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[False, False, True]"
