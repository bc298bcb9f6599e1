"""The starter data, composed from the real cut-outs and scenes."""

import re
import shutil

import numpy as np
import polars as pl
import pytest
from PIL import Image

from l2r2.datasets import starter, starter_sources
from l2r2.datasets.dataset import CARD, TABLE, load_dataset
from l2r2.datasets.starter import (
    CLASSES,
    FOREIGN,
    METADATA,
    NOT_PHOTOGRAPHS,
    SCENES,
    TEST_SETS,
    WITHHELD,
    StarterSettings,
    make_starter,
    starter_is_there,
    starter_size,
)
from l2r2.datasets.starter_sources import fetch_sources
from l2r2.errors import BackendError, BackendMissing, DatasetError

SMALL = StarterSettings(train=48, held_out=24)
LEAST = StarterSettings(train=8, held_out=8)
HOMES = sorted(home for _, home in CLASSES.values())


@pytest.fixture(scope="module")
def sources():
    if shutil.which("apt-get") is None:
        pytest.skip("the starter photographs come with apt-get, which is not here")
    return fetch_sources()


@pytest.fixture(scope="module")
def folder(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("starter")
    assert list(make_starter(out, *sources, SMALL)) == list(range(1, starter_size(SMALL) + 1))
    return out


@pytest.fixture(scope="module")
def made(folder):
    return load_dataset(folder)


@pytest.fixture(scope="module")
def least(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("least")
    list(make_starter(out, *sources, LEAST))
    return out


def contents(folder):
    """Path → bytes of everything in a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def scenes_of(home, set_name, rho=0.95, n=4000):
    """Share of each scene when the chooser is asked n times."""
    drawn = [starter._choose_scene(np.random.default_rng([7, i]), home, set_name, rho) for i in range(n)]
    return {scene: drawn.count(scene) / n for scene in SCENES}


@pytest.mark.starter
def test_the_settings_say_how_many(made):
    counts = dict(made.table.group_by("split").len().rows())
    assert counts == {"train": 48, "val": 24, "iid": 24, "uniform": 24, "reversed": 24}


@pytest.mark.starter
@pytest.mark.parametrize("column", ["group", "scene_photo"])
def test_nothing_is_in_two_of_train_val_and_tests(made, column):
    seen = [
        set(part[column])
        for part in (
            made.split("train").table,
            made.split("val").table,
            made.table.filter(pl.col("split").is_in(TEST_SETS)),
        )
    ]
    assert all(seen)
    assert sum(map(len, seen)) == len(set.union(*seen))


@pytest.mark.starter
def test_the_test_sets_hold_the_same_objects(made):
    same = ["group", "box_x0", "box_y0", "box_x1", "box_y1", "label", *METADATA]
    tables = [
        made.split(name).table.with_columns(name=pl.col("path").str.split("/").list.last()).sort("name").select(same)
        for name in TEST_SETS
    ]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


@pytest.mark.starter
def test_the_masks_of_the_test_sets_are_the_same(folder, made):
    for name in made.split("iid").table["mask"]:
        masks = {(folder / name.replace("iid/", f"{other}/", 1)).read_bytes() for other in TEST_SETS}
        assert len(masks) == 1


@pytest.mark.starter
def test_the_classes_are_equally_many(made):
    assert set(made.table.group_by("split", "label").len()["len"]) == {6, 12}


@pytest.mark.starter
def test_boxes_and_masks_agree(folder, made):
    for row in made.table.iter_rows(named=True):
        with Image.open(folder / row["mask"]) as image:
            mask = np.asarray(image)
        assert mask.dtype == bool
        ys, xs = np.nonzero(mask)
        box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert box == (row["box_x0"], row["box_y0"], row["box_x1"], row["box_y1"])


@pytest.mark.starter
def test_masks_have_the_size_of_their_photographs(folder, made):
    for path, mask in made.table.select("path", "mask").iter_rows():
        with Image.open(folder / path) as photo, Image.open(folder / mask) as drawn:
            assert photo.size == drawn.size
            assert sorted(photo.size) == [starter.HIGH, starter.WIDE]


@pytest.mark.starter
def test_the_same_seed_gives_the_same_bytes(sources, least, tmp_path):
    list(make_starter(tmp_path, *sources, LEAST))
    assert contents(tmp_path) == contents(least)


@pytest.mark.starter
def test_another_seed_gives_other_photographs(sources, folder, tmp_path):
    list(make_starter(tmp_path, *sources, LEAST.model_copy(update={"seed": 1})))
    assert not set(load_dataset(tmp_path).table["digest"]) & set(load_dataset(folder).table["digest"])


@pytest.mark.starter
def test_a_whole_set_is_kept(sources, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert list(make_starter(folder, *sources, SMALL)) == []
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.starter
@pytest.mark.parametrize("name", [CARD, TABLE, "val/bird-0000.jpg", "val/bird-0000-mask.png"])
def test_what_is_missing_is_noticed(least, tmp_path, name):
    shutil.copytree(least, tmp_path, dirs_exist_ok=True)
    assert starter_is_there(tmp_path, LEAST)
    (tmp_path / name).unlink()
    assert not starter_is_there(tmp_path, LEAST)


@pytest.mark.starter
@pytest.mark.parametrize("damage", [None, 50])
def test_a_half_set_is_made_again(sources, least, tmp_path, damage):
    """Without its card, as after a kill; and with a table cut short."""
    shutil.copytree(least, tmp_path, dirs_exist_ok=True)
    if damage is None:
        (tmp_path / CARD).unlink()
    else:
        (tmp_path / TABLE).write_bytes((least / TABLE).read_bytes()[:damage])
    assert len(list(make_starter(tmp_path, *sources, LEAST))) == starter_size(LEAST)
    assert contents(tmp_path) == contents(least)


@pytest.mark.starter
def test_other_settings_are_another_set(folder):
    assert starter_is_there(folder, SMALL)
    assert not starter_is_there(folder, SMALL.model_copy(update={"rho": 0.5}))


@pytest.mark.starter
def test_metadata_are_declared_simulated(made):
    assert made.card.metadata == ("habitat", "substrate", "month")
    assert made.card.simulated_metadata is True


@pytest.mark.starter
@pytest.mark.parametrize("source", METADATA)
def test_metadata_are_within_their_table(made, source):
    for label, table in METADATA[source].items():
        assert set(made.table.filter(pl.col("label") == label)[source].drop_nulls()) <= set(table)


@pytest.mark.starter
def test_the_card_names_settings_and_licence(made):
    assert made.card.notes == {
        "seed": 0,
        "rho": 0.95,
        "train": 48,
        "held_out": 24,
        "settings": SMALL.digest(),
        "licence": "GPL-2 (Tux Paint)",
    }


@pytest.mark.starter
def test_drawings_and_toys_are_left_out(sources):
    stamps, _ = sources
    found = [str(p) for folders, _ in CLASSES.values() for p in starter._cutouts(stamps, folders)]
    everything = [str(p) for folders, _ in CLASSES.values() for f in folders for p in (stamps / f).rglob("*.png")]
    assert len(found) < len(everything)
    assert set(everything) - set(found) == {p for p in everything if any(word in p for word in NOT_PHOTOGRAPHS)}


@pytest.mark.starter
def test_there_are_some_170_cutouts(sources):
    stamps, _ = sources
    assert 160 <= sum(len(starter._cutouts(stamps, folders)) for folders, _ in CLASSES.values()) <= 180


@pytest.mark.starter
def test_black_bars_are_no_scene(sources):
    _, scenes = sources
    for name in sum(SCENES.values(), ()):
        lightest = np.asarray(starter._scene(scenes, name).convert("L"))
        edges = (lightest[0], lightest[-1], lightest[:, 0], lightest[:, -1])
        assert min(edge.max() for edge in edges) > starter.LETTERBOX


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("rho", [0.5, 0.95])
def test_an_object_is_at_home_with_probability_rho(home, rho):
    shares = scenes_of(home, "train", rho)
    # 4000 draws: three standard errors are at most 3 √(0.25 / 4000) = 0.024
    assert shares[home] == pytest.approx(rho, abs=0.024)
    for other in set(SCENES) - {home}:
        assert shares[other] == pytest.approx((1 - rho) / 3, abs=0.024)


@pytest.mark.parametrize("home", HOMES)
def test_uniform_prefers_nothing(home):
    assert scenes_of(home, "uniform") == pytest.approx(dict.fromkeys(SCENES, 0.25), abs=0.024)


@pytest.mark.parametrize("home", HOMES)
def test_reversed_prefers_a_foreign_home(home):
    shares = scenes_of(home, "reversed")
    assert shares[FOREIGN[home]] == pytest.approx(0.95, abs=0.024)
    assert shares[home] < 0.05


def test_every_scene_is_one_foreign_home():
    assert sorted(FOREIGN) == sorted(FOREIGN.values()) == sorted(SCENES) == HOMES
    assert all(home != foreign for home, foreign in FOREIGN.items())


@pytest.mark.parametrize("source", METADATA)
@pytest.mark.parametrize("label", CLASSES)
def test_tables_sum_to_one(source, label):
    assert sum(METADATA[source][label].values()) == pytest.approx(1, abs=1e-12)


def test_a_tenth_is_withheld():
    drawn = [starter._metadata(np.random.default_rng([3, i]), "bird")["habitat"] for i in range(4000)]
    # three standard errors: 3 √(0.09 / 4000) = 0.014
    assert drawn.count(None) / 4000 == pytest.approx(WITHHELD, abs=0.014)


def test_rho_below_chance_is_refused():
    with pytest.raises(ValueError, match=r"greater than or equal to 0\.25"):
        StarterSettings(rho=0.2)


@pytest.fixture
def toys(tmp_path):
    """A stand-in for the two packages: three coloured squares a folder, no scenes."""
    for folders, _ in CLASSES.values():
        for folder in folders:
            (tmp_path / "stamps" / folder).mkdir(parents=True)
            for i in range(3):
                Image.new("RGBA", (60, 60), (i, 0, 0, 255)).save(tmp_path / "stamps" / folder / f"{i}.png")
    return tmp_path / "stamps", tmp_path / "scenes"


def test_no_stamps(tmp_path, toys):
    stamps, scenes = toys
    shutil.rmtree(stamps / "plants/flowers")
    message = f"{stamps / 'plants/flowers'} is no folder; expected the stamps of tuxpaint-stamps-default"
    with pytest.raises(DatasetError, match=rf"^{re.escape(message)}$"):
        next(make_starter(tmp_path / "out", stamps, scenes, LEAST))


def test_too_few_stamps(tmp_path, toys):
    stamps, scenes = toys
    (stamps / "plants/flowers/0.png").unlink()
    with pytest.raises(DatasetError, match=r"^2 groups for 3 splits \(train, val, test\); expected"):
        next(make_starter(tmp_path / "out", stamps, scenes, LEAST))


def test_no_scenes(tmp_path, toys):
    place = re.escape(str(toys[1] / "cliff"))
    with pytest.raises(
        DatasetError, match=rf"^{place}\.jpg cannot be read \(.*\); expected the scenes of tuxpaint-data$"
    ):
        next(make_starter(tmp_path / "out", *toys, LEAST))


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """An empty cache and no programs at all."""
    monkeypatch.setenv("L2R2_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def program(folder, name, text):
    (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / "bin" / name).chmod(0o755)


def test_no_apt(bare):
    message = (
        "apt-get is not installed, and the starter photographs come from Debian packages; get "
        "tuxpaint-stamps-default and tuxpaint-data another way and pass --stamps DIR --scenes DIR "
        "(their usr/share/tuxpaint/stamps and usr/share/tuxpaint/templates)"
    )
    with pytest.raises(BackendMissing, match=rf"^{re.escape(message)}$"):
        fetch_sources()


def test_no_dpkg(bare):
    program(bare, "apt-get", "exit 0")
    with pytest.raises(BackendMissing, match=r"^dpkg-deb is not installed, .* --stamps DIR --scenes DIR"):
        fetch_sources()


def test_apt_fails(bare):
    program(bare, "dpkg-deb", "exit 0")
    program(bare, "apt-get", "echo 'W: slow' >&2; echo 'E: no such host' >&2; echo 'N: note' >&2; exit 100")
    with pytest.raises(BackendError, match=r"^apt-get failed: E: no such host; check the network and apt's sources$"):
        fetch_sources()
    assert list((bare / "cache").iterdir()) == []


def test_sources_are_fetched_once(bare):
    program(bare, "apt-get", 'case "$*" in *download*) : > a.deb;; esac')
    program(bare, "dpkg-deb", '/bin/mkdir -p "$3/usr/share/tuxpaint/stamps"')
    stamps, scenes = fetch_sources()
    assert stamps == bare / "cache/starter" / starter_sources.STAMPS
    assert scenes == bare / "cache/starter" / starter_sources.SCENES
    (bare / "bin/apt-get").unlink()
    assert fetch_sources() == (stamps, scenes)
    assert stamps.is_dir()
