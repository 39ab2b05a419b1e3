"""How networks are measured, by the kind of their task."""

from labo.experiment.evaluators.base import Evaluator as Evaluator
from labo.experiment.evaluators.base import make_evaluator as make_evaluator
