import math

import numpy as np
import pandas as pd
import pytest

from raykb.metrics.ranking import COLUMNS, rank_stability, significance_ranking


def table(scores, *, task="t", region="r", metric="dice"):
    """Scores by method: sequences over cases, or mappings by case."""
    rows = [
        (method, task, region, metric, f"case_{case}", value)
        for method, values in scores.items()
        for case, value in (values if isinstance(values, dict) else dict(enumerate(values))).items()
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def p_of(ranking, method, rival):
    pairs = ranking.pairs.set_index(["method", "rival"])
    return pairs.loc[(method, rival), "p"]


def random_scores(*, tasks=2, cases=12, gap=0.05):
    rng = np.random.default_rng(0)
    return pd.concat(
        table(
            {m: rng.normal(0.5 + gap * place, 0.1, cases) for place, m in enumerate("abc")},
            task=f"t{task}",
            region=region,
            metric=metric,
        )
        for task in range(tasks)
        for region in ("liver", "cancer")
        for metric in ("dice", "nsd")
    )


def test_all_positive_over_ten_cases():
    better = np.linspace(0.5, 0.9, 10)
    ranking = significance_ranking(table({"a": better, "b": better - np.linspace(0.01, 0.1, 10)}))
    assert p_of(ranking, "a", "b") == pytest.approx(1 / 1024)
    assert p_of(ranking, "b", "a") == pytest.approx(1.0)
    assert ranking.table.to_dict("list") == {
        "method": ["a", "b"],
        "place": [1, 2],
        "mean_rank": [1.0, 2.0],
    }


@pytest.mark.parametrize(("cases", "places"), [(4, [1, 1]), (5, [1, 2])])
def test_up_to_four_cases_are_never_significant(cases, places):
    scores = table({"a": np.full(cases, 0.9), "b": np.full(cases, 0.1)})
    assert significance_ranking(scores).table["place"].tolist() == places
    assert p_of(significance_ranking(scores), "a", "b") == pytest.approx(2.0**-cases)
    stability = rank_stability(scores, seed=0, resamples=50)
    assert stability.table["high"].max() == places[-1]  # nor when they are drawn twice


def test_a_small_table_by_hand():
    """Over five cases all differences have one sign, so p is 1/32 for each pair that differs."""
    first = table({"a": [0.9] * 5, "b": [0.5] * 5, "c": [0.5] * 5}, region="liver")  # 1 2 2
    second = table({"a": [0.6] * 5, "b": [0.8] * 5, "c": [0.7] * 5}, region="cancer")  # 3 1 2
    third = table({"a": [0.6] * 5, "b": [0.8] * 5, "c": [0.8] * 5}, metric="nsd")  # 3 1 1
    ranking = significance_ranking(pd.concat([first, second, third]))
    assert ranking.table.to_dict("list") == {
        "method": ["b", "c", "a"],
        "place": [1, 2, 3],
        "mean_rank": pytest.approx([4 / 3, 5 / 3, 7 / 3]),
    }
    cells = ranking.ranks.groupby(["region", "metric"], sort=False)
    assert {cell: rows["beaten"].tolist() for cell, rows in cells} == {
        ("cancer", "dice"): [0, 2, 1],
        ("liver", "dice"): [2, 0, 0],
        ("r", "nsd"): [0, 1, 1],
    }
    assert {cell: rows["rank"].tolist() for cell, rows in cells} == {
        ("cancer", "dice"): [3, 1, 2],
        ("liver", "dice"): [1, 2, 2],
        ("r", "nsd"): [3, 1, 1],
    }


def test_scores_are_paired_by_case_whatever_the_order_of_rows():
    scores = random_scores()
    shuffled = scores.sample(frac=1.0, random_state=1)
    ranking, same = significance_ranking(scores), significance_ranking(shuffled)
    for ours, theirs in zip(ranking, same, strict=True):
        pd.testing.assert_frame_equal(ours, theirs)
    assert ranking.pairs["p"].nunique() > 10
    stability, again = (rank_stability(s, seed=3, resamples=20) for s in (scores, shuffled))
    pd.testing.assert_frame_equal(stability.table, again.table)
    np.testing.assert_array_equal(stability.tau, again.tau)


def test_position_means_nothing():
    """By position b would be better in each case; by case both are the same."""
    scores = {"a": {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5, 6: 0.6}}
    scores["b"] = dict(reversed(scores["a"].items()))
    ranking = significance_ranking(table(scores))
    assert ranking.pairs["p"].tolist() == pytest.approx([1.0, 1.0])
    assert ranking.pairs["differences"].tolist() == [0, 0]


def test_a_missing_case_counts_as_0():
    whole = {"a": [0.5] * 6, "b": {0: 0.6, 1: 0.6, 2: 0.6}}
    filled = {"a": [0.5] * 6, "b": [0.6] * 3 + [0.0] * 3}
    made, expected = (significance_ranking(table(scores)) for scores in (whole, filled))
    pd.testing.assert_frame_equal(made.pairs, expected.pairs)
    assert made.pairs["differences"].tolist() == [6, 6]


def test_a_method_that_missed_a_task_has_0_in_all_its_cases():
    scores = pd.concat(
        [table({"a": [0.5] * 6, "b": [0.6] * 6}), table({"a": [0.1] * 6}, task="hole")]
    )
    ranks = significance_ranking(scores).ranks.set_index(["task", "method"])["rank"]
    assert ranks.to_dict() == {("hole", "a"): 1, ("hole", "b"): 2, ("t", "a"): 2, ("t", "b"): 1}


def test_a_case_that_one_region_lacks_is_a_case_of_the_task():
    scores = pd.concat(
        [table({"a": [0.5] * 6, "b": [0.6] * 6}), table({"a": [0.5] * 5}, region="other")]
    )
    pairs = significance_ranking(scores).pairs.set_index(["region", "method"])
    assert pairs.loc[("other", "a"), "differences"] == 5  # the sixth is 0 for both
    assert pairs.loc[("r", "a"), "differences"] == 6


def test_equal_and_undefined_scores_are_dropped():
    a = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, math.nan]
    b = [0.4, 0.4, 0.4, 0.4, 0.5, math.nan, 0.0]
    ranking = significance_ranking(table({"a": a, "b": b}))
    assert ranking.pairs["differences"].tolist() == [4, 4]
    assert p_of(ranking, "a", "b") == pytest.approx(1 / 16)


def test_alpha_and_holm_decide_what_is_significant():
    scores = table({"a": [0.9] * 6, "b": [0.5] * 6, "c": [0.4] * 6})  # p = 1/64
    assert significance_ranking(scores).table["place"].tolist() == [1, 2, 3]
    strict = significance_ranking(scores, alpha=0.01)
    assert strict.table["place"].tolist() == [1, 1, 1]
    corrected = significance_ranking(scores, holm=True)  # of six pairs
    assert p_of(corrected, "a", "b") == pytest.approx(6 / 64)
    assert corrected.table["place"].tolist() == [1, 1, 1]
    for options in ({"alpha": 0.01}, {"holm": True}):
        stability = rank_stability(scores, seed=0, resamples=5, **options)
        assert stability.table["place"].tolist() == [1, 1, 1]
        assert math.isnan(stability.mean_tau)


def test_one_method_is_the_first():
    ranking = significance_ranking(table({"a": [0.5, 0.6]}), holm=True)
    assert ranking.table.to_dict("list") == {"method": ["a"], "place": [1], "mean_rank": [1.0]}
    assert ranking.pairs.empty


def test_a_bootstrap_is_what_its_seed_says():
    scores = random_scores()
    made = rank_stability(scores, seed=5, resamples=40)
    again = rank_stability(scores, seed=np.random.default_rng(5), resamples=40)
    other = rank_stability(scores, seed=6, resamples=40)
    assert made.tau.shape == (40,)
    np.testing.assert_array_equal(made.tau, again.tau)
    pd.testing.assert_frame_equal(made.table, again.table)
    assert made.tau.tolist() != other.tau.tolist()


def test_a_resample_is_the_ranking_of_a_table_with_cases_renamed():
    """One draw by hand: each drawn case becomes a case of its own, with all that was measured."""
    scores = random_scores(tasks=1, gap=0.08)
    cases = sorted(scores["case"].unique())
    draw = np.random.default_rng(2).integers(len(cases), size=(1, len(cases)))[0]
    parts = [
        scores[scores["case"] == cases[taken]].assign(case=f"case_{new}")
        for new, taken in enumerate(draw)
    ]
    expected = significance_ranking(pd.concat(parts)).table.set_index("method")["place"]
    made = rank_stability(scores, seed=2, resamples=1).table.set_index("method")
    assert made["low"].to_dict() == made["high"].to_dict() == expected.to_dict()


def test_where_one_method_is_always_better_the_order_is_stable():
    scores = table({"a": np.full(12, 0.9), "b": np.linspace(0.4, 0.6, 12), "c": np.zeros(12)})
    stability = rank_stability(scores, seed=0, resamples=30)
    assert (stability.table["low"] == stability.table["high"]).all()
    assert stability.table["place"].tolist() == [1, 2, 3]
    assert stability.mean_tau == 1.0


def test_confidence_widens_the_interval_of_places():
    scores = random_scores(gap=0.02)
    wide, narrow = (
        rank_stability(scores, seed=0, resamples=200, confidence=c).table for c in (0.99, 0.2)
    )
    assert wide["place"].tolist() == narrow["place"].tolist()
    assert (wide["high"] - wide["low"]).sum() > (narrow["high"] - narrow["low"]).sum()


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (table({"a": [1.0]}).drop(columns=["case"]), {}, "no column case, must have method, task"),
        (table({"a": [1.0]})[:0], {}, "no rows, there is nothing to rank"),
        (
            pd.concat([table({"a": [1.0]})] * 2),
            {},
            "method=a task=t region=r metric=dice case=case_0 is there twice",
        ),
        (table({"a": [math.inf]}), {}, "case=case_0 is infinite"),
        (table({"a": [1.0]}), {"alpha": 1.0}, r"alpha=1\.0: must be between 0 and 1"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores, options, message):
    with pytest.raises(ValueError, match=message):
        significance_ranking(scores, **options)
    with pytest.raises(ValueError, match=message):
        rank_stability(scores, seed=0, resamples=2, **options)


@pytest.mark.parametrize("options", [{"resamples": 0}, {"confidence": 1.0}])
def test_a_bootstrap_of_nothing_is_refused(options):
    with pytest.raises(ValueError, match=r"resamples=\d+, confidence=.*: must be at least 1"):
        rank_stability(table({"a": [1.0]}), seed=0, **options)
