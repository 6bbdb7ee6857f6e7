"""The panels of `study paper`'s figure."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from odenet_lightning.figures import log_axis, series_style
from odenet_lightning.studies.study import Row, number, numbers


def draw_panels(figure: Figure, rows: list[Row], batch_size: int, tolerance: float) -> None:
    """All four, with their titles."""
    (error, seconds), (backward, training) = figure.subplots(2, 2)
    solved = sorted((row for row in rows if row["rtol"] is not None), key=lambda row: -number(row, "rtol"))
    draw_error(error, solved)
    draw_costs(seconds, backward, solved)
    draw_training(training, [row for row in rows if row["rtol"] is None])
    for axes in (error, seconds, backward):
        axes.set_xlabel("evaluations of a forward solve")
    for axes, title in (
        (error, "(a) error of y(1), at each tolerance"),
        (seconds, f"(b) seconds of a solve, batch {batch_size}"),
        (backward, "(c) evaluations of the adjoint's backward solve"),
        (training, f"(d) evaluations per solve, trained at {tolerance:g}"),
    ):
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)


def draw_error(axes: Axes, solved: list[Row]) -> None:
    """Panel (a): the error of y(1) over evaluations, each point with its tolerance."""
    work, errors = numbers(solved, "nfe_forward"), numbers(solved, "relative_error")
    axes.plot(work, errors, **series_style(0))
    for row, place in zip(solved, zip(work, errors, strict=True), strict=True):
        axes.annotate(f"{row['rtol']:g}", place, xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes.margins(0.22, 0.14)  # room for the tolerances
    log_axis(axes, "y")


def draw_costs(seconds: Axes, backward: Axes, solved: list[Row]) -> None:
    """Panels (b) and (c): time, and evaluations of the backward pass, over those of the forward pass."""
    work = numbers(solved, "nfe_forward")
    seconds.plot(work, numbers(solved, "seconds"), label="forward", **series_style(0))
    seconds.plot(work, numbers(solved, "seconds_backward"), label="backward", **series_style(1))
    seconds.set_ylim(0, None)
    seconds.legend()
    backward.plot(work, numbers(solved, "nfe_backward"), label="measured", **series_style(0))
    backward.axline((0, 0), slope=1, color="black", linewidth=0.8, linestyle=":", label="as many as forward")
    backward.set(xlim=(0, None), ylim=(0, None))
    backward.legend()


def draw_training(axes: Axes, steps: list[Row]) -> None:
    """Panel (d): evaluations per solve over optimiser steps."""
    for index, label in enumerate(("forward", "backward")):
        axes.plot(numbers(steps, "step"), numbers(steps, f"nfe_{label}"), label=label, **series_style(index))
    axes.set_xlabel("optimiser step")
    axes.legend()
