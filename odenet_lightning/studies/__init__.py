"""Studies: the open questions about Neural ODEs on digits, answered in rows and figures."""

from odenet_lightning.studies.cost import Cost
from odenet_lightning.studies.depth import Depth
from odenet_lightning.studies.digits import Digits
from odenet_lightning.studies.dynamics import Dynamics
from odenet_lightning.studies.evaluate import Evaluate
from odenet_lightning.studies.flow import Flow
from odenet_lightning.studies.gradients import Gradients
from odenet_lightning.studies.loop import Loop
from odenet_lightning.studies.paper import Paper
from odenet_lightning.studies.phases import Phases
from odenet_lightning.studies.recipes import Recipes
from odenet_lightning.studies.run import run
from odenet_lightning.studies.solvers import Solvers
from odenet_lightning.studies.steps import Steps
from odenet_lightning.studies.study import Study

STUDIES: dict[str, type[Study]] = {
    "gradients": Gradients,
    "solvers": Solvers,
    "depth": Depth,
    "dynamics": Dynamics,
    "cost": Cost,
    "paper": Paper,
    "flow": Flow,
    "digits": Digits,
    "recipes": Recipes,
    "phases": Phases,
    "steps": Steps,
    "loop": Loop,
    "evaluate": Evaluate,
}

__all__ = ["STUDIES", "Study", "run"]
