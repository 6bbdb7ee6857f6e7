"""torch.compile of the parts of a network that gain by it, in place, where there is a compiler."""

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from odenet_lightning.models import Classifier


def compile_network(net: Classifier, device: torch.device) -> None:
    """Compile the ODE blocks' fields, or, in a network without any, the network; warn where there is no compiler."""
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:
        rank_zero_warn(f"no compiler available ({str(error).splitlines()[0][:120]}): the run continues without one")
        return
    for block in net.ode_blocks:
        block.compile_field()
    if not net.ode_blocks:
        net.compile()
