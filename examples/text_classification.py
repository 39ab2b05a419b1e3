"""Fine-tuning a Transformers model on text classification, with a fifth of the labels wrong.

    python examples/text_classification.py

The model is small and made on the spot; from_pretrained with the name of yours is the only line to change.
`LabelRegularizedTrainer` is Transformers' Trainer: it tells the loss which example is which, and keeps the memory in
the checkpoints.
"""

import tempfile

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainingArguments,
    set_seed,
)

from labo import LabelRegularizedLoss, regularizers
from labo.integrations.transformers import LabelRegularizedTrainer

SUBJECTS = ["the film", "this book", "her play", "that song", "the meal", "our trip", "his talk", "the game"]
GOOD = ["wonderful", "moving", "brilliant", "charming", "fresh", "clever", "warm", "superb"]
BAD = ["dull", "tedious", "clumsy", "bland", "stale", "shallow", "cold", "dreadful"]


def texts(count):
    """Sentences with one to three opinions, of which one may be negated, and 1 where the last is good."""
    sentences, labels = [], []
    for _ in range(count):
        subject = SUBJECTS[torch.randint(len(SUBJECTS), ())]
        good, negated = (bool(torch.rand(()) < 0.5) for _ in range(2))
        word = (GOOD if good != negated else BAD)[torch.randint(8, ())]
        other = (BAD if good else GOOD)[torch.randint(8, ())]
        opinion = f"not {word}" if negated else word
        sentences.append(
            f"{subject} was {opinion}" if torch.rand(()) < 0.5 else f"though {other} {subject} was {opinion}"
        )
        labels.append(int(good))
    return sentences, torch.tensor(labels)


def small_model(folder):
    """A tokenizer and a model in a folder, as `save_pretrained` leaves them."""
    words = sorted({word for text in texts(4000)[0] for word in text.split()})
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    config = DistilBertConfig(
        vocab_size=len(vocabulary), dim=64, n_layers=2, n_heads=4, hidden_dim=128, max_position_embeddings=16
    )
    DistilBertForSequenceClassification(config).save_pretrained(folder)


def main():
    set_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        small_model(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        train_texts, right = texts(400)
        test_texts, test_labels = texts(1000)
        given = torch.where(torch.rand(400) < 0.2, 1 - right, right)

        def examples(sentences, labels):
            encoded = [tokenizer(text, padding="max_length", max_length=12) for text in sentences]
            return [{**each, "labels": int(label)} for each, label in zip(encoded, labels, strict=True)]

        for method in ("none", "labo", "labo[prior=memory]"):
            set_seed(0)
            trainer = LabelRegularizedTrainer(
                model=AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2),
                args=TrainingArguments(
                    folder,
                    num_train_epochs=15,
                    per_device_train_batch_size=32,
                    learning_rate=2e-3,
                    report_to=[],
                    save_strategy="no",
                    logging_strategy="no",
                    disable_tqdm=True,
                    use_cpu=True,
                ),
                train_dataset=examples(train_texts, given),
                loss=LabelRegularizedLoss(regularizers.create(method)),
            )
            trainer.train()
            predictions = trainer.predict(examples(test_texts, test_labels)).predictions
            accuracy = (torch.tensor(predictions).argmax(-1) == test_labels).float().mean()
            print(f"{method:20}{accuracy:.1%}")


if __name__ == "__main__":
    main()
