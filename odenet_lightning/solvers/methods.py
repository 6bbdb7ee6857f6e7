"""The methods: one tableau and a docstring each.

Sources: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", 2nd ed. 1993; Dormand and Prince
1980; Bogacki and Shampine 1989; Tsitouras 2011.
"""

from odenet_lightning.solvers.adaptive import AdaptiveRungeKutta
from odenet_lightning.solvers.runge_kutta import FixedStep, Tableau


class Euler(FixedStep):
    """Euler's method, order 1, one evaluation per step: y + h f(t, y).

    One step of it is a residual block. Not for accuracy: its error falls only with h.
    """

    tableau = Tableau(order=1, a=(), b=(1.0,), c=(0.0,))


class Midpoint(FixedStep):
    """The explicit midpoint method, order 2, two evaluations per step: y + h f(t + h/2, y + h/2 f(t, y)).

    The cheapest method here that still is an ODE solve rather than a residual block; a good
    training solver at one to four steps. Not for stiff fields (no explicit method is).
    """

    tableau = Tableau(order=2, a=((0.5,),), b=(0.0, 1.0), c=(0.0, 0.5))


class Heun(FixedStep):
    """Heun's method (explicit trapezoid), order 2, two evaluations per step.

    It is not better than `Midpoint` in general: same cost and order, another error constant.
    """

    tableau = Tableau(order=2, a=((1.0,),), b=(0.5, 0.5), c=(0.0, 1.0))


class RK4(FixedStep):
    """Kutta's classical method (1901), order 4, four evaluations per step.

    torchdiffeq's "rk4" is Kutta's other method (the 3/8 rule): same order, slightly other numbers.
    """

    tableau = Tableau(
        order=4, a=((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6), c=(0.0, 0.5, 0.5, 1.0)
    )


class Bosh3(AdaptiveRungeKutta):
    """Bogacki and Shampine's 3(2) pair (1989), three evaluations per attempted step.

    Good at loose tolerances, 1e-2 and above; below 1e-4 `Dopri5` needs fewer evaluations. Its steps
    are torchdiffeq's "bosh3"; its dense output is the cubic Hermite interpolant instead, since
    torchdiffeq 0.2.5 takes y + h/2 k_2 for the middle of a step, which is wrong by O(h^2).
    """

    tableau = Tableau(
        order=3,
        a=((1 / 2,), (0.0, 3 / 4)),
        b=(2 / 9, 1 / 3, 4 / 9),
        c=(0.0, 1 / 2, 3 / 4),
        error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    )


class Dopri5(AdaptiveRungeKutta):
    """Dormand and Prince's 5(4) pair (1980), six evaluations per attempted step; the post's method.

    The all-round choice. Not for stiff fields, nor for float32 below tolerances of about 1e-6,
    where rounding is all that is left of the error estimate.
    """

    tableau = Tableau(
        order=5,
        a=(
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
        error=(
            35 / 384 - 1951 / 21600,
            0.0,
            500 / 1113 - 22642 / 50085,
            125 / 192 - 451 / 720,
            -2187 / 6784 + 12231 / 42400,
            11 / 84 - 649 / 6300,
            -1 / 60,
        ),
        mid=(
            6025192743 / 30085553152 / 2,
            0.0,
            51252292925 / 65400821598 / 2,
            -2691868925 / 45128329728 / 2,
            187940372067 / 1594534317056 / 2,
            -1776094331 / 19743644256 / 2,
            11237099 / 235043384 / 2,
        ),
    )


class Tsit5(AdaptiveRungeKutta):
    """Tsitouras' 5(4) pair (2011), six evaluations per attempted step.

    A newer `Dopri5` with smaller error constants; the same cautions hold.
    """

    tableau = Tableau(
        order=5,
        a=(
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        ),
        b=(
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
        ),
        c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0),
        error=(
            0.00178001105222577714,
            0.0008164344596567469,
            -0.007880878010261995,
            0.1447110071732629,
            -0.5823571654525552,
            0.45808210592918697,
            -1 / 66,
        ),
        mid=(
            0.10741235230096871,
            0.01135625,
            0.39560903056045305,
            -0.34475214352593553,
            1.3161853649581645,
            -1.0170608542936508,
            1 / 32,
        ),
    )
