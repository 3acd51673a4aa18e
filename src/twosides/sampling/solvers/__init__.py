"""How one leg of a run uses the network's estimates.

`solver` says what a solver is and walks a route, `euler` has the methods of Euler, `multistep` uses
past calls, `runge_kutta` calls inside the leg, `invertible` has the rules that run backwards
exactly, `tabled` takes the coefficients of any rule as rows, and `automatic` chooses by the number
of steps. A new solver is a class in one of them and a row of the table here.
"""

from twosides.sampling.solvers.automatic import Automatic
from twosides.sampling.solvers.euler import Euler, EulerMaruyama
from twosides.sampling.solvers.invertible import BDIA, Leapfrog
from twosides.sampling.solvers.multistep import Adams, Integral
from twosides.sampling.solvers.runge_kutta import TABLEAUS, RungeKutta, Tableau
from twosides.sampling.solvers.solver import DDIM, Asks, Solver, hold, walk
from twosides.sampling.solvers.tabled import Tabled

__all__ = [
    "BDIA", "DDIM", "SOLVERS", "TABLEAUS", "Adams", "Asks", "Automatic", "Euler", "EulerMaruyama",
    "Integral", "Leapfrog", "RungeKutta", "Solver", "Tableau", "Tabled", "hold", "walk",
]  # fmt: skip

SOLVERS: dict[str, type[Solver]] = {
    "ddim": DDIM,
    "euler": Euler,
    "adams": Adams,
    "runge-kutta": RungeKutta,
    "leapfrog": Leapfrog,
    "bdia": BDIA,
    "euler-maruyama": EulerMaruyama,
    "tabled": Tabled,
    "automatic": Automatic,
}
