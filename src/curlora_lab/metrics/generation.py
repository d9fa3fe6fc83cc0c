"""Scores of generated texts against one reference each: ROUGE-L, matches, edit similarity, SARI. All lie in [0, 1]."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from torchmetrics.functional.text import rouge_score

from curlora_lab.metrics.findings import Finding

T = TypeVar("T")

NGRAMS = 4  # longest n-grams of SARI


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words.

    Words are runs of letters and digits of any script, in lower case, and every CJK character is a word of its own; for
    English this is what the ``rouge-score`` package gives without stemming. It is not TRACE's number: that is of the package
    ``rouge`` 1.0.1, which splits at spaces, minds case, goes sentence by sentence and counts a word that comes twice once.

    Args:
        prediction: Generated text.
        reference: What should have been generated.

    Returns:
        F1 in [0, 1]; 0 where either text has no word.

    Reference:
        Lin 2004.
    """
    found = rouge_score(prediction, reference, rouge_keys="rougeL", normalizer=str.lower, tokenizer=words)
    return float(found["rougeL_fmeasure"])


def words(text: str) -> list[str]:
    """Runs of letters and digits; each CJK character by itself, since these scripts have no spaces."""
    return re.findall(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+", text)


def exact_match(prediction: str, reference: str) -> float:
    """1 if the texts are equal, but for white space at their ends and the length of spaces inside."""
    return float(" ".join(prediction.split()) == " ".join(reference.split()))


def normalized(text: str) -> str:
    """Lower case, without ASCII punctuation, with single spaces: what the O-LoRA code compares."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def normalized_match(prediction: str, reference: str) -> float:
    """1 if the texts are equal after :func:`normalized`. Not for numbers: 17.48 and 1748 are equal by it."""
    return float(normalized(prediction) == normalized(reference))


def first_character(prediction: str, reference: str) -> float:
    """1 if the texts begin with the same character: TRACE's accuracy of ScienceQA, whose answers are a letter and reasons."""
    left, right = prediction.strip()[:1], reference.strip()[:1]
    return float(left == right != "")


def edit_similarity(prediction: str, reference: str) -> float:
    """Share of characters that stay when one text is turned into the other: ``2 L / (a + b)``, L the longest common subsequence.

    It is the ``ratio`` of fuzzywuzzy and rapidfuzz over 100, which TRACE uses for Py150.

    Args:
        prediction: Generated text, a characters.
        reference: What should have been generated, b characters.

    Returns:
        Similarity in [0, 1]; 1 for two empty texts.
    """
    total = len(prediction) + len(reference)
    return 2 * common_subsequence(prediction, reference) / total if total else 1.0


def common_subsequence(left: str, right: str) -> int:
    """Length of the longest common subsequence of characters, one bit of an integer a character.

    Reference:
        Hyyrö 2004, bit-parallel LCS-length computation revisited.
    """
    places: dict[str, int] = {}
    for index, char in enumerate(left):
        places[char] = places.get(char, 0) | 1 << index
    every = (1 << len(left)) - 1
    open_ = every
    for char in right:
        matches = open_ & places.get(char, 0)
        open_ = (open_ + matches | open_ - matches) & every
    return len(left) - open_.bit_count()


def sari(source: str, prediction: str, *references: str) -> float:
    """SARI of a simplification: mean of how well n-grams of the source were kept and deleted and new ones added.

    For n = 1 to 4: F1 of keeping, precision of deleting, F1 of adding, against the references; each averaged over n. Texts are
    in lower case and split as in WMT's 13a tokenisation, as in Hugging Face's ``sari``, whose value is 100 times this one.

    Args:
        source: The text that was to be simplified.
        prediction: Generated text.
        *references: Simplifications by people, at least one.

    Returns:
        SARI in [0, 1].

    Reference:
        Xu et al. 2016.
    """
    texts = [thirteen_a(text.lower()) for text in (source, prediction, *references)]
    each = []
    for n in range(1, NGRAMS + 1):
        old, made, *rest = (_ngrams(tokens, n) for tokens in texts)
        # Source and prediction count once for each reference, so that all three are counts of the same size.
        old, made = (Counter({ngram: count * len(rest) for ngram, count in found.items()}) for found in (old, made))
        each.append(_operations(old, made, sum(rest, Counter())))
    keep, delete, add = (sum(values) / NGRAMS for values in zip(*each, strict=True))
    return (keep + delete + add) / 3


def thirteen_a(text: str) -> list[str]:
    """Tokens of WMT's 13a tokenisation: punctuation apart, but not points and commas inside numbers."""
    text = f" {text.replace('-' + chr(10), '').replace(chr(10), ' ')} "
    text = re.sub(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])", r" \1 ", text)
    text = re.sub(r"([^0-9])([\.,])", r"\1 \2 ", text)
    text = re.sub(r"([\.,])([^0-9])", r" \1 \2", text)
    return re.sub(r"([0-9])(-)", r"\1 \2 ", text).split()


def _ngrams(tokens: Sequence[T], n: int) -> Counter[tuple[T, ...]]:
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


def _operations(source: Counter[T], made: Counter[T], reference: Counter[T]) -> tuple[float, float, float]:
    """F1 of keeping, precision of deleting, F1 of adding, for the n-grams of one length."""
    kept, to_keep = source & made, source & reference
    rightly = kept & reference
    keep = _f1(_mean_share(rightly, kept), rightly.total() / to_keep.total() if to_keep else 1.0)
    deleted = source - made
    delete = _mean_share(deleted - reference, deleted)
    added, to_add = set(made) - set(source), set(reference) - set(source)
    good = len(added & to_add)
    add = _f1(good / len(added) if added else 1.0, good / len(to_add) if to_add else 1.0)
    return keep, delete, add


def _mean_share(part: Counter[T], whole: Counter[T]) -> float:
    """Mean over n-grams of the share of each that is in the part; 1 where there is nothing to judge."""
    return sum(part[ngram] / count for ngram, count in whole.items()) / len(whole) if whole else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


TEXT_METRICS: dict[str, Callable[[str, str, str], float]] = {
    "rouge_l": lambda _, prediction, reference: rouge_l(prediction, reference),
    "exact_match": lambda _, prediction, reference: exact_match(prediction, reference),
    "normalized_match": lambda _, prediction, reference: normalized_match(prediction, reference),
    "first_character": lambda _, prediction, reference: first_character(prediction, reference),
    "edit_similarity": lambda _, prediction, reference: edit_similarity(prediction, reference),
    "sari": sari,
}
"""Score of one text by metric, from (source, prediction, reference); the higher, the better."""


def generation_scores(
    names: Sequence[str], sources: Sequence[str], predictions: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    """Mean score of generated texts by several metrics.

    Args:
        names: Metrics, out of :data:`TEXT_METRICS`.
        sources: What was asked, one text a row.
        predictions: What was generated.
        references: What should have been generated.

    Returns:
        Mean over rows by metric, in the order of ``names``.

    Raises:
        ValueError: For an unknown name, no rows, or lists of different length.
    """
    unknown = [name for name in names if name not in TEXT_METRICS]
    if unknown:
        raise ValueError(f"metric {unknown[0]!r} is not known for texts; choose from: {', '.join(TEXT_METRICS)}")
    if not predictions or not len(sources) == len(predictions) == len(references):
        raise ValueError(
            f"{len(sources)} sources, {len(predictions)} predictions and {len(references)} references: "
            "equally many are needed, and at least one"
        )
    rows = list(zip(sources, predictions, references, strict=True))
    return {name: sum(TEXT_METRICS[name](*row) for row in rows) / len(rows) for name in names}


MATCHES = ("exact_match", "normalized_match", "first_character")
"""Metrics that are 0 or 1 for each text."""


def text_findings(
    task: str,
    stage: int,
    pairs: Sequence[tuple[str, str]],
    *,
    metric: str,
    score: float,
    before: float,
    constant: tuple[float, str] | None,
    learnt_in: int,
) -> list[Finding]:
    """What is wrong with generated texts after one stage; nothing is said of a task before its own stage.

    Rules, by code: ``constant_prediction`` when all texts are the same though the references differ, ``below_constant`` when
    the score is lower than that of the best constant text, ``not_learnt`` when right after the task's own stage it is not
    higher than before any training.

    Args:
        task: Name of the task.
        stage: Stage that was just trained, 0 for untrained.
        pairs: Generated text and reference of each row.
        metric: The task's main metric.
        score: Its value.
        before: Its value before any training.
        constant: Score of the best constant text, and that text; None where it is not known.
        learnt_in: Stage in which the task is learnt.

    Returns:
        The findings, possibly none.
    """
    if stage < learnt_in:
        return []
    findings = []
    texts, references = ({pair[side] for pair in pairs} for side in (0, 1))
    if len(texts) == 1 < len(references):
        message = f"answers {_short(next(iter(texts)))} in all {len(pairs)} rows"
        findings.append(Finding("constant_prediction", task, stage, message))
    if constant is not None and score < constant[0] - 1e-6:
        rival = f"always answering {_short(constant[1])} gets {constant[0]:.4f}"
        findings.append(Finding("below_constant", task, stage, f"{metric} {score:.4f}, while {rival}"))
    if stage == learnt_in and score <= before:
        message = f"{metric} {score:.4f} after its stage, {before:.4f} before any training"
        findings.append(Finding("not_learnt", task, stage, message))
    return findings


def _short(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else f"{text[: most - 1]}…")
