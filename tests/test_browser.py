"""TensorBoard's page in a real browser: what a run and a study draw is seen there."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from odenet_lightning.cli import main
from odenet_lightning.figures import new_figure
from odenet_lightning.studies import run
from odenet_lightning.studies.study import Row
from tests.chromium import browser, wait_for
from tests.squares import Squares

pytestmark = pytest.mark.browser


class Magenta(Squares):
    """A study whose figure has a colour that is nowhere else on TensorBoard's page."""

    def draw(self, rows: list[Row]) -> Figure:
        figure = new_figure(4, 4)
        figure.patch.set_facecolor("#ff00ff")
        return figure


@pytest.fixture
def page(workdir: Path, sample_root: Path) -> Iterator[Callable[[str], np.ndarray]]:
    """Screenshots of a tab of TensorBoard, `[H, W, 3]`, with a run's and a study's pictures in its folder."""
    chromium = browser()
    if chromium is None:
        pytest.skip("there is no chromium")
    at = ["--data.source", "sample", "--data.root", str(sample_root), "--trainer.accelerator", "cpu"]
    main(["fit", *at, "--trainer.max_epochs", "1", "--trainer.devices", "1"])
    run(Magenta(root=str(sample_root), source="sample"), workdir / "lightning_logs" / "study-squares")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    host, port = address.split(":")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "lightning_logs", "--host", host, "--port", port]
    with (workdir / "tensorboard.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            wait_for(f"http://{address}/data/plugin/images/tags", "study-squares")
            yield lambda tab: screenshot(chromium, f"http://{address}/#{tab}", workdir)
        finally:
            server.terminate()


def screenshot(chromium: str, url: str, folder: Path) -> np.ndarray:
    """The page, 20 of its own seconds after it was opened."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,1700"]
    flags.append("--virtual-time-budget=20000")
    path = folder / "page.png"
    subprocess.run(
        [chromium, *flags, f"--user-data-dir={folder / 'profile'}", f"--screenshot={path}", url],
        check=True,
        capture_output=True,
        timeout=180,
    )
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_pictures_of_a_run_and_of_a_study_are_shown(page: Callable[[str], np.ndarray]) -> None:
    def shares(tab: str) -> tuple[float, float]:
        """Of the study's figure, and of a confusion matrix's diagonal, in the page."""
        red, green, blue = np.moveaxis(page(tab), 2, 0)
        figure = (red > 240) & (green < 15) & (blue > 240)
        diagonal = (red < 60) & (green < 110) & (blue > 90)
        return float(figure.mean()), float(diagonal.mean())

    figure, diagonal = shares("images")
    assert figure > 0.02
    assert diagonal > 0.002
    figure, diagonal = shares("hparams")  # a tab without pictures
    assert figure == 0
    assert diagonal < 0.0005
