"""The built-in tasks: pure, disjoint, balanced, and exactly as hard as they say.

The rules below read the texts without the generator's help: they are the best classifiers there are.
"""

import itertools
import re
from collections import Counter
from fractions import Fraction

import pytest
import yaml

from curlora_lab.config import conf_dir
from curlora_lab.data.builtin import lexicon, tasks

TASKS = {
    "paraphrase": (tasks.paraphrase, 2),
    "sentiment2": (tasks.sentiment2, 2),
    "sentiment3": (tasks.sentiment3, 3),
    "topic": (tasks.topic, 4),
}
ROWS = 50 * tasks.BLOCK
PAIR = ("sentence1", "sentence2")
POLARITY = {
    **dict.fromkeys((*lexicon.PRAISE, *lexicon.GOOD_MOODS), 1),
    **dict.fromkeys((*lexicon.BLAME, *lexicon.BAD_MOODS), -1),
    **dict.fromkeys(lexicon.NO_MOODS, 0),
}


@pytest.fixture(params=TASKS)
def task(request):
    return request.param


@pytest.fixture(scope="module")
def rows():
    return {name: {split: make(split, ROWS, 0) for split in ("train", "test")} for name, (make, _) in TASKS.items()}


def text_of(row):
    return " | ".join(value for key, value in sorted(row.items()) if key.startswith("sentence"))


def clause_polarity(clause):
    negated = any(negation in clause for negation in (" was not ", " was never ", " far from "))
    word = next(w for w in POLARITY if clause.endswith(f" {w}"))
    return -POLARITY[word] if negated else POLARITY[word]


def opinion_polarity(text):
    words = text.split(". ", 1)[1].removesuffix(".")
    words = words[0].lower() + words[1:]
    if " neither " in words:
        return 0
    if words.startswith("although "):
        return clause_polarity(words.split(", ")[1])
    for mark, main in ((", although ", 0), (", but ", 1)):
        if mark in words:
            return clause_polarity(words.split(mark)[main])
    polarities = {clause_polarity(clause) for clause in words.split(" and ")}
    return polarities.pop() if len(polarities) == 1 else 0


def topic_of(sentence):
    words = re.findall(r"\w+", sentence)
    counts = [sum(word in names for word in words) for names in lexicon.TOPICS.values()]
    assert sum(counts) == 3
    return counts.index(max(counts))


ORACLES = {
    "paraphrase": lambda row: int(len({clause_polarity(row[key][:-1]) for key in PAIR}) == 1),
    "sentiment2": lambda row: {-1: 0, 1: 1}[opinion_polarity(row["sentence"])],
    "sentiment3": lambda row: opinion_polarity(row["sentence"]) + 1,
    "topic": lambda row: topic_of(row["sentence"]),
}


def oracle_accuracy(task, rows):
    return Fraction(sum(ORACLES[task](row) == row["label"] for row in rows), len(rows))


def stated_best(task):
    """The best accuracy that there is, as the configuration of a task says it."""
    return yaml.safe_load((conf_dir() / "task" / f"builtin_{task}.yaml").read_text())["data"]["best"]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("task", "best"),
    [("paraphrase", Fraction(1)), ("sentiment2", Fraction(1)), ("sentiment3", Fraction(9, 10))],
)
def test_best_rule_reaches_stated_best_exactly(task, best, split, rows):
    assert oracle_accuracy(task, rows[task][split]) == best
    assert stated_best(task) == float(best)


def test_topic_best_is_that_of_the_bayes_rule():
    """All 64 triples of topics, with their exact probabilities: the sum of the largest joint probability."""
    q = Fraction(4, 5)
    total = Fraction(0)
    for triple in itertools.product(range(4), repeat=3):
        joint = []
        for label in range(4):
            own = triple.count(label)
            joint.append(Fraction(1, 4) * q**own * ((1 - q) / 3) ** (3 - own))
        total += max(joint)
    assert stated_best("topic") == pytest.approx(float(total), abs=1e-12)
    assert float(q) == tasks.TOPIC_PURITY


def test_topic_rule_reaches_best_within_chance():
    rows = tasks.topic("test", 6000, 3)
    best = stated_best("topic")
    sd = (best * (1 - best) / len(rows)) ** 0.5
    assert abs(float(oracle_accuracy("topic", rows)) - best) < 4 * sd


def test_generator_is_pure_and_a_prefix_of_itself(task):
    make, _ = TASKS[task]
    long = make("train", 100, 7)
    assert make("train", 100, 7) == long
    assert make("train", 41, 7) == long[:41]
    assert make("train", 100, 8) != long
    assert [row["idx"] for row in long] == list(range(100))
    assert make("train", 0, 7) == []


def test_no_text_in_two_splits_whatever_the_seeds(task):
    make, _ = TASKS[task]
    texts = [{text_of(row) for seed in (0, 1) for row in make(split, 900, seed)}
             for split in ("train", "validation", "test")]  # fmt: skip
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]


def test_labels_are_balanced(task, rows):
    _, kinds = TASKS[task]
    counts = Counter(row["label"] for row in rows[task]["test"])
    assert set(counts) == set(range(kinds))
    assert max(counts.values()) - min(counts.values()) <= (0 if task != "topic" else ROWS // 15)


def test_few_texts_repeat_within_a_split(task, rows):
    texts = [text_of(row) for row in rows[task]["train"]]
    assert len(set(texts)) > 0.93 * len(texts)


def test_wrong_labels_are_a_tenth_of_every_block_and_spread_evenly(rows):
    wrong = Counter()
    for start in range(0, ROWS, tasks.BLOCK):
        block = rows["sentiment3"]["train"][start : start + tasks.BLOCK]
        pairs = [(ORACLES["sentiment3"](row), row["label"]) for row in block]
        assert sum(true != given for true, given in pairs) == tasks.BLOCK // 10
        wrong.update((true, given) for true, given in pairs if true != given)
    assert len(wrong) == 6
    assert min(wrong.values()) > 0.5 * sum(wrong.values()) / 6


def test_pairs_are_about_one_subject_and_never_the_same_text(rows):
    for row in rows["paraphrase"]["train"]:
        first, second = (re.split(" was ", row[key])[0] for key in PAIR)
        assert first == second
        assert row["sentence1"] != row["sentence2"]


@pytest.mark.parametrize("word_count", ["sentence", "sentence1"])
def test_no_single_word_gives_the_label_away(word_count, rows):
    """Best single-word rule on sentiment2 and paraphrase stays far from the best rule."""
    task = "sentiment2" if word_count == "sentence" else "paraphrase"
    data = rows[task]["train"]
    counts = {}
    for row in data:
        for word in set(re.findall(r"\w+", text_of(row))):
            counts.setdefault(word, Counter())[row["label"]] += 1
    for word, by_label in counts.items():
        if sum(by_label.values()) > 0.2 * len(data):
            assert max(by_label.values()) / sum(by_label.values()) < 0.75, word


@pytest.mark.parametrize("call", [("dev", 10, 0), ("train", -1, 0)])
def test_bad_arguments_are_refused(task, call):
    make, _ = TASKS[task]
    with pytest.raises(ValueError, match=r"split 'dev' is unknown .* train, validation, test|n is -1"):
        make(*call)
