"""A fitted experiment as its runs keep it: enough to export it, and to judge it again.

Artifacts of the parent run:

    recipe.json             the recipe, whole
    context.json            `Context`
    policy/policy.json      calibration, fusion and gate; arrays in policy/fusion.npz
    policy/prior.json       α, λ, vocabularies; counts in policy/priors.parquet
    tables/*, figures/*     what `report` made

Artifacts of each child, one a view and seed: model.safetensors, logits.parquet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from l2r2.bundle import describe_policy, read_policy
from l2r2.cascade import Policy
from l2r2.config import Recipe, Settings, ViewSettings
from l2r2.files import write_text
from l2r2.manifest import PolicyManifest, PriorManifest
from l2r2.priors import Priors
from l2r2.tracking import Run, Store
from l2r2.types import Stage, View


class Context(Settings):
    """What an experiment was made of."""

    class_names: tuple[str, ...]
    dataset: str
    dataset_digest: str
    dataset_folder: Path
    simulated_metadata: bool
    view: ViewSettings
    """With the backbone's own normalisation filled in."""
    views: dict[Stage, View]
    localizer_key: str
    children: dict[Stage, str]
    """Run of each stage's deployed classifier (the first seed)."""
    validation: dict[str, float]
    """Rates on the validation split, as `Systems.validation_rates` gives them."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """A fitted experiment, read back.

    Attributes:
        run_id: Of the parent.
        weights: Stage → safetensors of the whole network.
    """

    run_id: str
    recipe: Recipe
    context: Context
    policy: Policy
    policy_manifest: PolicyManifest
    priors: Priors
    prior_manifest: PriorManifest
    weights: Mapping[Stage, Path]


def save_experiment(run: Run, folder: Path, recipe: Recipe, context: Context, policy: Policy, priors: Priors) -> None:
    """Write the artifacts named above into `folder` and keep them with the run."""
    manifest = describe_policy(policy, context.class_names)
    prior = PriorManifest(
        alpha=priors.alpha,
        strength=priors.strength,
        cap=priors.cap,
        vocabularies={source: table.values for source, table in priors.tables.items()},
        simulated=context.simulated_metadata,
    )
    write_text(folder / "recipe.json", recipe.model_dump_json(indent=2))
    write_text(folder / "context.json", context.model_dump_json(indent=2))
    write_text(folder / "policy" / "policy.json", manifest.model_dump_json(indent=2))
    write_text(folder / "policy" / "prior.json", prior.model_dump_json(indent=2))
    np.savez(folder / "policy" / "fusion.npz", **policy.operator.parameters())  # type: ignore[arg-type]
    priors.save(folder / "policy" / "priors.parquet")
    for name in ("recipe.json", "context.json"):
        run.file(folder / name)
    for name in ("policy.json", "prior.json", "fusion.npz", "priors.parquet"):
        run.file(folder / "policy" / name, "policy")


def load_experiment(store: Store, run_id: str) -> Experiment:
    """Read back what `save_experiment` kept.

    Raises:
        InputError, ArtifactError: no such run, or it is no experiment's parent.
    """
    recipe = Recipe.model_validate_json(store.download(run_id, "recipe.json").read_bytes())
    context = Context.model_validate_json(store.download(run_id, "context.json").read_bytes())
    kept = store.download(run_id, "policy")
    manifest = PolicyManifest.model_validate_json((kept / "policy.json").read_bytes())
    prior = PriorManifest.model_validate_json((kept / "prior.json").read_bytes())
    return Experiment(
        run_id=run_id,
        recipe=recipe,
        context=context,
        policy=read_policy(manifest, kept / "fusion.npz", context.class_names),
        policy_manifest=manifest,
        priors=Priors.load(kept / "priors.parquet", prior.alpha, prior.strength, prior.cap),
        prior_manifest=prior,
        weights={stage: store.download(child, "model.safetensors") for stage, child in context.children.items()},
    )
