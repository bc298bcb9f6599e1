import numpy as np
import pytest

from l2r2.config import (
    DetectorSettings,
    FusionSettings,
    GateSettings,
    ImageSettings,
    PriorSettings,
    Recipe,
    SaliencySettings,
    TrainSettings,
    TruthSettings,
    ViewSettings,
    find_recipe,
    load_recipe,
    parse_settings,
)
from l2r2.errors import ConfigError
from l2r2.types import View

SECTIONS = [
    ImageSettings,
    SaliencySettings,
    ViewSettings,
    TrainSettings,
    FusionSettings,
    GateSettings,
    PriorSettings,
]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nviews = ["FG_M", "FULL"]\n[train]\nepochs = 7\n[gate]\nrule = "best"\n')
    return path


@pytest.mark.parametrize("kind", SECTIONS, ids=lambda kind: kind.__name__)
def test_every_setting_has_a_default_inside_its_range(kind):
    assert kind.model_validate(kind().model_dump()) == kind()


def test_a_recipe_needs_only_a_name():
    recipe = Recipe(name="plain")
    assert Recipe.model_validate(recipe.model_dump()) == recipe


def test_a_recipe_is_read(recipe):
    read = load_recipe(recipe)
    assert read.views == (View.FG_M, View.FULL)
    assert (read.train.epochs, read.gate.rule, read.train.patience) == (7, "best", 10)


def test_overrides_win(recipe):
    read = load_recipe(recipe, {"train.epochs": 3, "gate.threshold": 0.5, "name": "other"})
    assert (read.train.epochs, read.gate.threshold, read.gate.rule, read.name) == (3, 0.5, "best", "other")


def test_an_unknown_key_names_the_nearest(recipe):
    with pytest.raises(ConfigError, match=r"mine\.toml: unknown setting 'veiws'; did you mean 'views'\?$"):
        load_recipe(recipe, {"veiws": []})


def test_an_unknown_nested_key_names_the_nearest_of_its_section(recipe):
    with pytest.raises(ConfigError, match=r"mine\.toml: unknown setting 'train\.epoch'; did you mean 'epochs'\?$"):
        load_recipe(recipe, {"train.epoch": 3})


def test_an_unknown_key_like_no_other(recipe):
    with pytest.raises(ConfigError, match=r"mine\.toml: unknown setting 'zzzz'$"):
        load_recipe(recipe, {"zzzz": 1})


def test_an_override_cannot_go_into_a_setting(recipe):
    with pytest.raises(ConfigError, match=r"^name\.first: 'name' is one setting, not a section; it has no 'first'$"):
        load_recipe(recipe, {"name.first": "x"})


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (GateSettings, {"threshold": 1.5}, r"^here: threshold = 1\.5: Input should be less than or equal to 1$"),
        (GateSettings, {"threshold": float("nan")}, r"^here: threshold = nan: "),
        (GateSettings, {"rule": "two_se"}, r"^here: rule = 'two_se': Input should be 'one_se', 'best' or 'risk'$"),
        (TrainSettings, {"epochs": 0}, r"^here: epochs = 0: Input should be greater than or equal to 1$"),
        (TrainSettings, {"learning_rate": "fast"}, r"^here: learning_rate = 'fast': Input should be a valid number"),
        (SaliencySettings, {"size_px": 224}, r"^here: size_px = 224: Input should be greater than or equal to 256$"),
        (SaliencySettings, {"size_px": 300}, r"^here: size_px = 300: Input should be a multiple of 32$"),
        (
            ViewSettings,
            {"fill_rgb": (0, 0, 256)},
            r"^here: fill_rgb\.2 = 256: Input should be less than or equal to 255$",
        ),
        (ViewSettings, {"std": (1.0, 0.0, 1.0)}, r"^here: std\.1 = 0\.0: Input should be greater than 0$"),
        (
            ImageSettings,
            {"max_pixels": 10**9},
            r"^here: max_pixels = 1000000000: Input should be less than or equal to",
        ),
        (Recipe, {"name": "No Spaces"}, r"^here: name = 'No Spaces': String should match pattern"),
        (Recipe, {"name": "x", "views": ["FG_X"]}, r"^here: views\.0 = 'FG_X': Input should be 'FULL', 'FG_C', "),
    ],
)
def test_a_value_outside_its_range(kind, values, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings(kind, values, "here")


def test_a_missing_file_lists_the_recipes(tmp_path, monkeypatch):
    (tmp_path / "known.toml").write_text("")
    (tmp_path / "another.toml").write_text("")
    monkeypatch.setattr("l2r2.config.RECIPES", tmp_path)
    with pytest.raises(ConfigError, match=r"^no recipe at .*none\.toml; give a TOML file or one of: another, known$"):
        load_recipe(tmp_path / "none.toml")


def test_a_bare_name_finds_the_recipe_of_the_library(tmp_path, monkeypatch):
    (tmp_path / "known.toml").write_text("")
    monkeypatch.setattr("l2r2.config.RECIPES", tmp_path)
    assert find_recipe("known") == tmp_path / "known.toml"
    assert str(find_recipe("other.toml")) == "other.toml"


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", b"[a]\n[a]"])
def test_what_is_no_toml(tmp_path, content):
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.toml is no readable TOML: "):
        load_recipe(tmp_path / "bad.toml")


def written(folder, **files: str):
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)
    return folder / f"{next(iter(files))}.toml"


def test_a_recipe_holds_only_what_differs_from_its_base(tmp_path):
    path = written(
        tmp_path,
        leaf='base = "middle"\nname = "leaf"\n[train]\nepochs = 3',
        middle='base = "root"\nname = "middle"\n[train]\nepochs = 2\nbatch_size = 7',
        root='name = "root"\nviews = ["FULL"]\n[train]\nlearning_rate = 0.5\nepochs = 1',
    )
    recipe = load_recipe(path, {"train.weight_decay": 0.25})
    assert (recipe.name, recipe.views) == ("leaf", (View.FULL,))
    train = recipe.train
    assert (train.epochs, train.batch_size, train.learning_rate, train.weight_decay) == (3, 7, 0.5, 0.25)


def test_a_base_may_be_a_recipe_of_the_library(tmp_path):
    recipe = load_recipe(written(tmp_path, mine='base = "demo"\nname = "mine"\n[train]\nepochs = 1'))
    assert (recipe.name, recipe.train.epochs, recipe.train.model) == ("mine", 1, "tf_efficientnet_lite0")


def test_a_base_of_itself_is_refused(tmp_path):
    path = written(tmp_path, a='base = "b"\nname = "a"', b='base = "a"\nname = "b"')
    with pytest.raises(ConfigError, match=r"a\.toml is a base of itself \(a → b → a\)"):
        load_recipe(path)


def test_a_base_that_is_not_there_or_no_name(tmp_path):
    with pytest.raises(ConfigError, match="no recipe at nowhere; give a TOML file or one of: "):
        load_recipe(written(tmp_path, a='base = "nowhere"\nname = "a"'))
    with pytest.raises(ConfigError, match="base = 3; expected the name of a recipe"):
        load_recipe(written(tmp_path, b='base = 3\nname = "b"'))


def test_localizers_are_told_apart_by_name():
    def localizer(**values: object) -> object:
        return parse_settings(Recipe, {"name": "x", "localizer": values}, "here").localizer

    assert isinstance(localizer(), SaliencySettings)
    assert isinstance(localizer(size_px=352), SaliencySettings)
    assert isinstance(localizer(name="gt", what="box"), TruthSettings)
    assert isinstance(localizer(name="owlv2", model="some/where"), DetectorSettings)
    with pytest.raises(ConfigError, match=r"^here: localizer\.name = 'dino': Input should be 'grounding_dino', "):
        localizer(name="dino", model="x")
    with pytest.raises(ConfigError, match=r"^here: unknown setting 'localizer\.modell'; did you mean 'model'\?$"):
        localizer(name="owlv2", modell="x")


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        ViewSettings().size_px = 1


def test_the_digest_changes_with_any_field():
    digests = {
        settings.digest()
        for settings in (SaliencySettings(), SaliencySettings(size_px=352), SaliencySettings(min_score=0.4))
    }
    assert len(digests) == 3
    assert all(len(digest) == 12 for digest in digests)
    assert SaliencySettings().digest() == SaliencySettings().digest()


def test_the_default_normalisation_is_efficientnet_lites():
    np.testing.assert_allclose(
        (np.array([0, 255]) / 255 - ViewSettings().mean[0]) / ViewSettings().std[0], [-127 / 128, 1.0]
    )
