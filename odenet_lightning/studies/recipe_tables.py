"""Tables of recipes: accuracy, time and hardware of their runs, and how they were chosen."""

from collections.abc import Sequence

from odenet_lightning.studies.columns import Row, Value
from odenet_lightning.studies.markdown import MISSING, markdown, percent, reference, shown, spread
from odenet_lightning.studies.study import grouped, number

SAMPLE = 500  # test digits of the sample; MNIST has 10,000


def duration(seconds: Sequence[float]) -> str:
    """The range of some times, in seconds or minutes."""
    scale, unit = (60, "min") if max(seconds) >= 300 else (1, "s")
    low, high = (f"{value / scale:.3g}" for value in (min(seconds), max(seconds)))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def outcome(runs: list[Row], known: Row, key: str) -> tuple[str, int]:
    """A group's accuracy of one kind and the number of runs behind it, from its runs or from what is known of them."""
    values = [number(row, key) for row in runs if row[key] is not None]
    if values:
        return spread(values), len(values)
    if known.get(key) is None:
        return MISSING, 0
    sd = number(known, f"{key}_sd") if known[f"{key}_sd"] is not None else None
    return percent(number(known, key), sd), int(number(known, "retest_runs" if key == "retest" else "runs"))


def recipe_lines() -> list[list[str]]:
    """A line for each recipe and machine, from single runs where they are known and else from their summary."""

    def key(row: Row) -> tuple[Value, ...]:
        return tuple(row[name] for name in ("recipe", "n", "epochs", "parameters", "hardware", "threads"))

    runs, summaries = reference("recipes"), {key(row): row for row in reference("recipes", "summaries.csv")}
    lines = []
    groups = dict.fromkeys([*map(key, runs), *summaries])
    names = [group[0] for group in groups]
    for group in sorted(groups, key=lambda group: names.index(group[0])):
        mine, known = [row for row in runs if key(row) == group], summaries.get(group, {})
        recipe, images, epochs, parameters, hardware, threads = group
        accuracy, n = outcome(mine, known, "accuracy")
        retest, retested = outcome(mine, known, "retest")
        times = [known.get(name) for name in ("seconds_low", "seconds", "seconds_high")]
        seconds = [float(v) for v in [*(row["seconds"] for row in mine), *times] if isinstance(v, int | float)]
        name = f"`{recipe}`" if str(recipe).endswith(".yaml") else str(recipe)
        name += f", on {images} digits of the sample" if images == SAMPLE else ""
        lines.append(
            [
                *(name, str(epochs), f"{parameters:,}", accuracy, str(n) if n else MISSING),
                retest + (f" (n = {retested})" if retested not in (0, n) else ""),
                duration(seconds) if seconds else MISSING,
                str(hardware) + (f", {threads} thread{'s' if threads != 1 else ''}" if threads else ""),
            ]
        )
    return lines


SOLVED_AGAIN = "solved again with `Dopri5`, rtol = atol = 1e-3"
RECIPE_HEADS = ("recipe", "epochs", "parameters", "test accuracy", "n", SOLVED_AGAIN, "time", "hardware")
FRONT = ("built-in", "`blog.yaml`", "`fast.yaml`", "`record.yaml`", "`paper.yaml`", "`paper_resnet6.yaml`")


def recipes() -> str:
    """All recipes on all machines."""
    return markdown(RECIPE_HEADS, recipe_lines())


def results() -> str:
    """A few recipes, each where it was retested, and in the most runs."""
    lines = recipe_lines()
    chosen = []
    for name in FRONT:
        mine = [line for line in lines if line[0] == name]
        chosen.append(max(mine, key=lambda line: (line[5] != MISSING, line[4].zfill(3))))
    return markdown(RECIPE_HEADS, chosen)


def choice() -> str:
    """The candidates among which the recipe of fast.yaml was chosen."""
    lines = [
        [
            f"`{row['optimizer']}`" + (", chosen" if row["chosen"] else ""),
            *(shown(row["lr"]), str(row["epochs"])),
            *(percent(number(row, "accuracy"), number(row, "accuracy_sd")), str(row["runs"])),
        ]
        for row in reference("recipes", "choice.csv")
    ]
    return markdown(("optimiser", "learning rate", "epochs", "validation accuracy", "n"), lines)


def solver_choice() -> str:
    """The candidates among which the solvers of the built-in recipe were chosen."""
    lines = []
    groups = grouped(reference("recipes", "solvers.csv"), "digits", "coarse_share", "solver", "num_steps")
    for (digits, share, solver, steps), runs in groups.items():
        found = [spread([number(run, name) for run in runs]) for name in ("accuracy", "changed")]
        lines.append([digits, f"{share:.0%}", f"{steps} of `{solver}`", *found, str(len(runs))])
    heads = ("digits", "one midpoint step for", "then", "validation accuracy", "predictions changed", "n")
    return markdown(heads, lines)
