"""How networks are measured, by the kind of their task."""

from labo.experiment.evaluators.base import Judge as Judge
from labo.experiment.evaluators.base import NoNumbersError as NoNumbersError
from labo.experiment.evaluators.base import judge_of as judge_of
