"""How good footprints are: the same function in a notebook, at the command line and in the gate."""

from geoinfer.evaluation.matching import Pairs, match, pairs_of
from geoinfer.evaluation.metrics import Evaluation, combine, evaluate, outcomes
from geoinfer.evaluation.sides import Matching

__all__ = ["Evaluation", "Matching", "Pairs", "combine", "evaluate", "match", "outcomes", "pairs_of"]
