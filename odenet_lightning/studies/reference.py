"""Tables in Markdown of the reference studies' rows, in `lightning_logs/reference-study-*`."""

import statistics
from collections.abc import Callable

from odenet_lightning.studies.columns import Row, Value
from odenet_lightning.studies.cost import TOLERANCES, Cost
from odenet_lightning.studies.depth import Depth
from odenet_lightning.studies.dynamics import POSTS, Dynamics
from odenet_lightning.studies.markdown import MISSING, markdown, reference, shown
from odenet_lightning.studies.recipe_tables import choice, recipes, results, solver_choice
from odenet_lightning.studies.solvers import TITLES
from odenet_lightning.studies.study import grouped, number, numbers

MIB = 2**20

# names in rows -> clearer ones in tables
NAMES = {
    **TITLES,
    "its evaluations, stem and head alone": "the same evaluations, stem and head without a solver",
}


def named(value: Value) -> str:
    """A name as tables show it."""
    return NAMES.get(str(value), str(value))


def pairs(study: str, unit: str = "ms") -> str:
    """Two ways in turn, their times in ms or s."""
    scale = {"ms": 1, "s": 1e-3}[unit]

    def time(row: Row, key: str) -> str:
        return MISSING if row[key] is None else f"{scale * number(row, key):,.1f}"

    lines = [
        [
            *(f"{named(row['a'])} / {named(row['b'])}", str(row["batch"])),
            *([f"{row['rtol']:g}"] if "rtol" in row else []),
            *(time(row, "a_ms"), time(row, "b_ms")),
            *(f"{row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})", str(row["n"])),
            f"{row['hardware']}, {row['threads']} threads",
        ]
        for row in reference(study)
    ]
    tolerance = ["tolerance"] if "rtol" in reference(study)[0] else []
    times = (f"A, {unit}", f"B, {unit}", "A / B in time")
    return markdown(("A / B", "batch", *tolerance, *times, "n", "hardware"), lines)


def gradients() -> str:
    """Cost and error of the gradient methods at three tolerances, and at three depths."""
    wanted = [(0.1, None), (1e-3, None), (1e-6, None), (None, 4), (None, 16), (None, 64)]

    def cells(row: Row) -> list[str]:
        if not row["n"]:
            return [MISSING] * 6
        return [
            *(f"{1e3 * number(row, 'seconds'):.0f}", f"{row['nfe_forward']} / {row['nfe_backward']}"),
            *(f"{number(row, key) / MIB:.1f}" for key in ("held_bytes", "peak_bytes")),
            *(f"{row['images_per_gib']:,}", f"{number(row, 'relative_error'):.2g}"),
        ]

    lines = [
        [f"`{row['gradient']}`", f"`Dopri5` at {rtol:g}" if rtol else f"`Midpoint`, {steps} steps", *cells(row)]
        for rtol, steps in wanted
        for row in reference("gradients")
        if (row["rtol"], row["num_steps"]) == (rtol, steps)
    ]
    heads = ("gradient", "solver", "ms per step", "evaluations forward / backward", "kept, MiB", "peak, MiB")
    return markdown((*heads, "images in 1 GiB", "relative error against the ODE's gradient"), lines)


def solvers() -> str:
    """Accuracy of two networks under ever more accurate solvers."""
    rows = reference("solvers")
    networks = list(grouped(rows, "network"))
    wanted = [("Euler", 1, None), ("Midpoint", 1, None), ("Midpoint", 2, None), ("RK4", 4, None)]
    wanted += [(name, None, rtol) for name in ("Dopri5", "torchdiffeq dopri5") for rtol in (1e-1, 1e-3, 1e-6)]
    lines = []
    for solver, steps, rtol in wanted:
        mine = [row for row in rows if (row["solver"], row["num_steps"], row["rtol"]) == (solver, steps, rtol)]
        cells = [
            f"{number(row, 'accuracy'):.1%} ({number(row, 'evaluations'):.0f}, {number(row, 'relative_error'):.1g})"
            for name in networks
            for row in mine
            if row["network"] == name
        ]
        lines.append(
            [f"{solver}, {steps} step{'s' if steps > 1 else ''}" if steps else f"{solver} at {rtol:g}", *cells]
        )
    return markdown(("tested with", *(f"trained with {named(name)}" for name in networks)), lines)


def depth() -> str:
    """Accuracy of the networks with different trunks."""
    lines = [
        [
            *(str(line["network"]), f"{line['parameters']:,}"),
            *(str(line["accuracy"]), f"{number(line, 'seconds'):.0f}", str(line["n"])),
        ]
        for line in Depth().table(reference("depth"))
    ]
    return markdown(("trunk", "parameters", "test accuracy, 95 % interval", "seconds", "n"), lines)


def dynamics() -> str:
    """Accuracy of the post's network with other dynamics."""
    lines = [
        [
            *(str(line["network"]), f"{line['parameters']:,}", f"{line['evaluations']:g}"),
            *(str(line["accuracy"]), str(line["points"] or MISSING)),
            *(f"{number(line, 'seconds'):.0f}", str(line["n"])),
        ]
        for line in Dynamics().table(reference("dynamics"))
    ]
    heads = ("field", "parameters", "evaluations", "test accuracy, 95 % interval", f"points against {POSTS}")
    return markdown((*heads, "seconds", "n"), lines)


def cost() -> str:
    """What each regularizer saves and loses against none."""
    lines = [
        [
            *(str(line["regularizer"]), shown(line["strength"])),
            *(f"{line[f'evaluations_{tolerance:g}']:.1f}" for tolerance in TOLERANCES),
            *(str(line["saved"] or MISSING), str(line["points"] or MISSING), str(line["accuracy"]), str(line["n"])),
        ]
        for line in Cost().table(reference("cost"))
    ]
    heads = ("trained with", "strength", *(f"evaluations at {tolerance:g}" for tolerance in TOLERANCES))
    return markdown((*heads, "saved, %", "points", "test accuracy", "n"), lines)


def paper() -> str:
    """Evaluations and error at each tolerance after training with the adjoint, and the evaluations before."""
    rows = [row for row in reference("paper") if row["rtol"] is not None]
    lines = [
        [
            *(f"{row['rtol']:g}", f"{row['nfe_forward']:.0f}", f"{row['nfe_backward']:.0f}"),
            f"{number(row, 'relative_error'):.1g}",
        ]
        for row in rows
    ]
    return markdown(("tolerance", "evaluations forward", "evaluations backward", "relative error of y(1)"), lines)


def flow() -> str:
    """The head's accuracy on y(t), and the direction of dy/dt."""
    lines = [
        [f"{row['t']:g}", *(f"{number(row, 'accuracy'):.1%}", f"{row['direction']:.2f}", f"{row['separation']:.2f}")]
        for row in reference("flow")
        if row["t"] in (0, 0.25, 0.5, 0.75, 1)
    ]
    return markdown(("t", "head accuracy on y(t)", "cos(dy/dt(t), dy/dt(0))", "separation of classes"), lines)


def digits() -> str:
    """Evaluations of correctly and wrongly classified digits, and of the classes with the most and the fewest."""
    rows = reference("digits")
    groups = {
        "classified correctly": [row for row in rows if row["correct"]],
        "misclassified": [row for row in rows if not row["correct"]],
    }
    classes = grouped(rows, "label")
    work = {label: statistics.mean(numbers(mine, "evaluations")) for label, mine in classes.items()}
    for most, choose in (("most", max), ("fewest", min)):
        label = choose(work, key=lambda label: work[label])
        groups[f"class {label}, which needs the {most}"] = classes[label]
    lines = [
        [
            *(name, f"{statistics.mean(numbers(mine, 'evaluations')):.1f}"),
            *(f"{statistics.mean(numbers(mine, 'confidence')):.1%}", str(len(mine))),
        ]
        for name, mine in groups.items()
    ]
    return markdown(("digits", "evaluations, mean", "confidence, mean", "n"), lines)


TABLES: dict[str, Callable[[], str]] = {
    **{"results": results, "recipes": recipes, "choice": choice, "solver_choice": solver_choice},
    **{"steps": lambda: pairs("steps"), "loop": lambda: pairs("loop"), "evaluate": lambda: pairs("evaluate", "s")},
    **{"gradients": gradients, "solvers": solvers, "depth": depth, "cost": cost, "paper": paper, "flow": flow},
    **{"digits": digits, "dynamics": dynamics},
}
