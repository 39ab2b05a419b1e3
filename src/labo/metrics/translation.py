"""Translation metrics: BLEU and chrF by sacreBLEU, with their signatures, and scores of token predictions."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from labo import checks
from labo.errors import UserError, unknown
from labo.metrics.calibration import BINS, binned, entries, gap

METRICS = ("bleu", "chrf")
DEFAULT_TOKENIZER = "13a"
# The number of logits that are converted to float64 at a time.
CHUNK_ELEMENTS = 2**22


def bleu(
    hypotheses: Sequence[str], references: Sequence[str], *, tokenizer: str = DEFAULT_TOKENIZER
) -> tuple[float, str]:
    """Corpus BLEU of plain text, from 0 to 100, and its sacreBLEU signature.

    Args:
        hypotheses: N detokenized translations.
        references: N reference translations.
        tokenizer: sacreBLEU's. The default splits words at spaces and punctuation: of a language without spaces, such
            as Japanese, it measures next to nothing, and "char" or "zh" does.

    Raises:
        UserError: the numbers of lines differ or are 0; sacreBLEU is not installed.

    Source: Papineni et al., ACL 2002; Post, *A Call for Clarity in Reporting BLEU Scores*, WMT 2018.

    Example:
        >>> score, signature = bleu(["a small dog runs on the grass ."], ["a small dog runs over the grass ."])
        >>> round(score, 1), signature.split("|version")[0]
        (50.0, 'nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp')
    """
    return _scored("bleu", hypotheses, references, tokenizer)


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """Corpus chrF, from 0 to 100, and its signature; arguments as in `bleu`.

    Source: Popović, *chrF: character n-gram F-score for automatic MT evaluation*, WMT 2015.

    Example:
        >>> chrf(["a dog"], ["a dog"])[0]
        100.0
    """
    return _scored("chrf", hypotheses, references)


def signatures(tokenizer: str = DEFAULT_TOKENIZER) -> dict[str, str]:
    """The sacreBLEU signatures of `bleu` with this tokenizer and of `chrf`, by name; they do not depend on the text.

    Raises:
        UserError: sacreBLEU is not installed.

    Example:
        >>> signatures()["bleu"].split("|version")[0]
        'nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp'
    """
    return {name: _scored(name, ["a"], ["a"], tokenizer)[1] for name in METRICS}  # available only after scoring


def paired_bootstrap(
    baseline: Sequence[str],
    system: Sequence[str],
    references: Sequence[str],
    *,
    metric: str = "bleu",
    tokenizer: str = DEFAULT_TOKENIZER,
    n: int = 1000,
    seed: int = 12345,
) -> dict[str, Any]:
    """Paired bootstrap over N test sentences of the difference between a system and a baseline.

    It does not cover the variance over training seeds.

    Args:
        baseline, system: N translations each.
        references: N reference translations.
        metric: "bleu" or "chrf".
        tokenizer: of BLEU, as in `bleu`.
        n: number of bootstrap samples.
        seed: seed of the samples, above 0.

    Returns:
        "baseline" and "system" (scores), "difference" (system - baseline) and "p" (two-sided; 1 for identical
        translations); the half widths of the 95% intervals "baseline_interval" and "system_interval" around the means
        "baseline_mean" and "system_mean" of the samples; "signature".

    Raises:
        UserError: as in `bleu`; an option is out of range.

    Source: Koehn, *Statistical Significance Tests for Machine Translation Evaluation*, EMNLP 2004, as implemented by
        sacreBLEU.

    Example:
        >>> same = ["a dog runs in the park", "a cat sits on a wall"]
        >>> paired_bootstrap(same, same, same, n=50)["difference"]
        0.0
    """
    for name, value in (("n", n), ("seed", seed)):
        checks.integer(name, value)  # sacreBLEU treats a seed of 0 as none
    for lines in (baseline, system):
        _check_lengths(lines, references)
    scorer = _metric(metric, tokenizer)
    from sacrebleu.significance import PairedTest

    with _seeded(seed):
        named: list[tuple[str, Sequence[str]]] = [("baseline", list(baseline)), ("system", list(system))]
        signatures, scores = PairedTest(named, {metric: scorer}, [list(references)], test_type="bs", n_samples=n)()
    identical = list(baseline) == list(system)  # for which sacreBLEU returns the smallest p
    ((name, signature),) = signatures.items()
    first, second = (result for result in scores[name] if not isinstance(result, str))
    return {
        "baseline": first.score,
        "system": second.score,
        "difference": second.score - first.score,
        "p": 1.0 if identical else second.p_value,
        "baseline_mean": _number(first.mean),
        "baseline_interval": _number(first.ci),
        "system_mean": _number(second.mean),
        "system_interval": _number(second.ci),
        "signature": str(signature),
    }


class TokenScores:
    """Scores of token predictions, accumulated over batches of logits without storing them.

    Example:
        >>> scores = TokenScores()
        >>> scores.add(torch.tensor([[[0.0, 0.0], [9.0, 0.0]]]), torch.tensor([[1, -100]]))
        >>> result = scores.result()
        >>> result["tokens"], round(result["perplexity"], 3)
        (1, 2.0)
    """

    def __init__(self, *, ignore_index: int = -100, bins: int = BINS) -> None:
        self.ignore_index = ignore_index
        self.nll = 0.0
        self.sums = torch.zeros(3, bins, dtype=torch.float64)

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            logits: (…, V).
            labels: (…), class indices; those equal to `ignore_index` are ignored.

        Raises:
            ValueError: the shapes do not fit.
        """
        if labels.shape != logits.shape[:-1]:
            raise ValueError(
                f"Expected argument `labels` of shape {tuple(logits.shape[:-1])}, but got {tuple(labels.shape)}."
            )
        kept = labels.reshape(-1) != self.ignore_index
        rows, target = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
        for at in torch.nonzero(kept).squeeze(-1).split(max(1, CHUNK_ELEMENTS // max(1, rows.shape[1]))):
            if not len(at):
                continue
            part, labels_at = rows[at].double(), target[at]
            total = part.logsumexp(-1)
            highest, predicted = part.max(-1)
            self.nll += (total - part.gather(-1, labels_at.unsqueeze(-1)).squeeze(-1)).sum().item()
            self.sums += binned((highest - total).exp(), predicted == labels_at, self.sums.shape[1])

    @property
    def tokens(self) -> int:
        """The number of tokens added."""
        return int(self.sums[0].sum())

    def result(self) -> dict[str, Any]:
        """The scores of all tokens added.

        Returns:
            "tokens"; "nll" in nats and "perplexity"; "accuracy" and "ece" (15 bins) as fractions; "reliability" as in
            `labo.metrics.calibration.reliability`.

        Raises:
            ValueError: no token was added.
        """
        if not self.tokens:
            raise ValueError("Expected at least one token to score, but got none.")
        bins = entries(self.sums)
        nll = self.nll / self.tokens
        return {
            "tokens": self.tokens,
            "nll": nll,
            "perplexity": math.exp(nll) if nll < 700 else math.inf,
            "accuracy": self.sums[2].sum().item() / self.tokens,
            "ece": gap(bins),
            "reliability": bins,
        }


def _scored(
    metric: str, hypotheses: Sequence[str], references: Sequence[str], tokenizer: str = DEFAULT_TOKENIZER
) -> tuple[float, str]:
    _check_lengths(hypotheses, references)
    scorer = _metric(metric, tokenizer)
    score = scorer.corpus_score(list(hypotheses), [list(references)]).score
    return float(score), str(scorer.get_signature())


def _metric(name: str, tokenizer: str) -> Any:
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise UserError("Scoring translations needs sacreBLEU: install the extra `text`.") from error
    # force=True: no warning for text that looks tokenized.
    return BLEU(tokenize=tokenizer, force=True) if name == "bleu" else CHRF()


def _check_lengths(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references) or not len(references):
        raise UserError(
            f"Expected as many translations as references and at least one, but got {len(hypotheses)} and "
            f"{len(references)}."
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Set the environment variable from which sacreBLEU reads its seed; it has no argument for it."""
    before = os.environ.get("SACREBLEU_SEED")
    os.environ["SACREBLEU_SEED"] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SACREBLEU_SEED"]
        else:
            os.environ["SACREBLEU_SEED"] = before


def _number(value: Any) -> float:
    return float(value)
