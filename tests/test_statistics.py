"""What tables show: by hand, by every sign, by simulation."""
import itertools
import json
import math

import numpy as np
import pytest
from forks import ROOT

from pages import statistics
from pages.statistics import bootstrap_interval, describe, holm, share_interval, sign_flip_p
from pages.table import c1_in_short, markdown


def row(name, values, setting="", runs=None, units=None, seeds=None):
    seeds, units = seeds or range(len(values)), units or range(len(values))
    return {"row": name, "setting": setting, "labels": 8, "runs": [name] if runs is None else list(runs), "metric": "avg@4",
            "seeds": [{"seed": seed, "unit": str(unit), "value": value, "interval": [value - 0.0196, value + 0.0196], "optimiser_steps": 1,
                       "labels_seen": 1, "tokens_sampled": 1, "seconds": 1.0} for seed, unit, value in zip(seeds, units, values)]}


def table(rows, *pairs, unit="seed"):
    return describe({"table": "main", "scale": "toy", "about": "What.", "command": "python reproduce.py main", "commit": "abc", "machine": "a",
                     "date": "today", "unit": unit, "rows": rows, "orderings": [{"lower": low, "higher": high} for low, high in pairs]})


def test_sign_flips_by_hand_and_by_every_sign():
    assert sign_flip_p([0.3] * 10) == 2 / 1024 and sign_flip_p([0.1, 0.2, 0.3]) == 0.25 and sign_flip_p([0.0, 0.0]) == 1
    assert sign_flip_p([3, -1, 2]) == 4 / 8, "|sum| of at least 4: ±(3 + 1 + 2), ±(3 - 1 + 2)"
    differences = np.random.default_rng(0).normal(0.3, 1, 7)
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((1, -1), repeat=7)]
    assert sign_flip_p(differences) == np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9)
    assert sign_flip_p([0.1] * 30) == 1e-5, "drawn signs: the observed ones are always among them"


def test_the_sign_flip_test_keeps_its_level():
    """Differences that are symmetric around 0, two-peaked as scores are: p <= .05 in at most 5% of 2,000 tables."""
    rng = np.random.default_rng(0)
    differences = rng.choice([-1, 1], (2000, 8)) * np.where(rng.random((2000, 8)) < 0.3, 0.9, 0.01)
    assert np.mean([sign_flip_p(each) <= 0.05 for each in differences]) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 2000)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and holm([]) == [] and holm([0.9, 0.8]) == [1, 1]


@pytest.mark.parametrize("count, number, low, high", [(0, 10, 0, 0.3085), (1, 5, 0.0051, 0.7164), (5, 10, 0.1871, 0.8129), (10, 10, 0.6915, 1)])
def test_the_interval_of_a_share_is_that_of_the_textbook(count, number, low, high):
    assert share_interval(count, number) == pytest.approx([low, high], abs=5e-5)


@pytest.mark.parametrize("draw, truth, number, least", [
    (lambda rng, n: rng.beta(8, 2, n), 0.8, 5, 0.87), (lambda rng, n: rng.beta(8, 2, n), 0.8, 10, 0.91),
    (lambda rng, n: np.where(rng.random(n) < 0.5, 0.01, 0.99), 0.5, 5, 0.90), (lambda rng, n: np.where(rng.random(n) < 0.2, 0.01, 0.99), 0.794, 10, 0.86)])
def test_the_interval_over_units_covers_and_stays_within_what_a_score_can_be(draw, truth, number, least):
    """2,000 simulated tables.  Where one unit in five is stuck, a third of tables with five units have none: no interval helps there."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(2000):
        low, high = bootstrap_interval(draw(rng, number), 2000)
        assert 0 <= low <= high <= 1
        covered += low <= truth <= high
    assert covered / 2000 >= least


def test_a_table_of_pairs_by_hand():
    """Ten pairs that agree; one direct run is stuck; the base student stands beside."""
    direct, full = [0.012] + [0.5] * 9, [0.9] * 10
    found = table([row("base student", [0.01] * 10, runs=()), row("direct", direct), row("full", full)], ("direct", "full"), unit="pair")
    first = found["orderings"][0]
    assert (first["units_for"], first["units"], first["p"], first["p_holm"], first["verdict"]) == (10, 10, 2 / 1024, 2 / 1024, "shown")
    assert "It is so on 10 of 10 pairs, p = .002." in first["sentence"] and "direct < full (on 10 of 10 pairs, p = .002)" in found["lead"]
    low = found["rows"][1]
    assert low["stuck"] == 1 and low["median"] == 0.5 and low["mean"] == pytest.approx(0.4512) and low["evaluation_sd"] == pytest.approx(0.01)
    assert 0 <= low["interval"][0] < 0.4512 < low["interval"][1] <= 0.5 and low["sd"] == pytest.approx(np.std(direct, ddof=1))
    assert "| direct | 0.500 | 0.451 [" in markdown(found) and "| 1 of 10 [0%, 45%] |" in markdown(found)


def test_seeds_are_tested_at_each_setting_and_students_over_all_of_them():
    rows = [row(name, [value + shift] * 3, setting, units=[0, 0, 0]) for name, shift in (("low", 0), ("high", 0.1)) for setting, value in (("a", 0.1), ("b", 0.7))]
    by_student = table([dict(each) for each in rows], ("low", "high"), unit="student")["orderings"]
    assert len(by_student) == 1 and by_student[0]["units"] == 2, "three seeds of one student are one unit"
    rows = [row(name, [value + shift] * 6, setting) for name, shift in (("low", 0), ("high", 0.1)) for setting, value in (("a", 0.1), ("b", 0.7))]
    by_seed = table(rows, ("low", "high"))["orderings"]
    assert [(each["setting"], each["units"], each["p"], each["p_holm"]) for each in by_seed] == [("a", 6, 1 / 32, 2 / 32), ("b", 6, 1 / 32, 2 / 32)]
    assert by_seed[0]["verdict"] == "not shown" and "a: low < high" in by_seed[0]["sentence"] and ".062 by Holm for the table's 2 tests" in by_seed[0]["sentence"]


def test_few_seeds_are_told_that_no_test_can_tell():
    lead = table([row("low", [0.1, 0.2, 0.3]), row("high", [0.8, 0.9, 1.0])], ("low", "high"))["lead"]
    assert "Not shown: 1 of 1 comparison, although all seeds agree in 1 of these." in lead and "With 3 seeds no such test goes below p = .250." in lead
    reversed_ = table([row("low", [0.9] * 6), row("high", [0.1] * 6)], ("low", "high"))["orderings"][0]
    assert reversed_["verdict"] == "reversed" and reversed_["units_for"] == 0


def test_describing_again_changes_nothing():
    for path in (ROOT / "results").glob("*-toy/table.json"):
        kept = json.loads(path.read_text())
        assert describe(json.loads(path.read_text())) == kept and (path.parent / "table.md").read_text() == markdown(kept), path
        for each in kept["rows"]:
            assert each["interval"] is None or 0 <= each["interval"][0] <= each["interval"][1] <= 1
    assert statistics.STUCK_BELOW == 0.05


def test_c1_among_worked_completions_stands_beside_the_whole():
    rows = [{"row": "full workflow", "seeds": [{"c1_auc": 0.9, "c1_auc_worked": 0.7}, {"c1_auc": 1.0}]}]
    note, = c1_in_short({"unit": "pair", "rows": rows})
    assert "0.900 over all completions and 0.700 among those that work" in note and "1 of 2 pairs" in note
    assert c1_in_short({"unit": "pair", "rows": []}) == []
