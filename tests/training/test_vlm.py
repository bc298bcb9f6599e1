"""Zero-shot classifiers answer as the libraries that they come from, and are scored as trained ones are."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import polars as pl
import pytest
import torch
import transformers
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import load_file, save_file

from l2r2 import weights
from l2r2.classification.timm_model import TorchClassifier
from l2r2.classification.vlm import Vlm, load_vlm
from l2r2.classification.vlm_towers import CLIP_LOOKS, PRESETS, load_towers
from l2r2.config import ImageSettings, ViewSettings, VlmSettings
from l2r2.datasets import Dataset
from l2r2.errors import ArtifactError, BackendError, BackendMissing, ConfigError, InputError
from l2r2.images import read
from l2r2.training.zero_shot import fitted_weights, load_zero_shot_network, score_zero_shot
from l2r2.types import Region, View
from l2r2.views import normalize, render
from tests.training.noise import COLOURS, fit, no_regions
from tests.training.tiny_vlm import (
    CONFIGS,
    SIGLIP,
    VIT,
    WORDS,
    make_open_clip,
    noise,
    save_open_clip,
    save_transformers,
)

PROMPTS = [f"A photo of a {word}" for word in WORDS]
KINDS = ("tiny-clip", "tiny-sig", "clip", "siglip")
"""Two models in open_clip, two in transformers."""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of one's own, and no hub."""
    monkeypatch.setenv("L2R2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[VlmSettings, torch.nn.Module]]:
    """Settings that load each model, and the model that was saved."""
    made = {name: save_open_clip(tmp_path_factory.mktemp(name), name) for name in CONFIGS}
    for kind in ("clip", "siglip"):
        folder = tmp_path_factory.mktemp(kind)
        made[kind] = VlmSettings(model=kind, checkpoint=folder), save_transformers(folder, kind)
    return made


@pytest.fixture(scope="module")
def vlms(saved: dict[str, tuple[VlmSettings, torch.nn.Module]]) -> dict[str, Vlm]:
    return {kind: load_vlm(settings) for kind, (settings, _) in saved.items()}


def own_logits(kind: str, settings: VlmSettings, model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the library itself says, SigLIP's bias taken off."""
    with torch.inference_mode():
        if kind in CONFIGS:
            logits = model.get_logits(images, open_clip.get_tokenizer(kind)(PROMPTS))[0]
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(settings.checkpoint)
            length = 77 if kind == "clip" else 64
            tokens = tokenizer(PROMPTS, padding="max_length", max_length=length, return_tensors="pt")
            if kind == "siglip":
                del tokens["attention_mask"]
            logits = model(pixel_values=images, **tokens).logits_per_image
        bias = getattr(model, "logit_bias", None)
        return logits if bias is None else logits - bias


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_librarys_own(kind, saved, vlms):
    images = noise(vlms[kind].view.size_px)
    expected = own_logits(kind, *saved[kind], images)
    assert min(expected.std(dim=0).min(), expected.std(dim=1).min()) > 0.005  # far more than the tolerance
    torch.testing.assert_close(vlms[kind].network(WORDS)(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_prototypes_are_unit_vectors_one_a_class(kind, vlms):
    prototypes = vlms[kind].prototypes(WORDS)
    assert prototypes.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(prototypes, axis=1), 1, atol=1e-6)
    assert np.linalg.matrix_rank(prototypes) == len(WORDS)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_follow_the_words(kind, vlms):
    order = [2, 0, 3, 1]
    images = noise(vlms[kind].view.size_px, 2)
    turned = vlms[kind].network([WORDS[i] for i in order])(images)
    torch.testing.assert_close(turned, vlms[kind].network(WORDS)(images)[:, order], atol=1e-5, rtol=1e-5)


def test_the_template_is_what_is_said(saved, vlms):
    settings, _ = saved["tiny-clip"]
    bare = load_vlm(settings.model_copy(update={"template": "{}"}))
    np.testing.assert_allclose(bare.prototypes(PROMPTS), vlms["tiny-clip"].prototypes(WORDS), atol=1e-6)
    assert np.abs(bare.prototypes(WORDS) - bare.prototypes(PROMPTS)).max() > 0.1
    assert bare.key != vlms["tiny-clip"].key


def test_many_words_are_embedded_in_batches(vlms, monkeypatch):
    whole = vlms["clip"].prototypes(WORDS)
    monkeypatch.setattr("l2r2.classification.vlm.TEXT_BATCH", 3)
    monkeypatch.setenv("L2R2_CACHE", str(weights.cache_folder() / "another"))
    np.testing.assert_allclose(vlms["clip"].prototypes(WORDS), whole, atol=1e-6)


@pytest.mark.parametrize(("kind", "context"), [("tiny-clip", 77), ("tiny-sig", 64), ("clip", 77), ("siglip", 64)])
def test_texts_are_as_long_as_the_vocabulary_has_it(kind, context, vlms):
    model, seen = vlms[kind].model, []
    embedding = next(part for name, part in model.named_modules() if name.endswith("token_embedding"))
    hook = embedding.register_forward_hook(lambda _module, given, _result: seen.append(given[0]))
    vlms[kind].encode([*PROMPTS, "long " * 100])
    hook.remove()
    assert [tuple(tokens.shape) for tokens in seen] == [(len(WORDS) + 1, context)]
    if kind in CONFIGS:
        assert torch.equal(seen[0][:-1], open_clip.tokenize(PROMPTS, context))


def test_both_libraries_read_clips_vocabulary_alike(saved, vlms):
    folder, seen = saved["clip"][0].checkpoint, []
    hook = vlms["clip"].model.text_model.embeddings.token_embedding.register_forward_hook(
        lambda _module, given, _result: seen.append(given[0])
    )
    vlms["clip"].encode(PROMPTS)
    hook.remove()
    theirs = SimpleTokenizer(str(folder / "merges.gz"))(PROMPTS)
    words = theirs.argmax(dim=1)  # what follows the end is padding, 0 in one and the end again in the other
    for ours, expected, end in zip(seen[0], theirs, words, strict=True):
        assert torch.equal(ours[: end + 1], expected[: end + 1])


def test_siglip_hears_lower_case_only(vlms):
    np.testing.assert_array_equal(vlms["siglip"].prototypes(["RED Fox"]), vlms["siglip"].prototypes(["red fox"]))


def deaf(vlm: Vlm) -> Vlm:
    """The same model, which fails when it has to embed a text."""

    def encode(texts: list[str]) -> torch.Tensor:
        raise AssertionError(f"encodes {texts}")

    return dataclasses.replace(vlm, encode=encode)


def test_prototypes_are_kept(saved, vlms):
    first = vlms["tiny-clip"].prototypes(WORDS)
    np.testing.assert_array_equal(deaf(load_vlm(saved["tiny-clip"][0])).prototypes(WORDS), first)
    for others in (WORDS[:3], WORDS[::-1]):
        with pytest.raises(AssertionError, match="encodes"):
            deaf(vlms["tiny-clip"]).prototypes(others)


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "gone"])
def test_damaged_prototypes_are_made_again(damage, vlms):
    vlm = vlms["tiny-clip"]
    first = vlm.prototypes(WORDS)
    (path,) = (weights.cache_folder() / "prototypes").iterdir()
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[-2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": data[:-7], "bit": data, "empty": b""}[damage])
    with pytest.raises(AssertionError, match="encodes"):
        deaf(vlm).prototypes(WORDS)
    np.testing.assert_array_equal(vlm.prototypes(WORDS), first)
    np.testing.assert_array_equal(deaf(vlm).prototypes(WORDS), first)


@pytest.mark.parametrize("words", [(), ("fox", " ")])
def test_classes_without_words_are_refused(words, vlms):
    with pytest.raises(InputError, match="expected at least one class, and words for each"):
        vlms["tiny-clip"].prototypes(words)


def test_keys_tell_models_apart(saved, vlms, tmp_path):
    keys = {vlm.key for vlm in vlms.values()}
    assert len(keys) == len(KINDS)
    assert all(len(key) <= 64 for key in keys)
    settings, model = saved["tiny-clip"]
    assert load_vlm(settings).key == vlms["tiny-clip"].key
    state = dict(model.state_dict())
    save_file(state | {"logit_scale": state["logit_scale"] + 1e-3}, tmp_path / "other.safetensors")
    other = load_vlm(settings.model_copy(update={"checkpoint": tmp_path / "other.safetensors"}))
    assert other.key != vlms["tiny-clip"].key


def test_a_folder_of_open_clip(saved, vlms, tmp_path):
    _, model = saved["tiny-clip"]
    looks = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": VIT, "preprocess_cfg": looks}))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    vlm = load_vlm(VlmSettings(checkpoint=tmp_path))
    assert (vlm.view.mean, vlm.view.std) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    np.testing.assert_array_equal(vlm.prototypes(WORDS), vlms["tiny-clip"].prototypes(WORDS))
    assert load_vlm(VlmSettings(model=f"local-dir:{tmp_path}")).view == vlm.view


@pytest.mark.parametrize("preset", ["clip-b", "siglip2-so", "bioclip"])
def test_weights_in_a_file_keep_their_published_preprocessing(preset, tmp_path, monkeypatch):
    """A small architecture stands in for the published one; open_clip alone would take CLIP's mean for SigLIP."""
    name, tag = ("ViT-B-16", "openai") if preset == "bioclip" else PRESETS[preset]
    config = SIGLIP if preset == "siglip2-so" else VIT | {"quick_gelu": preset == "clip-b"}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
    save_file(make_open_clip(config).state_dict(), tmp_path / "w.safetensors")
    view = load_vlm(VlmSettings(model=preset, checkpoint=tmp_path / "w.safetensors")).view
    published = open_clip.get_pretrained_cfg(name, tag)
    assert (view.mean, view.std) == (tuple(published["mean"]), tuple(published["std"]))
    assert view.size_px == config["vision_cfg"]["image_size"]
    assert (published["interpolation"], view.full_fit) == ("bicubic", "squash")
    assert (view.mean == (0.5, 0.5, 0.5)) == (preset == "siglip2-so")


def test_presets_are_published_weights():
    for name, tag in PRESETS.values():
        if tag is not None:
            known = open_clip.get_pretrained_cfg(name, tag)
            assert known["hf_hub"]
            assert bool(known.get("quick_gelu")) == bool(open_clip.get_model_config(name).get("quick_gelu"))
    assert open_clip.get_model_config(PRESETS["siglip2-so"][0])["vision_cfg"]["image_size"] == 256


@pytest.mark.parametrize("kind", ["tiny-clip", "tiny-sig"])
def test_views_are_open_clips_input(kind, vlms):
    """But for the squash: the whole photograph is kept."""
    vlm = vlms[kind]
    photo = np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8)
    ours = normalize([render(photo, None, View.FULL, vlm.view)], vlm.view)[0]
    looks = open_clip.transform.PreprocessCfg(**vlm.model.visual.preprocess_cfg | {"resize_mode": "squash"})
    theirs = open_clip.transform.image_transform_v2(looks, is_train=False)(Image.fromarray(photo))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_a_transformers_folder_says_how_it_was_trained(saved, vlms, tmp_path):
    assert vlms["siglip"].view.mean == (0.5, 0.5, 0.5)
    assert (vlms["clip"].view.mean, vlms["clip"].view.std) == CLIP_LOOKS
    assert CLIP_LOOKS == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    for file in saved["clip"][0].checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    processor = transformers.CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    processor.save_pretrained(tmp_path)
    view = load_vlm(VlmSettings(checkpoint=tmp_path)).view
    assert (view.mean, view.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_recipe_lays_out_views_and_the_model_normalises_them(vlms):
    vlm = vlms["siglip"]
    settings = vlm.view_settings(ViewSettings(margin=0.2, fg_fit="squash"))
    assert settings == vlm.view.model_copy(update={"margin": 0.2, "fg_fit": "squash"})
    message = f"view.size_px is 224, but {vlm.key} was trained with 32; leave it out"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        vlm.view_settings(ViewSettings(size_px=224))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": "clip-x"}, ConfigError, r"vlm\.model is 'clip-x', which open_clip does not know; try clip-"),
        ({"model": "ViT-B-16"}, ConfigError, "ViT-B-16 says not which weights; write ViT-B-16@TAG with one of: openai"),
        ({"model": "ViT-B-16@nope"}, ConfigError, "ViT-B-16 has no weights 'nope'; write ViT-B-16@TAG with one of"),
        ({"model": "ViT-B-32@openai"}, ConfigError, "weights 'openai' do not go with .*; write ViT-B-32-quickgelu@op"),
        ({"model": "coca_ViT-B-32@laion2b_s13b_b90k"}, ConfigError, "coca_ViT-B-32 writes captions; expected a model"),
        (
            {"model": "hf-hub:l2r2/none"},
            BackendError,
            r"hf-hub:l2r2/none cannot be had from the hub \(\w+Error\); fet",
        ),
        ({"model": "hf-hub:l2r2/none", "checkpoint": "junk"}, ConfigError, "hf-hub:l2r2/none brings its own weights"),
        ({"model": "local-dir:none"}, ArtifactError, "local-dir:none cannot be loaded as local-dir:none"),
        ({"checkpoint": "absent"}, ArtifactError, "absent is no model; expected a file of weights, or a folder"),
        (
            {"checkpoint": "."},
            ArtifactError,
            r"vlm\.checkpoint \. is no model; expected a file of weights, or a folder",
        ),
        ({"model": "tiny-clip", "checkpoint": "junk"}, ArtifactError, "junk cannot be loaded as tiny-clip: .*; check"),
        ({"model": "tiny-clip", "checkpoint": "sig"}, ArtifactError, "sig cannot be loaded as tiny-clip: .*; check"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(settings, error, message, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("junk").write_bytes(b"junk")
    torch.save(saved["tiny-sig"][1].state_dict(), "sig")
    with pytest.raises(error, match=message) as caught:
        load_vlm(VlmSettings(**settings))
    assert "\n" not in str(caught.value)


def test_a_transformers_folder_that_is_not_whole_or_of_another_kind(saved, tmp_path):
    source = saved["clip"][0].checkpoint
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(source / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match=r"lacks weights: 1 are missing or differ, first visual_projection\.weight"):
        load_vlm(VlmSettings(checkpoint=tmp_path))
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="holds a model of type 'vit'; expected clip or siglip"):
        load_vlm(VlmSettings(checkpoint=tmp_path))


def test_a_vocabulary_that_only_the_hub_has(tmp_path, monkeypatch):
    config = SIGLIP | {"text_cfg": SIGLIP["text_cfg"] | {"hf_tokenizer_name": "l2r2/none"}}
    monkeypatch.setitem(CONFIGS, "tiny-hub", config)
    vlm = load_vlm(save_open_clip(tmp_path, "tiny-hub")[0])
    with pytest.raises(BackendError, match=r"^the vocabulary of tiny-hub cannot be had from the hub .*folder of its"):
        vlm.prototypes(WORDS)


@pytest.mark.parametrize(("library", "kind"), [("open_clip", "tiny-clip"), ("transformers", "clip")])
def test_a_library_that_is_not_installed(library, kind, saved, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(BackendMissing, match=rf"^{library} is not installed; run: pip install 'l2r2\[vlm\]'$"):
        load_towers(saved[kind][0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_rebuilt_without_its_text_tower(kind, vlms, tmp_path, monkeypatch):
    vlm = vlms[kind]
    network = vlm.network(WORDS)
    path = fitted_weights(network, tmp_path / "model.safetensors")
    state = load_file(path)
    assert sum(value.numel() for value in state.values()) == (
        sum(value.numel() for value in vlm.tower.state_dict().values()) + len(WORDS) * state["prototypes"].shape[1] + 1
    )
    monkeypatch.delitem(open_clip.factory._MODEL_CONFIGS, kind, raising=False)
    again = load_zero_shot_network(path)
    images = noise(vlm.view.size_px)
    torch.testing.assert_close(again(images), network(images), atol=0, rtol=0)
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_a_file_that_is_no_network(vlms, tmp_path):
    path = fitted_weights(vlms["tiny-clip"].network(WORDS), tmp_path / "model.safetensors")
    state = load_file(path)
    save_file(state, path, {"architecture": json.dumps({"library": "none", "vision": {}})})
    with pytest.raises(ArtifactError, match="no image tower can be built from"):
        load_zero_shot_network(path)
    save_file(state, path)
    with pytest.raises(ArtifactError, match=r"model\.safetensors is no zero-shot network of ours"):
        load_zero_shot_network(path)
    with pytest.raises(ArtifactError, match="absent is no zero-shot network of ours"):
        load_zero_shot_network(tmp_path / "absent")


COLOUR_WORDS = tuple(sorted(COLOURS))


def score(dataset: Dataset, vlm: Vlm, folder: Path, words=COLOUR_WORDS, view=View.FULL, regions=None, **more):
    regions = no_regions(dataset) if regions is None else regions
    more = {"batch_size": 5, "chunk": 2, **more}
    return score_zero_shot(dataset, regions, view, vlm, words, ImageSettings(), folder, **more)


def test_scores_are_those_of_each_photograph_alone(dataset, vlms, tmp_path):
    vlm = vlms["tiny-clip"]
    table = pl.read_parquet(score(dataset, vlm, tmp_path))
    classifier = TorchClassifier(vlm.network(COLOUR_WORDS))
    paths = dict(zip(dataset.table["digest"], dataset.paths(), strict=True))
    for row in table.sample(6, seed=0).iter_rows(named=True):
        photo = read(paths[row["digest"]], ImageSettings())
        alone = classifier.logits(normalize([render(photo, None, View.FULL, vlm.view)], vlm.view))[0]
        np.testing.assert_allclose(row["logits"], alone, atol=1e-5)
    assert np.std(np.stack(table["logits"].to_numpy()), axis=0).min() > 1e-3


def test_the_table_is_a_fits(dataset, vlms, tmp_path):
    ours = pl.read_parquet(score(dataset, vlms["tiny-clip"], tmp_path / "ours"))
    theirs = pl.read_parquet(fit(dataset, tmp_path / "theirs", trainable="head", epochs=1).logits)
    assert ours.schema == theirs.schema
    assert ours.drop("logits").equals(theirs.drop("logits"))


def test_a_split_without_labels_is_left_out(dataset, vlms, tmp_path):
    blind = pl.when(pl.col("split") == "test").then(None).otherwise("label").alias("label")
    part = dataclasses.replace(dataset, table=dataset.table.with_columns(blind))
    assert set(pl.read_parquet(score(part, vlms["tiny-clip"], tmp_path))["split"]) == {"train", "val"}


def test_a_foreground_is_looked_at_where_there_is_one(dataset, vlms, tmp_path):
    found = dataset.table["digest"][0]
    regions = no_regions(dataset) | {found: Region((8.0, 8.0, 40.0, 50.0), 0.9)}
    full = pl.read_parquet(score(dataset, vlms["tiny-clip"], tmp_path / "full"))
    fg = pl.read_parquet(score(dataset, vlms["tiny-clip"], tmp_path / "fg", view=View.FG_C, regions=regions))
    moved = np.abs(np.stack(fg["logits"].to_numpy()) - np.stack(full["logits"].to_numpy())).max(axis=1)
    assert (moved > 1e-3).tolist() == (fg["digest"] == found).to_list() == fg["found"].to_list()


class PlugPulled(Exception):  # noqa: N818  no error, an event
    """Stops the scoring where a kill would."""


@pytest.mark.parametrize("stop", [(4,), (23,), (31, 45), (48,)])
def test_scoring_goes_on_where_it_was_stopped(stop, dataset, vlms, tmp_path):
    whole = score(dataset, vlms["tiny-clip"], tmp_path / "whole").read_bytes()
    total = len(dataset)
    kept = 0
    for last in stop:
        told: list[int] = []

        def on_step(done: int, _total: int, last: int = last, told: list[int] = told) -> None:
            told.append(done)
            if done >= last:
                raise PlugPulled

        with pytest.raises(PlugPulled):
            score(dataset, vlms["tiny-clip"], tmp_path / "cut", on_step=on_step)
        assert not (tmp_path / "cut" / "logits.parquet").exists()
        kept = (told[-1] - 1) // 10 * 10  # whole chunks of two batches of five
    told = []
    path = score(dataset, vlms["tiny-clip"], tmp_path / "cut", on_step=lambda done, total: told.append((done, total)))
    rest = sorted({*range(10, kept + 1, 10), *range(kept + 5, total + 1, 5), total})
    assert told == [(done, total) for done in rest]
    assert path.read_bytes() == whole
    assert sorted(file.name for file in path.parent.iterdir()) == ["logits.key", "logits.parquet"]


def test_what_is_done_is_done_once_and_only_for_the_same_question(dataset, vlms, tmp_path):
    vlm, told = vlms["tiny-clip"], []
    first = score(dataset, vlm, tmp_path).read_bytes()
    path = score(dataset, deaf(vlm), tmp_path, on_step=lambda done, _: told.append(done))
    assert (told, path.read_bytes() == first) == ([len(dataset)], True)
    other = score(dataset, vlm, tmp_path, words=COLOUR_WORDS[::-1]).read_bytes()
    assert other != first
    assert score(dataset, vlm, tmp_path).read_bytes() == first


def test_a_damaged_chunk_is_computed_again(dataset, vlms, tmp_path):
    whole = score(dataset, vlms["tiny-clip"], tmp_path / "whole").read_bytes()

    def on_step(done: int, _total: int) -> None:
        if done > 20:
            raise PlugPulled

    with pytest.raises(PlugPulled):
        score(dataset, vlms["tiny-clip"], tmp_path / "cut", on_step=on_step)
    first, second = sorted((tmp_path / "cut").glob("chunks-*/*.npy"))
    first.write_bytes(first.read_bytes()[:-3])
    second.write_bytes(b"")
    assert score(dataset, vlms["tiny-clip"], tmp_path / "cut").read_bytes() == whole


def test_words_must_match_the_classes(dataset, vlms, tmp_path):
    with pytest.raises(InputError, match=r"^got words for 2 classes; expected 3, one text each$"):
        score(dataset, vlms["tiny-clip"], tmp_path, words=("a", "b"))


def test_logits_that_are_no_numbers_are_refused(dataset, saved, tmp_path):
    settings, model = saved["tiny-clip"]
    state = dict(model.state_dict()) | {"visual.proj": torch.full_like(model.visual.proj, float("nan"))}
    save_file(state, tmp_path / "nan.safetensors")
    broken = load_vlm(settings.model_copy(update={"checkpoint": tmp_path / "nan.safetensors"}))
    with pytest.raises(BackendError, match="logits that are not finite"):
        score(dataset, broken, tmp_path)
