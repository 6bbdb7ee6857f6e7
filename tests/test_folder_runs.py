"""One's own classes on the command line, from training to predictions."""

import csv
import string
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from odenet_lightning import ClassifierModule
from odenet_lightning.cli import main
from tests.pets import save

QUICK = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--pictures.every_n_epochs"]


def fails(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command fails."""
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code in (1, 2)
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of each of 26 letters, 40 x 32, light on dark in colours and places of their own."""
    root, generator = tmp_path_factory.mktemp("made") / "letters", torch.Generator().manual_seed(0)
    for letter in string.ascii_uppercase:
        (root / letter).mkdir(parents=True)
        for index in range(24):
            draws = torch.rand(9, generator=generator)
            paper, ink = ((scale + draws[at : at + 3] * 80).int().tolist() for scale, at in ((0, 0), (170, 3)))
            across, down, size = ((draws[6:] - 0.5) * 4 + torch.tensor([16.0, 20.0, 24.0])).tolist()
            picture = Image.new("RGB", (32, 40), tuple(paper))
            font = ImageFont.load_default(size)
            ImageDraw.Draw(picture).text((across, down), letter, tuple(ink), font, anchor="mm")
            picture.save(root / letter / f"{index}.png")
    return root


def test_twenty_six_classes_in_colour_from_the_command_line(
    letters: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", "FolderDataModule", "--data.root", str(letters), "--data.image_size", "[40, 32]"]
    few = ["--data.batch_size", "32", "--data.augment", "false", "--trainer.max_epochs", "6"]
    main(["fit", *data, *few, *QUICK, "6"])
    output = capsys.readouterr().out
    assert "letters (520 to train, 52 to validate)" in output
    best = ["--ckpt_path", "lightning_logs/version_0/checkpoints/best.ckpt"]
    assert f"predict          python -m odenet_lightning predict {best[0]} {best[1]}" in output

    main(["test", *best])  # the data come with the checkpoint
    accuracy = float(capsys.readouterr().out.split("test images of letters: ")[1].split("%")[0])
    assert accuracy > 50, "chance is 4 %"

    Path("bad.png").write_text("no picture")
    pictures = [str(letters / letter / "3.png") for letter in "QX"]
    main(["predict", *best, "--data.images", str([*pictures, str(letters / "M"), "bad.png", "none.png"])])
    told = capsys.readouterr()
    assert "26 pictures classified, 2 skipped" in told.out
    assert "skipped 'bad.png': not a picture\nskipped 'none.png': no such file" in told.err
    with Path("lightning_logs/version_1/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows[:2]] == pictures
    assert sum(row["prediction"] == "M" for row in rows[2:]) > 12
    for row in rows:
        shares = {name[2:-1]: float(share) for name, share in row.items() if name.startswith("p(")}
        assert list(shares) == list(string.ascii_uppercase)
        assert sum(shares.values()) == pytest.approx(1, abs=2e-3)
        ranked = sorted(shares, key=lambda name: -shares[name])
        assert float(row["confidence"]) == shares[row["prediction"]] == shares[ranked[0]]
        assert float(row["runner_up_confidence"]) == shares[row["runner_up"]] == shares[ranked[1]]

    module = ClassifierModule.load_from_checkpoint(best[1])
    assert module.class_names == list(string.ascii_uppercase)
    assert module(torch.zeros(2, 3, 40, 32)).shape == (2, 26)


@pytest.fixture
def trained(pets: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The checkpoint of a network for cats and dogs, one step old."""
    few = ["--data.image_size", "[8, 6]", "--data.batch_size", "8", "--trainer.max_epochs", "1"]
    net = ["--model.net", "ResNet", "--model.net.channels", "2", "--model.net.blocks", "0"]
    main(["fit", "--data", "FolderDataModule", "--data.root", str(pets), *few, *net, *QUICK, "1"])
    capsys.readouterr()
    return ["--ckpt_path", "lightning_logs/version_0/checkpoints/last.ckpt"]


def test_a_checkpoint_knows_its_data(
    trained: list[str], pets: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for args, told in (
        (["--data.image_size", "9"], "images of 3 x 8 x 6 in 2 classes, and the data have 3 x 9 x 9 in 2 classes"),
        (["--data", "MNISTDataModule", "--data.source", "sample"], "the data have 1 x 28 x 28 in 10 classes"),
    ):
        assert told in fails(["test", *trained, *args], capsys)
    (pets / "cat").rename(pets / "cow")
    told = "trained on 2 classes, the data have 2; missing there: cat; unknown to the network: cow"
    assert told in fails(["test", *trained], capsys)
    pets.rename(tmp_path / "moved")
    assert "cannot read the folder" in fails(["test", *trained], capsys)
    main(["predict", *trained, "--data.images", str(tmp_path / "moved/dog/3.png")])
    assert "3.png  " in capsys.readouterr().out, "the folders of the classes are not needed"


def test_only_fifty_predictions_are_printed(
    trained: list[str], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(53):
        save(workdir / "many" / f"{index:02}.png")
    main(["predict", *trained, "--data.images", "many"])
    lines = capsys.readouterr().out.splitlines()
    assert sum(".png  " in line for line in lines) == 50
    assert "... and 3 more in the table" in lines


def test_names_of_any_kind_are_kept(pets: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those that would be class paths, files or YAML elsewhere, and of formulas in figures."""
    names = ["os.system", "a\nb", "$x_{$", "null", "{a: 1}", "schön"]
    for name in names:
        for index in range(4):
            save(pets / name / f"{index}.png")
    args = ["--data", "FolderDataModule", "--data.root", str(pets), "--data.image_size", "8", "--data.batch_size", "8"]
    main(["fit", *args, "--trainer.max_epochs", "1", "--model.net", "ResNet", "--model.net.blocks", "0", *QUICK, "1"])
    out = capsys.readouterr().out
    assert "a\\nb 2" in out
    assert "\npictures         pets (" in out
    best = ["--ckpt_path", "lightning_logs/version_0/checkpoints/last.ckpt"]
    module = ClassifierModule.load_from_checkpoint(best[1])
    assert module.class_names == sorted(["cat", "dog", *names])
    main(["test", *best])
    main(["predict", *best, "--data.images", str(pets / "cat")])
    assert "10 pictures classified" in capsys.readouterr().out
