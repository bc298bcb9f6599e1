from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2r2.errors import ArtifactError, DatasetError, InputError
from l2r2.logspace import log_normalize
from l2r2.metrics import nll
from l2r2.priors import MAX_STRENGTH, Priors, count_priors, df20_scores, fit_priors

# Four training photographs: n(0) = 3, n(1) = 1, so P = (3/4, 1/4).
# In the forest one of each class, n(m) = 2; on the meadow one of class 0; one photograph without a habitat.
LABELS = np.array([0, 0, 1, 0])
HABITAT = ["forest", "meadow", "forest", None]
PRIORS = count_priors(LABELS, {"habitat": HABITAT}, 2)


def changed(priors: Priors, alpha: float = 1.0, strength: float = 1.0) -> Priors:
    return Priors(priors.class_counts, priors.tables, alpha, strength)


def drawn(seed: int, n: int, classes: int = 3, values: int = 4) -> tuple[np.ndarray, dict[str, list[str]]]:
    """Labels with every class present, and two sources that depend on them."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    columns = {}
    for source in ("habitat", "month"):
        table = rng.dirichlet(np.full(values, 0.7), size=classes).cumsum(axis=1)
        columns[source] = [
            str(int(v) + 1) for v in (rng.random(n)[:, None] > table[labels]).sum(axis=1).clip(0, values - 1)
        ]
    return labels, columns


def rows(columns: dict[str, list[str]]) -> list[dict[str, str]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def dense(priors: Priors, labels: np.ndarray, columns: dict[str, list[str]], metadata: dict[str, str]) -> np.ndarray:
    """λ Σ_s log P̃(k|m_s) / P̃(k) from the training table itself, by the formula."""
    k = len(priors.class_counts)
    p = np.bincount(labels, minlength=k) / len(labels)
    total = np.zeros(k)
    for source, value in metadata.items():
        here = labels[np.array([v == value for v in columns[source]])]
        given = (np.bincount(here, minlength=k) + priors.alpha * p) / (len(here) + priors.alpha)
        total += np.log(given / p)
    return priors.strength * total


def test_golden():
    # α = 1: P̃(0|forest) = (1 + 0.75) / 3, over P = 0.75: 0.777…;  P̃(1|forest) = (1 + 0.25) / 3, over 0.25: 1.666…
    np.testing.assert_allclose(
        PRIORS.log_prior([{"habitat": "forest"}]), np.log([[1.75 / 3 / 0.75, 1.25 / 3 / 0.25]]), rtol=1e-6
    )


def test_golden_of_a_class_never_seen_there():
    # α = 1: P̃(1|meadow) = (0 + 0.25) / 2, over P = 0.25: a half;  P̃(0|meadow) = (1 + 0.75) / 2, over 0.75: 1.1666…
    np.testing.assert_allclose(PRIORS.log_prior([{"habitat": "meadow"}]), np.log([[7 / 6, 0.5]]), rtol=1e-6)


def test_strength_scales_the_logarithm():
    full, half = (
        PRIORS.log_prior([{"habitat": "forest"}]),
        changed(PRIORS, strength=0.5).log_prior([{"habitat": "forest"}]),
    )
    np.testing.assert_allclose(half, full / 2, rtol=1e-6)


@pytest.mark.parametrize("metadata", [{}, {"habitat": "desert"}, {"altitude": "high"}])
def test_what_is_missing_or_unseen_is_neutral(metadata):
    assert PRIORS.log_prior([metadata]).tolist() == [[0.0, 0.0]]


def test_each_row_has_its_own_metadata():
    both = PRIORS.log_prior([{"habitat": "meadow"}, {}, {"habitat": "forest"}])
    for row, metadata in zip(both, [{"habitat": "meadow"}, {}, {"habitat": "forest"}], strict=True):
        np.testing.assert_array_equal(row, PRIORS.log_prior([metadata])[0])


def test_strength_zero_is_neutral():
    assert not changed(PRIORS, strength=0.0).log_prior([{"habitat": "forest"}]).any()


def test_a_uniform_prior_changes_nothing():
    priors = count_priors(np.array([0, 0, 1, 1]), {"month": ["1", "2", "1", "2"]}, 2)
    np.testing.assert_allclose(priors.log_prior([{"month": "1"}]), 0.0, atol=1e-6)


def test_a_large_pseudo_count_is_neutral():
    np.testing.assert_allclose(changed(PRIORS, alpha=1e6).log_prior([{"habitat": "forest"}]), 0.0, atol=1e-5)


@given(seed=st.integers(0, 300), alpha=st.floats(0.1, 100), strength=st.floats(0, 2), classes=st.integers(2, 12))
def test_sparse_rows_equal_the_dense_formula(seed, alpha, strength, classes):
    labels, columns = drawn(seed, 40, classes)
    priors = changed(count_priors(labels, columns, classes), alpha, strength)
    for metadata in rows(columns)[:5]:
        np.testing.assert_allclose(
            priors.log_prior([metadata])[0], dense(priors, labels, columns, metadata), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("cap", [None, 0.5])
def test_parts_sum_to_the_log_prior(cap):
    labels, columns = drawn(0, 60)
    priors = replace(count_priors(labels, columns, 3), cap=cap)
    for metadata in rows(columns)[:10]:
        whole = priors.log_prior([metadata])[0]
        np.testing.assert_allclose(sum(priors.parts(metadata, np.arange(3)).values()), whole, rtol=1e-5, atol=1e-6)
        for k in range(3):
            alone = priors.parts(metadata, np.array([k]))
            np.testing.assert_allclose(sum(alone.values()), whole[[k]], rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0, 100), cap=st.floats(0.05, 4), strength=st.floats(0, 2))
def test_a_cap_holds_the_sum_and_changes_nothing_inside_it(seed, cap, strength):
    labels, columns = drawn(seed, 50)
    free = changed(count_priors(labels, columns, 3), 0.3, strength)
    held = replace(free, cap=cap)
    before, after = free.log_prior(rows(columns)), held.log_prior(rows(columns))
    np.testing.assert_allclose(after, np.clip(before, -cap, cap), rtol=1e-5, atol=1e-6)
    assert (abs(after).max(axis=1) <= cap * 1.0001).all()


def test_a_capped_prior_flips_no_answer_that_leads_by_more_than_twice_the_cap():
    labels, columns = drawn(3, 80)
    held = changed(replace(count_priors(labels, columns, 3), cap=0.7), 0.1, 2.0)
    held = replace(held, cap=0.7)
    sure = log_normalize(np.array([[1.5, 0.0, 0.0]]))
    for metadata in rows(columns):
        assert (sure + held.log_prior([metadata])).argmax() == 0


def test_strength_is_fitted_with_the_cap_in_place():
    labels, columns = drawn(1, 300)
    flat = log_normalize(np.zeros((300, 3)))
    fitted = fit_priors(replace(count_priors(labels, columns, 3), cap=0.2), flat, rows(columns), labels)
    assert fitted.cap == 0.2
    assert fitted.strength > 0
    best = nll(log_normalize(flat + fitted.log_prior(rows(columns))), labels)
    for strength in (0.5 * fitted.strength, 0.0):
        other = replace(fitted, strength=strength)
        assert best <= nll(log_normalize(flat + other.log_prior(rows(columns))), labels) + 1e-6


def test_parts_are_only_of_what_is_known():
    assert set(PRIORS.parts({"habitat": "forest", "month": "3", "substrate": "wood"}, np.arange(2))) == {"habitat"}


def test_unrecognized_values_and_names_are_told():
    assert PRIORS.unrecognized({"habitat": "desert", "altitude": "high"}) == ("habitat", "altitude")
    assert PRIORS.unrecognized({"habitat": "forest"}) == ()


def test_the_order_of_rows_and_of_months_is_irrelevant():
    labels, columns = drawn(1, 80, values=12)
    order = np.random.default_rng(0).permutation(80)
    straight = count_priors(labels, columns, 3)
    shuffled = count_priors(labels[order], {s: [v[i] for i in order] for s, v in columns.items()}, 3)
    for metadata in rows(columns):
        np.testing.assert_array_equal(straight.log_prior([metadata]), shuffled.log_prior([metadata]))


def test_the_names_of_months_carry_no_order():
    labels, columns = drawn(2, 80, values=12)
    renamed = [str(13 - int(month)) for month in columns["month"]]
    straight = count_priors(labels, {"month": columns["month"]}, 3)
    turned = count_priors(labels, {"month": renamed}, 3)
    np.testing.assert_array_equal(
        straight.log_prior([{"month": m} for m in columns["month"]]), turned.log_prior([{"month": m} for m in renamed])
    )


def test_a_source_without_any_value_makes_no_table():
    assert count_priors(LABELS, {"habitat": [None] * 4}, 2).tables == {}


def test_a_class_without_a_photograph_is_refused():
    with pytest.raises(
        DatasetError, match=r"^class 1 has no training photograph; every class needs one for its prior$"
    ):
        count_priors(np.array([0, 2]), {}, 3)


def simulated(seed: int, n: int) -> tuple[np.ndarray, np.ndarray, list[dict[str, str]], dict[str, list[str]]]:
    """Labels, exact posteriors of one Gaussian measurement, and metadata independent of it given the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    tables = {
        source: np.random.default_rng(place).dirichlet(np.full(4, 0.8), size=3).cumsum(axis=1)
        for place, source in enumerate(("habitat", "month"))
    }
    columns = {
        s: [str(int(v) + 1) for v in (rng.random(n)[:, None] > t[labels]).sum(axis=1).clip(0, 3)]
        for s, t in tables.items()
    }
    x = labels + rng.normal(size=n)
    log_probs = log_normalize(-((x[:, None] - np.arange(3)) ** 2) / 2)
    return labels, log_probs, rows(columns), columns


def test_fit_finds_bayes_on_data_that_follow_the_model():
    train_labels, _, _, train_columns = simulated(0, 4000)
    labels, log_probs, metadata, _ = simulated(1, 3000)
    fitted = fit_priors(count_priors(train_labels, train_columns, 3), log_probs, metadata, labels)
    assert fitted.strength == pytest.approx(1.0, abs=0.1)
    assert nll(log_normalize(log_probs + fitted.log_prior(metadata)), labels) < nll(log_probs, labels) - 0.1


def test_fit_switches_off_metadata_that_mislead():
    train_labels, _, _, train_columns = simulated(0, 2000)
    labels, log_probs, metadata, _ = simulated(1, 1000)
    fitted = fit_priors(count_priors((train_labels + 1) % 3, train_columns, 3), log_probs, metadata, labels)
    assert fitted.strength < 0.01
    assert nll(log_normalize(log_probs + fitted.log_prior(metadata)), labels) <= nll(log_probs, labels)


def test_fit_leaves_shuffled_metadata_without_a_voice():
    train_labels, _, _, train_columns = simulated(0, 2000)
    labels, log_probs, metadata, _ = simulated(1, 1000)
    shuffled = [metadata[i] for i in np.random.default_rng(0).permutation(len(metadata))]
    fitted = fit_priors(count_priors(train_labels, train_columns, 3), log_probs, shuffled, labels)
    assert np.abs(fitted.log_prior(shuffled)).max() < 0.1


@settings(max_examples=10)
@given(st.integers(0, 60))
def test_fit_never_raises_the_nll_and_stays_inside_the_bounds(seed):
    labels, columns = drawn(seed, 30)
    log_probs = log_normalize(np.random.default_rng(seed).normal(size=(30, 3)))
    fitted = fit_priors(count_priors(labels, columns, 3), log_probs, rows(columns), labels)
    assert 0.0 <= fitted.strength <= MAX_STRENGTH
    assert nll(log_normalize(log_probs + fitted.log_prior(rows(columns))), labels) <= nll(log_probs, labels) + 1e-6


def test_fit_without_metadata_is_strength_zero():
    fitted = fit_priors(PRIORS, np.log(np.full((2, 2), 0.5)), [{}, {}], np.array([0, 1]))
    assert fitted.strength == 0.0


def test_fit_refuses_lengths_that_differ():
    with pytest.raises(InputError, match=r"^2 photographs, 1 metadata, 2 labels; expected as many$"):
        fit_priors(PRIORS, np.log(np.full((2, 2), 0.5)), [{}], np.array([0, 1]))


def test_df20_golden():
    # p = (0.6, 0.4), P(k|forest) = (1/2, 1/2), P = (3/4, 1/4):
    # joint = (0.3, 0.2), over its sum (0.6, 0.4), over P (0.8, 1.6), times p (0.48, 0.64)
    scores = df20_scores(PRIORS, np.array([[0.6, 0.4]]), [{"habitat": "forest"}])
    np.testing.assert_allclose(scores, [[0.48, 0.64]])


def test_df20_is_neutral_where_nothing_is_known():
    probs = np.array([[0.6, 0.4], [0.3, 0.7]])
    np.testing.assert_array_equal(df20_scores(PRIORS, probs, [{}, {"habitat": "desert"}]), probs)


@given(seed=st.integers(0, 300), sources=st.sampled_from([("habitat",), ("habitat", "month")]))
def test_df20_answers_as_a_prior_of_strength_one_over_n_plus_one(seed, sources):
    """Its argmax is that of p · Π (P(k|m) / P(k))^(1 / (n + 1)): p counts n + 1 times, each source once."""
    labels, columns = drawn(seed, 60)
    columns = {source: columns[source] for source in sources}
    probs = np.random.default_rng(seed).dirichlet(np.ones(3), size=10)
    priors = count_priors(labels, columns, 3)
    metadata = rows(columns)[:10]
    with np.errstate(divide="ignore"):
        ratio = np.stack([dense(changed(priors, alpha=0.0), labels, columns, values) for values in metadata])
    ours = np.log(probs) + ratio / (len(sources) + 1)
    np.testing.assert_array_equal(df20_scores(priors, probs, metadata).argmax(axis=1), ours.argmax(axis=1))


def test_save_and_load(tmp_path):
    labels, columns = drawn(3, 50)
    priors = changed(count_priors(labels, columns, 3), 0.3, 0.7)
    priors.save(tmp_path / "priors.parquet")
    loaded = Priors.load(tmp_path / "priors.parquet", 0.3, 0.7)
    np.testing.assert_array_equal(loaded.class_counts, priors.class_counts)
    assert {s: t.values for s, t in loaded.tables.items()} == {s: t.values for s, t in priors.tables.items()}
    np.testing.assert_array_equal(loaded.log_prior(rows(columns)), priors.log_prior(rows(columns)))


def test_save_and_load_without_metadata(tmp_path):
    count_priors(LABELS, {}, 2).save(tmp_path / "priors.parquet")
    loaded = Priors.load(tmp_path / "priors.parquet", 1.0, 1.0)
    assert loaded.tables == {}
    assert loaded.class_counts.tolist() == [3, 1]


@pytest.mark.parametrize("keep", [0, 3, 100])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "priors.parquet"
    PRIORS.save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"priors\.parquet is no readable table of priors: "):
        Priors.load(path, 1.0, 1.0)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"none\.parquet is no readable table of priors: "):
        Priors.load(tmp_path / "none.parquet", 1.0, 1.0)


def test_another_table_is_refused(tmp_path):
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "priors.parquet")
    with pytest.raises(ArtifactError, match=r"priors\.parquet is no readable table of priors: "):
        Priors.load(tmp_path / "priors.parquet", 1.0, 1.0)
