"""What a table's figures show: medians, intervals, exact tests, and in which words.

The unit is what was drawn anew: a seed of the post-training, a pair of base models, a student.  Everything here treats
units as independent; what they share stands in the table's "shared", and no interval covers it.
"""
import math
from collections import Counter, defaultdict

import numpy as np

STUCK_BELOW = 0.05      # a run is stuck that has brought its model less than this over the base student
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)      # 97.5%, 1 to 9 degrees of freedom


def bootstrap_interval(values, resamples: int = 20_000) -> list[float] | None:
    """The 95% interval of the mean over independent units, by the expanded percentile bootstrap; None for one unit.

    Percentiles of a resampled mean never leave the range of the values.  Plain ones are too narrow for few units, so
    they are taken as far out as Student's t is wider than what resampling sees (Hesterberg 2015, section 3.4): with
    three units that is the whole range.  The resamples are the same each time.
    """
    values, degrees = np.asarray(values, float), len(values) - 1
    if degrees < 1:
        return None
    quantile = T_QUANTILES[degrees - 1] if degrees <= len(T_QUANTILES) else 1.96 + 2.4 / degrees + 2.8 / degrees**2
    tail = 0.5 * math.erfc(math.sqrt((degrees + 1) / degrees) * quantile / math.sqrt(2))
    means = np.random.default_rng(0).choice(values, (resamples, len(values))).mean(axis=1)
    return np.quantile(means, [tail, 1 - tail]).tolist()


def sign_flip_p(differences) -> float:
    """Two-sided p of a mean difference over units, if each unit's sign were a coin's (Fisher 1935).

    Exact up to 20 units: all 2^n signs; a hundred thousand drawn ones for more.  n units that agree give 2^(1 − n).
    """
    differences = np.asarray(differences, float)
    sums = np.zeros(1)
    if len(differences) <= 20:
        for difference in differences:
            sums = np.concatenate([sums + difference, sums - difference])
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (99_999, len(differences)))
        sums = np.append(signs @ differences, differences.sum())
    return float(np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-9))


def holm(ps: list[float]) -> list[float]:
    """Each p as it stands among all (Holm 1979): no more than one table in twenty has a false "shown" in it."""
    adjusted, highest = [0.0] * len(ps), 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - place) * ps[index]))
        adjusted[index] = highest
    return adjusted


def share_interval(count: int, number: int) -> list[float]:
    """The exact 95% interval of a share that was seen `count` times among `number` units (Clopper and Pearson 1934)."""
    def at_most(seen: int, share: float) -> float:
        return sum(math.comb(number, k) * share**k * (1 - share) ** (number - k) for k in range(seen + 1))

    def root(is_below) -> float:
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if is_below(middle) else (low, middle)
        return low
    return [root(lambda share: 1 - at_most(count - 1, share) < 0.025) if count else 0.0,
            root(lambda share: at_most(count, share) > 0.025) if count < number else 1.0]


# ---------------------------------------------------------------- a table


def values_of(row: dict) -> dict[tuple, float]:
    """(setting, unit) -> score; what was measured on one unit several times counts once, as the mean."""
    values = defaultdict(list)
    for seed in row["seeds"]:
        values[row["setting"], seed.get("unit", seed["seed"])].append(seed["value"])
    return {unit: float(np.mean(scores)) for unit, scores in values.items()}


def describe(table: dict) -> dict:
    """table.json whole: to its rows come mean, median, interval and spread, to each ordering its test and a sentence.

    table["orderings"] names pairs of rows, the lower first.  Where the units are seeds, each is tested at each setting;
    where they are pairs or students, once over all of them.  Holm's correction is over all tests of the table.
    """
    rows, unit = table["rows"], table.setdefault("unit", "seed")
    start = {row["setting"]: np.mean(list(values_of(row).values())) for row in rows if row["row"] == "base student"}
    for row in rows:
        values = list(values_of(row).values())
        noise = [(high - low) / 3.92 for low, high in (seed["interval"] for seed in row["seeds"])]
        row |= {"mean": float(np.mean(values)), "median": float(np.median(values)),
                "interval": bootstrap_interval(values), "units": len(values),
                "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "evaluation_sd": float(np.sqrt(np.mean(np.square(noise))))}
        base = start.get(row["setting"], start.get(None))
        if row["runs"] and base is not None:
            row["stuck"] = sum(bool(seed["value"] < base + STUCK_BELOW) for seed in row["seeds"])
    wanted = dict.fromkeys((pair["lower"], pair["higher"]) if isinstance(pair, dict) else tuple(pair)
                           for pair in table["orderings"])
    found = [ordering for pair in wanted for ordering in compared(*pair, rows, pooled=unit != "seed")]
    tested = [ordering for ordering in found if ordering["p"] is not None]
    for ordering, p in zip(tested, holm([ordering["p"] for ordering in tested])):
        ordering["p_holm"] = p
    several = len({ordering["setting"] for ordering in found}) > 1
    for ordering in found:
        ordering["verdict"] = verdict(ordering)
        ordering["sentence"] = sentence(ordering, unit, several, len(tested))
    return table | {"orderings": found, "lead": lead(found, rows, unit)}


def compared(lower: str, higher: str, rows: list[dict], pooled: bool) -> list[dict]:
    """The differences of two rows on the same units: at each setting, or over all of them."""
    differences = defaultdict(dict)
    low = {unit: value for row in rows if row["row"] == lower for unit, value in values_of(row).items()}
    for row in (row for row in rows if row["row"] == higher):
        for (setting, unit), value in values_of(row).items():
            other = low.get((setting, unit), low.get((None, unit)))
            if other is not None:
                differences[None if pooled else setting][setting, unit] = value - other
    found = []
    for setting, units in differences.items():
        values = list(units.values())
        found.append({
            "lower": lower, "higher": higher, "setting": setting, "units": len(values),
            "difference": float(np.mean(values)), "median": float(np.median(values)),
            "interval": bootstrap_interval(values),
            "units_for": sum(value > 0 for value in values), "units_against": sum(value < 0 for value in values),
            "p": sign_flip_p(values) if len(values) > 1 else None, "p_holm": None})
    return found


def students(rows: list[dict]) -> list[str]:
    """The rows that training ends with: no base model, and no teacher on the way to a student."""
    runs = {row["row"]: row["runs"] for row in rows}
    return [name for name, own in runs.items() if own and not any(
        len(other) > len(own) and other[:len(own)] == own for other in runs.values())]


def verdict(ordering: dict) -> str:
    if ordering["p"] is None:
        return "not tested"
    if ordering["p_holm"] > 0.05:
        return "not shown"
    return "shown" if ordering["difference"] > 0 else "reversed"


def p_value(p: float) -> str:
    """.002, as statisticians write it."""
    return f"{p:.3f}"[1:] if 0.0005 <= p < 0.9995 else "< .001" if p < 0.5 else "1"


def counted(number: int, unit: str) -> str:
    return f"{number} {unit}{'s' * (number != 1)}"


def signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"


def sentence(ordering: dict, unit: str, with_setting: bool, tests: int) -> str:
    at = f"{ordering['setting']}: " * (with_setting and ordering["setting"] is not None)
    names, difference, number = f"{ordering['lower']} < {ordering['higher']}", ordering["difference"], ordering["units"]
    if ordering["p"] is None:
        return f"{at}{names}: the difference is {signed(difference)} on the only {unit}, and one cannot be tested."
    low, high = ordering["interval"]
    p, tested = p_value(ordering["p"]), f"; {p_value(ordering['p_holm'])} by Holm for the table's {tests} tests"
    return (f"{at}{names}: {ordering['verdict']}.  It is so on {ordering['units_for']} of {counted(number, unit)}, "
            f"p = {p}{tested * (tests > 1)}.  "
            f"The mean difference is {signed(difference)} [{signed(low)}, {signed(high)}], "
            f"the median {signed(ordering['median'])}.").replace("p = <", "p <")


def lead(orderings: list[dict], rows: list[dict], unit: str) -> str:
    """What came out, in two or three sentences."""
    trained = [row for row in rows if row["row"] in students(rows)] or rows
    settings = list(dict.fromkeys(row["setting"] for row in rows if row["setting"] is not None)) or [None]
    best = [max((row for row in trained if row["setting"] in (None, setting)), key=lambda row: row["median"])
            for setting in settings]
    (name, count), several = Counter(row["row"] for row in best).most_common(1)[0], len(settings) > 1
    medians = [row["median"] for row in best if row["row"] == name]
    at = f" at {count} of {len(settings)} settings" * several
    span = " to ".join(dict.fromkeys((f"{min(medians):.3f}", f"{max(medians):.3f}")))
    words = [f"The highest median score{at} is that of {name}, {span}, over {counted(best[0]['units'], unit)}"
             + " each" * several + "."]
    if several and 2 * count <= len(settings):
        words = [f"No row has the highest median score at most of the {len(settings)} settings."]
    for kind, intro in (("shown", "Shown by an exact test"), ("reversed", "Shown the other way round")):
        if those := [in_short(each, unit) for each in orderings if each["verdict"] == kind]:
            words.append(f"{intro}: {'; '.join(those)}.")
    if rest := [each for each in orderings if each["verdict"] == "not shown"]:
        agree = sum(max(each["units_for"], each["units_against"]) == each["units"] for each in rest)
        words.append(f"Not shown: {len(rest)} of {counted(len(orderings), 'comparison')}"
                     + f", although all {unit}s agree in {agree} of these" * bool(agree) + ".")
        fewest = min(each["units"] for each in rest)
        words += [f"With {counted(fewest, unit)} no such test goes below p = {p_value(2.0 ** (1 - fewest))}."] \
            * (fewest < 6)
    return "  ".join(words)


def in_short(ordering: dict, unit: str) -> str:
    at = f", {ordering['setting']}" * bool(ordering["setting"])
    count = max(ordering["units_for"], ordering["units_against"])
    return (f"{ordering['lower']} < {ordering['higher']}{at} (on {count} of {counted(ordering['units'], unit)}, "
            f"p = {p_value(ordering['p'])})").replace("p = <", "p <")
