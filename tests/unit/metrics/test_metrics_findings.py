import torch

from curlora_lab.metrics.findings import classification_findings, language_findings

NAMES = ("negative", "positive")


def codes(predictions: torch.Tensor, labels: torch.Tensor, *, stage: int = 1, metric: str = "accuracy") -> list[str]:
    found = classification_findings("sst2", stage, predictions, labels, label_names=NAMES, metric=metric, learnt_in=1)
    return [finding.code for finding in found]


def test_a_constant_predictor_is_flagged_and_not_called_worse_than_itself() -> None:
    labels = torch.tensor([1] * 60 + [0] * 40)
    assert codes(torch.ones_like(labels), labels) == ["constant_prediction", "not_learnt"]
    assert codes(torch.zeros_like(labels), labels) == ["constant_prediction", "below_constant", "not_learnt"]


def test_published_sentiment140_evaluation_is_flagged() -> None:
    """One label only in the evaluated rows: a constant predictor scores 1.00, so nothing was shown to be learnt."""
    labels = torch.zeros(1024, dtype=torch.long)
    assert codes(torch.zeros_like(labels), labels) == ["not_learnt"]


def test_a_learnt_task_has_no_findings() -> None:
    labels = torch.tensor([1] * 60 + [0] * 40)
    assert codes(labels.clone(), labels) == []
    assert codes(labels.clone(), labels, metric="mcc") == []


def test_one_point_above_majority_is_not_learning() -> None:
    """MRPC in the paper: 287 of 408 against 279 for 'equivalent'."""
    labels = torch.tensor([1] * 279 + [0] * 129)
    predictions = torch.ones_like(labels)
    predictions[-8:] = 0
    assert codes(predictions, labels) == ["not_learnt"]
    assert codes(predictions, labels, stage=2) == []


def test_nothing_is_said_before_the_task_was_trained() -> None:
    labels = torch.tensor([1, 0, 0])
    assert codes(torch.ones_like(labels), labels, stage=0) == []


def test_messages_name_label_scores_and_interval() -> None:
    labels = torch.tensor([1] * 6 + [0] * 4)
    found = classification_findings(
        "sst2", 1, torch.zeros_like(labels), labels, label_names=NAMES, metric="accuracy", learnt_in=1
    )
    assert found[0].to_dict() == {
        "code": "constant_prediction",
        "task": "sst2",
        "stage": 1,
        "message": "predicts 'negative' for all 10 rows",
    }
    assert found[1].message == "accuracy 0.4000, while always answering 'positive' gets 0.6000"
    assert "95 % interval" in found[2].message


def test_language_findings() -> None:
    args = {"before": 20.0, "unigram": 100.0, "learnt_in": 1}
    assert language_findings("stories", 1, 5.0, **args) == []
    assert [f.code for f in language_findings("stories", 1, 120.0, **args)] == ["below_constant", "not_learnt"]
    assert [f.code for f in language_findings("stories", 2, 50.0, **args)] == []
    assert language_findings("stories", 0, 500.0, **args) == []
