"""The paper's tables as data, and ours beside them."""

from l2r2.experiments.paper.cells import TITLES as TITLES
from l2r2.experiments.paper.cells import Need as Need
from l2r2.experiments.paper.cells import paper_table as paper_table
from l2r2.experiments.paper.cells import table_needs as table_needs
from l2r2.experiments.paper.figures import FIGURES as FIGURES
from l2r2.experiments.paper.figures import draw_figure as draw_figure
from l2r2.experiments.paper.figures import figure_needs as figure_needs
from l2r2.experiments.paper.gathering import Filled as Filled
from l2r2.experiments.paper.gathering import gather as gather
from l2r2.experiments.paper.gathering import tracked as tracked
from l2r2.experiments.paper.printing import as_values as as_values
from l2r2.experiments.paper.printing import markdown as markdown
from l2r2.experiments.paper.running import Outcome as Outcome
from l2r2.experiments.paper.running import run_needs as run_needs

__all__ = [
    "FIGURES",
    "TITLES",
    "Filled",
    "Need",
    "Outcome",
    "as_values",
    "draw_figure",
    "figure_needs",
    "gather",
    "markdown",
    "paper_table",
    "run_needs",
    "table_needs",
    "tracked",
]
