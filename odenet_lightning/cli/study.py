"""`study NAME`: measure, draw, print. Imported only when needed: it loads scipy and animations."""

import sys
import warnings
from pathlib import Path

from lightning.pytorch.utilities.exceptions import SIGTERMException

from odenet_lightning.cli.errors import PROGRAM
from odenet_lightning.cli.parser import Parser
from odenet_lightning.studies import STUDIES, run


def parser_of(args: list[str]) -> Parser:
    """The parser of all studies; `--quick` among the arguments sets the small version's defaults."""
    parser = Parser(prog=f"{PROGRAM} study", description="Answer a question in rows and a figure.")
    commands = parser.add_subcommands(metavar="NAME")
    for name, kind in STUDIES.items():
        command = Parser(description=kind.question())
        command.add_argument("--config", action="config", help="a YAML with settings")
        command.add_argument("--quick", action="store_true", help="a small version, on the sample, in under a minute")
        command.add_argument("--folder", type=str | None, help="folder for its files (lightning_logs/study-NAME)")
        command.add_class_arguments(kind)
        if "--quick" in args:
            command.set_defaults({"source": "sample", **kind.quick})
        commands.add_subcommand(name, command, help=kind.question())
    return parser


def study(args: list[str]) -> None:
    """Run a study."""
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # for runs of several processes
    chosen = parser_of(args).parse_args(args)
    settings = chosen[chosen.subcommand].as_dict()
    settings.pop("config")
    quick, folder = settings.pop("quick"), settings.pop("folder")
    if quick and "--quick" not in args:  # a config says so: parse again, with the small version's defaults
        study([*args, "--quick"])
        return
    folder = folder or f"lightning_logs/study-{chosen.subcommand}{'-quick' if quick else ''}"
    try:
        run(STUDIES[chosen.subcommand](**settings), Path(folder))
    except (KeyboardInterrupt, SystemExit) as end:  # Lightning ends by the latter, with 0 after a SIGTERM
        print(f"interrupted: the rows so far are in {folder}; the same command resumes it", file=sys.stderr)
        raise SystemExit(143 if isinstance(end, SIGTERMException) else 130) from None
