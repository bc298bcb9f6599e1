"""The recipes of the paper's experiments: whole, in line with the tables they make and with what the paper states."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from l2r2.config import RECIPES, DetectorSettings, Recipe, TruthSettings, load_recipe
from l2r2.experiments.paper import FIGURES, TITLES, figure_needs, paper_table, table_needs
from l2r2.types import View

VARIANTS = {"dogs-dinov2-frozen": "stanford-dogs", "dogs-shared": "stanford-dogs"}
"""Beyond the paper's tables."""

USES = {
    (kind, number): needs
    for kind, numbers, find in (("table", TITLES, table_needs), ("figure", FIGURES, figure_needs))
    for number in numbers
    for needs in [find(number)]
}
RECIPE_OF = {path.stem: load_recipe(path) for path in sorted(RECIPES.glob("*.toml"))}
PAPER = sorted(set(RECIPE_OF) - {"demo"})
ZERO_SHOT = [name for name in PAPER if RECIPE_OF[name].vlm]
TRAINED = [name for name in PAPER if not RECIPE_OF[name].vlm and name not in VARIANTS]
RESNETS = [name for name in TRAINED if "resnet50" in name or "-dg-" in name]


def header(name: str) -> str:
    """The comment before the first setting, its lines joined."""
    text = (RECIPES / f"{name}.toml").read_text(encoding="utf-8").split("\n\n")[0]
    assert all(line.startswith("# ") for line in text.splitlines())
    return re.sub(r"\n#   ", " ", text)


def line(name: str, key: str) -> str:
    (found,) = re.findall(rf"^# {key}: (.+)$", header(name), flags=re.MULTILINE)
    return str(found)


def dataset_of(name: str) -> str:
    known = {need.dataset for needs in USES.values() for need in needs if need.recipe == name}
    (dataset,) = known or {VARIANTS[name]}
    return dataset


def test_there_is_a_recipe_for_every_cell_and_a_cell_for_every_recipe() -> None:
    named = {need.recipe for needs in USES.values() for need in needs}
    assert named == set(PAPER) - set(VARIANTS)


@pytest.mark.parametrize("name", PAPER)
def test_the_header_says_where_from_how_how_long_and_what_is_assumed(name: str) -> None:
    assert line(name, "command") == f"l2r2 train {name} --data data/{dataset_of(name)}"
    assert line(name, "time")
    assert len(line(name, "assumed")) > 10
    for kind in ("table", "figure"):
        wanted = [number for (k, number), needs in USES.items() if k == kind and name in {n.recipe for n in needs}]
        listed = re.search(rf"{kind}s? ([\d, ]+)", line(name, "paper"))
        assert [int(n) for n in listed[1].split(",")] == wanted if listed else not wanted


def test_a_base_of_no_experiment_is_used_and_says_what_it_assumes() -> None:
    texts = [path.read_text(encoding="utf-8") for path in RECIPES.rglob("*.toml")]
    for path in (RECIPES / "base").glob("*.toml"):
        assert any(f'base = "base/{path.stem}"' in text for text in texts), path
        assert "# assumed:" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in PAPER if name not in VARIANTS])
def test_a_recipe_makes_every_system_that_its_cells_name(name: str) -> None:
    recipe = RECIPE_OF[name]
    systems = {
        cell["system"]
        for number in TITLES
        for cell in paper_table(number).iter_rows(named=True)
        if cell["recipe"] == name
    }
    for system in systems:
        assert makes(recipe, system), system


def makes(recipe: Recipe, system: str) -> bool:
    """Whether the runner would, given the views, the seeds and the sources of a recipe."""
    views = {str(view) for view in recipe.views}
    if system.startswith("top-k"):
        return isinstance(recipe.localizer, DetectorSettings) and recipe.localizer.prompt == "candidates"
    if system in views:
        return True
    if "FULL" not in views:  # nothing is fused without its fallback
        return False
    if system.endswith("×2"):
        return system.removesuffix("×2") in views and len(recipe.train.seeds) > 1
    if "+" in system:
        view, source = system.removesuffix(", df20").split("+")
        source = source.removeprefix("shuffled ")
        return view in views and source in recipe.prior.sources
    found = re.fullmatch(r"(?:Oracle |)(\w+?)(?:⊕(max|smax|R|avg|wavg|FC|WL|\*)|) (\w+)", system)
    return found is not None and {found[1], found[3]} <= views and (recipe.vlm is None or found[2] == "max")


def test_a_system_that_a_recipe_cannot_make_is_noticed() -> None:
    assert not makes(RECIPE_OF["imagenet"], "FULL×2")  # one seed
    assert not makes(RECIPE_OF["hard-imagenet"], "FG_M")
    assert not makes(RECIPE_OF["spawrious-resnet50-timm-distorted"], "FG_C⊕R BG_S")
    assert not makes(RECIPE_OF["fungi"], "FULL+latitude")
    assert not makes(RECIPE_OF["fungi"], "FULL+shuffled latitude")
    assert not makes(RECIPE_OF["fungi"], "FG_C⊕sum FULL")


@pytest.mark.parametrize("name", PAPER)
def test_masked_views_have_a_segmenter_and_fusions_take_the_cropped_foreground(name: str) -> None:
    recipe = RECIPE_OF[name]
    foregrounds = [view for view in recipe.views if view in {View.FG_C, View.FG_M}]
    assert not foregrounds or foregrounds[0] is View.FG_C
    backgrounds = [view for view in recipe.views if view in {View.BG_S, View.BG_B}]
    assert not backgrounds or backgrounds[0] is View.BG_S
    if {View.FG_M, View.BG_S} & set(recipe.views) and not isinstance(recipe.localizer, TruthSettings):
        assert isinstance(recipe.localizer, DetectorSettings)
        assert recipe.localizer.segmenter is not None
        assert not recipe.localizer.segmenter.checkpoint.is_absolute()


@pytest.mark.parametrize("name", TRAINED)
def test_what_the_paper_states_of_training(name: str) -> None:
    train = RECIPE_OF[name].train
    environments = 1 if train.environment is None else 2
    assert train.batch_size * environments == 128
    assert train.seeds == ((0,) if name == "imagenet" else (0, 1, 2, 3, 4))
    assert train.trainable == "all"
    assert RECIPE_OF[name].view.size_px == 224
    assert RECIPE_OF[name].fusion.fit_on == "train"
    if name in RESNETS:
        assert train.learning_rate == 1e-5
        assert (train.model, train.weights) in {("resnet50.a1_in1k", "hub"), ("resnet50", "torchvision")}
        assert (train.weights == "hub") == ("timm" in name)
    else:
        size = "tiny" if name == "imagenet" else "base"
        assert (train.model, train.weights) == (f"convnextv2_{size}.fcmae_ft_in1k", "hub")


def test_prompts_and_detectors_are_the_papers() -> None:
    prompts = {"stanford-dogs": ("full dog",), "spawrious-100": ("full dog",), "spawrious-97": ("full dog",)}
    prompts |= {"fungitastic-mini": ("mushroom",), "counter-animal": ("animal", "bird", "insect", "reptile")}
    for name in PAPER:
        localizer, dataset = RECIPE_OF[name].localizer, dataset_of(name)
        if isinstance(localizer, TruthSettings):
            assert name == "hard-imagenet-gt"
            continue
        assert isinstance(localizer, DetectorSettings)
        if dataset in prompts:
            assert (localizer.name, localizer.prompt, localizer.texts) == ("grounding_dino", "meta", prompts[dataset])
        elif "topk" in name:
            assert localizer.prompt == "candidates"
            assert localizer.name == ("grounding_dino" if name.endswith("dino") else "owlv2")
        else:
            assert (localizer.name, localizer.prompt, localizer.texts) == ("owlv2", "oracle", ())


@pytest.mark.parametrize("prefix", ["dogs", "fungi", "spawrious", "counter-animal", "imagenet"])
def test_recipes_of_one_data_set_share_its_regions(prefix: str) -> None:
    recipes = [RECIPE_OF[name] for name in PAPER if name == prefix or name.startswith(f"{prefix}-")]
    assert len({recipe.localizer.digest() for recipe in recipes}) == 1


def test_zero_shot_recipes_are_nineteen_and_leave_size_to_the_model() -> None:
    sets, models = (
        ("hard-imagenet", "dogs", "spawrious", "counter-animal", "fungi"),
        {
            "clip-b": "clip-b",
            "bioclip": "bioclip",
            "clip-l": "clip-l",
            "siglip2": "siglip2-so",
        },
    )
    wanted = {f"{s}-{m}": model for s in sets for m, model in models.items()}
    del wanted["fungi-siglip2"]
    found = {name: vlm.model for name in ZERO_SHOT if (vlm := RECIPE_OF[name].vlm)}
    assert found == wanted
    for name in ZERO_SHOT:
        recipe = RECIPE_OF[name]
        assert recipe.views == (View.FULL, View.FG_C, View.BG_S, View.CENTERCROP)
        assert recipe.vlm is not None
        assert recipe.vlm.template == "A photo of a {}"
        assert not {"size_px", "mean", "std"} & recipe.view.model_fields_set
        assert recipe.train.seeds == (0,)


def test_methods_of_table_2_differ_in_the_objective_alone() -> None:
    methods = {name: RECIPE_OF[name] for name in TRAINED if "-dg-" in name}
    assert len(methods) == 12
    objectives = {(r.train.objective, tuple(r.train.objective_settings.items())) for r in methods.values()}
    assert len(objectives) == 12
    blank = {"name": "x", "train": {"objective": "erm", "objective_settings": {}}}
    plain = {merge(recipe, blank).digest() for recipe in methods.values()}
    assert len(plain) == 1
    assert all(recipe.views == (View.FULL,) for recipe in methods.values())


def merge(recipe: Recipe, changes: dict[str, object]) -> Recipe:
    train = recipe.train.model_copy(update=changes["train"])  # type: ignore[arg-type]
    return recipe.model_copy(update={"name": changes["name"], "train": train})


def test_distorted_crops_differ_in_the_fit_alone() -> None:
    for library in ("timm", "torchvision"):
        plain = RECIPE_OF[f"spawrious-resnet50-{library}"]
        distorted = RECIPE_OF[f"spawrious-resnet50-{library}-distorted"]
        assert (plain.view.fg_fit, distorted.view.fg_fit) == ("pad", "squash")
        assert distorted.view.model_copy(update={"fg_fit": "pad"}) == plain.view
        assert distorted.train == plain.train


def test_variants_are_what_they_are_named_for() -> None:
    dogs, shared, frozen = (RECIPE_OF[name] for name in ("dogs", "dogs-shared", "dogs-dinov2-frozen"))
    assert shared.train == dogs.train.model_copy(update={"shared": True})
    assert frozen.train.trainable == "head"
    assert "dinov2" in frozen.train.model


def test_timm_has_every_model_with_weights() -> None:
    timm = pytest.importorskip("timm")
    known = set(timm.list_pretrained())
    for name in (*TRAINED, *VARIANTS):
        train = RECIPE_OF[name].train
        assert train.model in known or (train.model, train.weights) == ("resnet50", "torchvision"), name
        assert timm.models.get_pretrained_cfg(train.model) is not None


def test_an_override_reaches_a_setting_of_a_base(tmp_path: Path) -> None:
    overrides = {"localizer.segmenter.checkpoint": str(tmp_path / "sam.pth")}
    recipe = load_recipe(RECIPES / "dogs-siglip2.toml", overrides)
    assert isinstance(recipe.localizer, DetectorSettings)
    assert recipe.localizer.segmenter is not None
    assert recipe.localizer.segmenter.checkpoint == tmp_path / "sam.pth"
