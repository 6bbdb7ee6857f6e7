"""python -m odenet_lightning.studies.tables: write the READMEs' tables and figures anew from the committed rows.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, and is made by the function of that name in
`reference.py` from `lightning_logs/reference-*`. Nothing else in the READMEs is touched. Figures are drawn that need
the rows alone, no network and no digits.
"""

import json
import re
from dataclasses import fields
from pathlib import Path

from matplotlib.figure import Figure

from odenet_lightning.studies import STUDIES
from odenet_lightning.studies.markdown import reference
from odenet_lightning.studies.reference import TABLES

ROOT = Path(__file__).parents[2]  # of a checkout
DRAWN = ("gradients", "solvers", "depth", "dynamics", "cost", "paper")
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def readmes() -> list[Path]:
    """The project's READMEs."""
    return [ROOT / "README.md", *sorted(ROOT.glob("[a-z]*/**/README.md"))]


def with_tables(text: str) -> str:
    """A README's text with every table made from the rows."""

    def table(block: re.Match[str]) -> str:
        begin, name, end = block.groups()
        if name not in TABLES:
            raise ValueError(f"there is no table {name!r}: {', '.join(sorted(TABLES))}")
        return f"{begin}{TABLES[name]()}\n{end}"

    return BLOCK.sub(table, text)


def drawn(name: str) -> Figure:
    """A study's figure of its reference rows, with the settings that they were measured with."""
    rows = reference(name)
    kind = STUDIES[name]
    known = {field.name for field in fields(kind)}
    settings = {key: value for key, value in json.loads(str(rows[-1]["config"])).items() if key in known}
    return kind(**settings).draw(rows)


def main() -> None:
    """Rewrite the files whose tables have changed, and all figures, and name them."""
    for path in readmes():
        text = path.read_text()
        if (new := with_tables(text)) != text:
            path.write_text(new)
            print(f"written: {path.relative_to(ROOT)}")
    for name in DRAWN:
        path = ROOT / ".github" / "figures" / f"{name}.png"
        drawn(name).savefig(path)
        print(f"drawn: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
