import math

import numpy as np
import pandas as pd
import pytest

from raykb.metrics.standings import cautions, standings, z_scores

TOP1, KNN, LOSS = "test/top1", "test/knn/top1", "test/loss"
TASKS = {"probing": [TOP1, KNN], "fitting": [LOSS]}


def one_setting(*values, name=TOP1):
    return pd.DataFrame({name: values}, [f"label_{place}" for place in range(len(values))])


def results(*rows, settings=(TOP1, KNN, LOSS)):
    """Return rows of label, seed and a value a setting."""
    return pd.DataFrame(rows, columns=["label", "seed", *settings])


def drawn_results(labels="abcd", seeds=5, spread=1.0):
    rng = np.random.default_rng(0)
    rows = [
        (x, s, *rng.normal(place, spread, 3))
        for s in range(seeds)
        for place, x in enumerate(labels)
    ]
    return results(*rows)


def plain_overall(table, tasks):
    """Return overall z by label, of labels that all have one value a setting."""
    found = {label: [] for label in table["label"]}
    for settings in tasks.values():
        means = {label: [] for label in found}
        for name in settings:
            values = dict(zip(table["label"], table[name], strict=True))
            mean = sum(values.values()) / len(values)
            sd = math.sqrt(sum((value - mean) ** 2 for value in values.values()) / len(values))
            for label, value in values.items():
                means[label].append((value - mean) / sd * (-1 if "loss" in name else 1))
        for label, own in means.items():
            found[label].append(sum(own) / len(own))
    return {label: sum(own) / len(own) for label, own in found.items()}


# ---------------------------------------------------------------------- z


def test_z_of_one_two_three():
    z = z_scores(one_setting(1.0, 2.0, 3.0))[TOP1]
    assert z.tolist() == pytest.approx([-1.224745, 0.0, 1.224745], abs=1e-6)
    flipped = z_scores(one_setting(1.0, 2.0, 3.0, name=LOSS))[LOSS]
    assert flipped.tolist() == (-z).tolist()


def test_z_has_mean_0_and_sd_1():
    scores = drawn_results(seeds=1).set_index("label")[[TOP1, KNN, LOSS]]
    z = z_scores(scores).to_numpy()
    np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(z.std(axis=0), 1.0, atol=1e-12)


@pytest.mark.parametrize(("scale", "shift"), [(100.0, 0.0), (0.01, 5.0), (3.0, -1000.0)])
def test_z_does_not_depend_on_the_unit(scale, shift):
    scores = one_setting(0.3, 0.9, 0.4, 0.1)
    np.testing.assert_allclose(z_scores(scale * scores + shift), z_scores(scores), atol=1e-9)


@pytest.mark.parametrize(
    "scores", [one_setting(0.1 + 0.2, 0.3, 0.3), one_setting(0.7), one_setting(0.0, 0.0)]
)
def test_where_nobody_is_better_z_is_0_and_a_caution_says_so(scores):
    assert (z_scores(scores) == 0.0).all(axis=None)
    (told,) = cautions(scores)
    why = "only one label has a value" if len(scores) == 1 else "all labels tie"
    assert told == f"test/top1: {why}, so that z is 0"


def test_what_is_missing_stays_so_and_changes_no_other_z():
    z = z_scores(one_setting(1.0, math.nan, 2.0, 3.0))[TOP1]
    assert math.isnan(z.iloc[1])
    assert z.drop("label_1").tolist() == z_scores(one_setting(1.0, 2.0, 3.0))[TOP1].tolist()
    assert cautions(one_setting(1.0, math.nan, 2.0)) == []
    nothing = one_setting(math.nan, math.nan)
    assert z_scores(nothing)[TOP1].isna().all()
    assert cautions(nothing) == [
        "test/top1: no label has a value, so that none has overall figures"
    ]


# ---------------------------------------------------------------------- overall figures


def test_overall_z_is_the_mean_over_tasks_of_means_over_settings():
    table = drawn_results(seeds=1)
    found = standings(table, tasks=TASKS)
    assert found.overall["z"].to_dict() == pytest.approx(plain_overall(table, TASKS))
    np.testing.assert_allclose(found.tasks["probing"], found.z[[TOP1, KNN]].mean(axis=1))
    assert list(found.tasks) == list(TASKS)
    alone = standings(table, tasks={"all": [TOP1, KNN, LOSS]}).overall["z"]
    assert not np.allclose(alone, found.overall["z"])  # tasks weigh the same, not settings


def test_scores_are_means_over_the_seeds_that_there_are():
    table = results(("a", 0, 1.0, 1.0, 1.0), ("b", 0, 0.0, 0.0, 0.0), ("a", 1, 3.0, math.inf, None))
    assert standings(table, tasks=TASKS).scores.loc["a"].tolist() == [2.0, 1.0, 1.0]


def test_a_task_in_which_all_tie_leaves_the_order():
    table = drawn_results().assign(**{"test/top5": 0.25})
    before = standings(table, tasks=TASKS).overall
    after = standings(table, tasks=TASKS | {"tied": ["test/top5"]})
    assert list(after.overall["z"].rank()) == list(before["z"].rank())
    assert after.overall["won"].tolist() == before["won"].tolist()
    assert len(after.cautions) == 1


def test_ranks_share_the_mean_of_ties_and_go_up_where_lower_is_better():
    table = results(("a", 0, 0.9, 0.5, 0.1), ("b", 0, 0.8, 0.5, 0.3), ("c", 0, 0.7, 0.6, 0.2))
    ranks = standings(table, tasks=TASKS).overall["mean_rank"]
    assert ranks.tolist() == [(1.75 + 1) / 2, (2.25 + 3) / 2, (2 + 2) / 2]


def test_only_labels_with_all_cells_have_overall_figures():
    whole = drawn_results("ab", seeds=2)
    found = standings(
        pd.concat([whole, results(("c", 0, 9.0, None, -9.0), ("c", 1, 9.0, None, -9.0))]),
        tasks=TASKS,
    )
    assert found.overall.loc["c"].isna().all()
    assert found.overall.drop("c").notna().all(axis=None)
    assert math.isnan(found.tasks.loc["c", "probing"])
    assert found.tasks.loc["c", "fitting"] > 0
    assert found.overall["won"].dropna().sum() == 1.0
    assert found.overall["mean_rank"].dropna().sum() == 3.0  # 1 and 2: none is left for c


def test_nothing_is_overall_where_a_setting_has_no_value():
    found = standings(drawn_results().drop(columns=KNN), tasks=TASKS)
    assert found.overall.isna().all(axis=None)
    assert found.cautions == [f"{KNN}: no label has a value, so that none has overall figures"]


# ---------------------------------------------------------------------- seeds


def test_seeds_are_won_by_the_best_on_each_and_shared_by_those_that_tie():
    own = {"a": (3, 1, 2, 1), "b": (2, 3, 2, 0), "c": (1, 2, 1, 5)}
    rows = [(x, seed, value) for x, values in own.items() for seed, value in enumerate(values)]
    found = standings(results(*rows, settings=[TOP1]), tasks={"one": [TOP1]})
    assert found.overall["won"].to_dict() == {"a": 1.5 / 4, "b": 1.5 / 4, "c": 1 / 4}
    assert found.paired == 4


def test_a_seed_that_one_lacks_is_won_by_nobody():
    rows = [
        ("a", 0, 1.0),
        ("b", 0, 2.0),
        ("a", 1, 1.0),
        ("b", 1, None),
        ("a", 2, 3.0),
        ("b", 2, 2.0),
    ]
    found = standings(results(*rows, settings=[TOP1]), tasks={"one": [TOP1]})
    assert (found.paired, found.overall["won"].tolist()) == (2, [0.5, 0.5])
    apart = standings(results(("a", 0, 1.0), ("b", 1, 2.0), settings=[TOP1]), tasks={"one": [TOP1]})
    assert apart.paired == 0
    assert apart.overall[["won", "first"]].isna().all(axis=None)
    assert apart.overall["z"].tolist() == [-1.0, 1.0]


def test_to_be_first_is_as_probable_as_the_draws_of_seeds_say():
    rows = [
        (x, seed, value)
        for x, values in {"a": (2, 0), "b": (1, 0.5)}.items()
        for seed, value in enumerate(values)
    ]
    found = standings(results(*rows, settings=[TOP1]), tasks={"one": [TOP1]}, draws=20000)
    # a has the highest mean of seeds (0, 0) and of (0, 1), b of (1, 1)
    assert found.overall["first"].tolist() == pytest.approx([0.75, 0.25], abs=0.01)


def test_one_seed_says_nothing_of_other_draws():
    found = standings(drawn_results(seeds=1), tasks=TASKS).overall
    assert found["first"].isna().all()
    assert found["won"].sum() == 1.0


def test_draws_are_those_of_the_seed():
    table = drawn_results(spread=4.0)
    once, again = (standings(table, tasks=TASKS, seed=1).overall["first"] for _ in range(2))
    assert once.tolist() == again.tolist()
    assert once.sum() == pytest.approx(1.0)
    other = standings(table, tasks=TASKS, seed=2, draws=50).overall["first"]
    assert once.tolist() != other.tolist()


def test_the_order_of_rows_changes_nothing_but_that_of_labels():
    table = drawn_results()
    found, turned = (standings(each, tasks=TASKS) for each in (table, table[::-1]))
    assert list(turned.overall.index) == list("dcba")
    pd.testing.assert_frame_equal(
        turned.overall.loc[list("abcd")][["z", "mean_rank", "won"]],
        found.overall[["z", "mean_rank", "won"]],
    )


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize("tasks", [{}, {"a": [TOP1], "b": []}, {"a": [TOP1], "b": [KNN, TOP1]}])
def test_tasks_have_settings_each_and_none_twice(tasks):
    with pytest.raises(
        ValueError, match=r"^tasks: \{.*, must have settings each, and none of them"
    ):
        standings(drawn_results(), tasks=tasks)


def test_two_results_of_one_training_are_refused():
    table = drawn_results()
    with pytest.raises(ValueError, match="two are of a/seed-0; must be one of each"):
        standings(pd.concat([table, table[:1]]), tasks=TASKS)
