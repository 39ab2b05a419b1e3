"""BLEU by hand, sacreBLEU's own test, and token scores that are those of all logits at once."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch

from labo.errors import UserError
from labo.metrics import translation
from labo.metrics.calibration import reliability
from labo.metrics.scores import classification_scores
from labo.metrics.translation import TokenScores, bleu, chrf, paired_bootstrap, signatures
from labo.tasks.translation import numbers, side_names

WORDS = ("a", "the", "dog", "cat", "man", "woman", "runs", "sits", "eats", "on", "in", "near", "park", "house")


def lines(count: int, seed: int, right: float = 1.0) -> list[str]:
    """Sentences of which a share of words is right, where 1 is a reference."""
    draw = torch.Generator().manual_seed(0)
    wrong = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        places = torch.randint(len(WORDS), (12,), generator=draw)
        others = torch.randint(len(WORDS), (12,), generator=wrong)
        kept = torch.rand(12, generator=wrong) < right
        found.append(" ".join(WORDS[place] for place in torch.where(kept, places, others).tolist()))
    return found


def test_bleu_by_hand():
    # 7 of 8 words, 5 of 7 pairs, 3 of 6 triples, 1 of 5 fours; of the same length as the reference.
    score, signature = bleu(["the small dog runs on the grass ."], ["the small dog runs over the grass ."])
    assert score == pytest.approx(100 * (7 / 8 * 5 / 7 * 3 / 6 * 1 / 5) ** 0.25)
    assert signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def test_a_short_translation_is_punished():
    reference = "the small dog runs over the green grass ."
    score, _ = bleu(["the small dog runs over the"], [reference])
    assert score == pytest.approx(100 * math.exp(1 - 9 / 6))


def test_bleu_is_of_the_corpus():
    hypotheses, references = lines(20, 1, 0.7), lines(20, 0)
    mean = sum(bleu([ours], [theirs])[0] for ours, theirs in zip(hypotheses, references, strict=True)) / 20
    assert abs(bleu(hypotheses, references)[0] - mean) > 0.1
    assert bleu(references, references)[0] == pytest.approx(100)
    assert bleu([""] * 20, references)[0] == 0


def test_chrf():
    assert chrf(lines(20, 0), lines(20, 0))[0] == pytest.approx(100)
    score, signature = chrf(["abcd"], ["abce"])
    # Of each order n up to 4, 4 - n of 5 - n are right (3, 2, 1, 0); orders above 4 are not there and do not count.
    assert score == pytest.approx(100 * (3 / 4 + 2 / 3 + 1 / 2 + 0) / 4)
    assert signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")


def test_text_in_tokens_is_scored_in_silence(capfd):
    bleu(["a dog ."] * 200, ["a dog ."] * 200)
    assert capfd.readouterr() == ("", "")


def test_bleu_of_a_language_without_spaces_by_hand():
    references = [numbers.name(number, "ja") for number in range(100, 600)]
    hypotheses = [*references[1:48], *references[47:]]  # 453 of 500 right
    assert bleu(hypotheses, references)[0] == 0
    score, signature = bleu(hypotheses, references, tokenizer="char")
    assert score == pytest.approx(97, abs=1.5)
    assert "|tok:char|" in signature
    assert signatures("char")["bleu"] == signature
    # Characters: 4 of 5, pairs 3 of 4, triples 2 of 3, fours 1 of 2.
    expected = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert bleu(["三百二十一"], ["三百二十二"], tokenizer="char")[0] == pytest.approx(expected)
    found = paired_bootstrap(hypotheses, references, references, n=20, tokenizer="char")
    assert (found["baseline"], found["system"]) == (score, pytest.approx(100))
    assert "|tok:char|" in found["signature"]


def test_the_tokenizer_is_that_of_the_target_language():
    unspaced = {"ja": "char", "jpn_Jpan": "char", "ko": "char", "th": "char", "km-KH": "char", "lo": "char"}
    unspaced |= {"my": "char", "bo": "char", "zh": "zh", "zh_TW": "zh", "cmn": "zh", "yue": "zh"}
    for language, tokenizer in unspaced.items():
        assert side_names.bleu_tokenizer(language, []) == tokenizer
    for language in ("en", "de", "vi", "target", "jp", "KO"):
        assert side_names.bleu_tokenizer(language, ["a dog"] * 9) == ("char" if language == "KO" else "13a")
    # A code that decides nothing, such as the heading of a column: the script does.
    scripts = {"千二百三です。ドル": "char", "一千二百零三": "zh", "천이백삼": "char", "ดี": "char", "ຫ້າ": "char"}
    scripts |= {"ព្រះ": "char", "ငါး": "char", "ལྔ": "char", "fünf": "13a", "пять": "13a", "πέντε": "13a"}
    for text, tokenizer in scripts.items():
        assert side_names.bleu_tokenizer("target", [text, "", text, "(A)"]) == tokenizer
    assert side_names.bleu_tokenizer("target", ["CPU の"]) == "13a"
    with pytest.raises(UserError, match="Unknown tokenizer 'chars'; the nearest is 'char'"):
        side_names.check_tokenizer("chars")


def test_the_bootstrap_sees_a_difference_and_none():
    references, worse, better = lines(60, 0), lines(60, 1, 0.5), lines(60, 2, 0.9)
    found = paired_bootstrap(worse, better, references, n=100)
    assert found["baseline"] == bleu(worse, references)[0]
    assert found["system"] == bleu(better, references)[0]
    assert found["difference"] == found["system"] - found["baseline"] > 0
    assert found["p"] == pytest.approx(1 / 101)  # the least that so many draws can give
    assert found["signature"].startswith("nrefs:1|bs:100|seed:12345|case:mixed")
    assert found["system_mean"] == pytest.approx(found["system"], abs=2)
    assert 0 < found["system_interval"] < 10
    alike = paired_bootstrap(lines(60, 3, 0.7), lines(60, 4, 0.7), references, n=100)
    assert alike["p"] > 0.1
    assert paired_bootstrap(worse, worse, references, n=100)["p"] == 1.0
    assert paired_bootstrap(worse, better, references, n=100, metric="chrf")["system"] == chrf(better, references)[0]


def test_the_bootstrap_is_a_function_of_its_seed(monkeypatch):
    references, worse, better = lines(30, 0), lines(30, 1, 0.6), lines(30, 2, 0.7)
    monkeypatch.setenv("SACREBLEU_SEED", "77")
    first, again, other = (
        paired_bootstrap(worse, better, references, n=50, seed=seed)["system_mean"] for seed in (1, 1, 2)
    )
    assert first == again != other
    assert os.environ["SACREBLEU_SEED"] == "77"


@pytest.fixture(params=[2**22, 40, 1], ids=["all rows", "a few rows", "a row"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All sizes of chunks."""
    monkeypatch.setattr(translation, "CHUNK_ELEMENTS", request.param)


@pytest.mark.usefixtures("chunks")
def test_token_scores_are_those_of_all_logits_at_once():
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, 5, 11, generator=draw)
    labels = torch.where(
        torch.rand(6, 5, generator=draw) < 0.5, logits.argmax(-1), torch.randint(11, (6, 5), generator=draw)
    )
    labels[torch.rand(6, 5, generator=draw) < 0.3] = -100
    scores = TokenScores()
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        scores.add(logits[part], labels[part])
    scores.add(logits[:1], torch.full((1, 5), -100))
    kept = labels != -100
    expected = classification_scores(logits[kept], labels[kept])
    found = scores.result()
    assert found["tokens"] == int(kept.sum()) < 30
    for name in ("nll", "accuracy", "ece"):
        assert found[name] == pytest.approx(expected[name], abs=1e-12)
    assert found["perplexity"] == pytest.approx(math.exp(expected["nll"]))
    whole = reliability(logits[kept].double().softmax(-1), labels[kept])
    assert [entry["count"] for entry in found["reliability"]] == [entry["count"] for entry in whole]
    assert found["accuracy"] not in (0, 1)


def test_token_scores_of_half_precision_and_of_masked_classes():
    logits = torch.tensor([[2.0, 1.0, -math.inf], [0.0, 3.0, 1.0]], dtype=torch.bfloat16)
    labels = torch.tensor([0, 1])
    scores = TokenScores()
    scores.add(logits, labels)
    assert scores.result()["nll"] == pytest.approx(
        (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-3) + math.exp(-2))) / 2
    )


def test_what_is_refused():
    with pytest.raises(UserError, match="as many translations as references and at least one, but got 2 and 1"):
        bleu(["a", "b"], ["a"])
    with pytest.raises(UserError, match="but got 0 and 0"):
        chrf([], [])
    pair: list[Any] = [["a"], ["a"], ["a"]]
    with pytest.raises(UserError, match="`seed` to be a whole number of at least 1, but got 0"):
        paired_bootstrap(*pair, seed=0)
    with pytest.raises(UserError, match="Unknown metric 'blue'; the nearest is 'bleu'"):
        paired_bootstrap(*pair, metric="blue")
    with pytest.raises(UserError, match="but got 2 and 1"):
        paired_bootstrap(["a"], ["a", "b"], ["a"])
    with pytest.raises(ValueError, match="at least one token to score, but got none"):
        TokenScores().result()
    with pytest.raises(ValueError, match=r"`labels` of shape \(2,\), but got \(3,\)"):
        TokenScores().add(torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64))
