"""How networks are measured, by the kind of their task."""

from labo.experiment.judges.base import Judge as Judge
from labo.experiment.judges.base import NoNumbersError as NoNumbersError
from labo.experiment.judges.base import judge_of as judge_of
