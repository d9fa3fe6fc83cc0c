"""CURLoRA with transformers' Trainer: sentiment of the built-in reviews, with a classification head.

python examples/hf_trainer.py
"""

import argparse
import tempfile
from typing import Any

import numpy as np
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from curlora_lab import CurLoraConfig
from curlora_lab.backbone import BUILTIN_FOLDER
from curlora_lab.data.builtin.tasks import sentiment2


def main(
    *, model: str = str(BUILTIN_FOLDER), rows: int = 600, epochs: int = 5, test_rows: int = 300
) -> dict[str, float]:
    """Train with `Trainer`, save the adapter, and evaluate it once more from its files.

    Args:
        model: Folder or hub id of a model with a classification head in transformers.
        rows: Training rows.
        epochs: Passes over them.
        test_rows: Rows of the test split.

    Returns:
        Accuracy on the test split `before` and `after` training, and of the model `loaded` from its files.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)

    def tokenised(split: str, n: int) -> Dataset:
        data = Dataset.from_list(sentiment2(split, n, 0)).rename_column("label", "labels")
        return data.map(lambda row: tokenizer(row["sentence"]), remove_columns=["idx", "sentence"])

    backbone = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    config = CurLoraConfig(task_type=TaskType.SEQ_CLS, r=16, target_modules="all-linear", exclude_modules=["score"])
    adapted = get_peft_model(backbone, config)  # SEQ_CLS: the head "score" is trained and saved as well
    adapted.print_trainable_parameters()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            learning_rate=0.02,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
        )
        data: dict[str, Any] = {"eval_dataset": tokenised("test", test_rows), "processing_class": tokenizer}
        trainer = Trainer(adapted, arguments, train_dataset=tokenised("train", rows), compute_metrics=accuracy, **data)
        scores = {"before": trainer.evaluate()["eval_accuracy"]}
        trainer.train()
        scores["after"] = trainer.evaluate()["eval_accuracy"]
        trainer.save_model(folder)  # adapter_config.json and adapter_model.safetensors, as for any PEFT method
        loaded = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=2)
        again = Trainer(loaded, arguments, compute_metrics=accuracy, **data)
        scores["loaded"] = again.evaluate()["eval_accuracy"]
    print({name: round(value, 3) for name, value in scores.items()})
    return scores


def accuracy(prediction: Any) -> dict[str, float]:
    """Share of rows whose largest logit is that of the label."""
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BUILTIN_FOLDER), help="folder or hub id")
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=5)
    main(**vars(parser.parse_args()))
