"""ImageNet-1k's classes: WordNet ids, their order and their words, from the lists that timm ships."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from l2r2.errors import BackendError, BackendMissing

WNID = re.compile(r"n\d{8}")
"""A noun's WordNet id, as ImageNet names its class folders."""

DISTINCT = MappingProxyType({"n02012849": "crane (bird)", "n03126707": "crane (machine)", "n03710721": "tank suit"})
"""Words of classes whose first lemma another class of ImageNet-1k has too (crane, maillot): prompts must differ."""


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """The 1000 ids, sorted: the place of an id is its ImageNet index, 0 to 999.

    Raises:
        BackendMissing: timm is not installed.
        BackendError: timm no longer ships the list.
    """
    return tuple(sorted(_shipped("imagenet_synsets.txt").split()))


def lemmas(wnid: str) -> tuple[str, ...]:
    """All names of a class, the usual one first; none for an id that ImageNet-21k does not have.

    Raises:
        BackendMissing, BackendError: as `imagenet_wnids`.
    """
    return _lemmas().get(wnid, ())


def class_words(wnids: Iterable[str]) -> dict[str, str]:
    """Id → how a prompt says it: the first lemma, or that of `DISTINCT`. Unknown ids are left out.

    Raises:
        BackendMissing, BackendError: as `imagenet_wnids`.
    """
    return {wnid: DISTINCT.get(wnid, lemmas(wnid)[0]) for wnid in wnids if lemmas(wnid)}


@cache
def _lemmas() -> dict[str, tuple[str, ...]]:
    rows = (line.partition("\t") for line in _shipped("imagenet_synset_to_lemma.txt").splitlines())
    return {wnid: tuple(names.split(", ")) for wnid, _, names in rows}


def _shipped(name: str) -> str:
    """A text of timm's; found without importing timm, which would import torch."""
    timm = find_spec("timm")
    if timm is None or timm.origin is None:
        raise BackendMissing(
            "timm is not installed, and it brings ImageNet's class names; run: pip install 'l2r2[train]'"
        )
    try:
        return (Path(timm.origin).parent / "data" / "_info" / name).read_text(encoding="utf-8")
    except OSError as error:
        raise BackendError(
            f"this timm does not ship {name} ({error.strerror}); run: pip install --upgrade 'l2r2[train]'"
        ) from None
