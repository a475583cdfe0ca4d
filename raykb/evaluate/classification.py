"""How many images of a labelled set a classifier recognises."""

from dataclasses import dataclass

import torch
from torch import nn

from raykb.data.feed import plain_batches
from raykb.data.source import Examples, View
from raykb.engine.loop import Evaluated
from raykb.metrics.classification import class_accuracies, confusion_matrix


@dataclass(frozen=True, eq=False)
class Classification:
    """Accuracy and cross entropy over labelled examples.

    Attributes:
        examples: have ``labels`` among their arrays; of a class there may be none, which has no
            accuracy then.
        view: its plain form is what the network takes.
        classes: their number.
        batch_size: examples of one forward pass.
    """

    examples: Examples
    view: View
    classes: int
    batch_size: int = 500

    @torch.inference_mode()
    def __call__(self, network: nn.Module, device: torch.device) -> Evaluated:
        """Return ``top1``, ``loss``, ``class_accuracy/3`` of each class, and the ``confusion``.

        The latter is a matrix (C, C): how often label i (row) was taken for j (column).
        """
        loss = 0.0
        confusion = torch.zeros(self.classes, self.classes, dtype=torch.int64)
        batches = plain_batches(self.examples, self.view, device, batch_size=self.batch_size)
        for fields in batches:
            images, labels = fields["images"], fields["labels"]
            logits = network(images).float()
            loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
            confusion += confusion_matrix(logits.argmax(1), labels, self.classes).cpu()
        figures = {
            "top1": int(confusion.diagonal().sum()) / len(self.examples),
            "loss": loss / len(self.examples),
        } | {
            f"class_accuracy/{label}": float(share)
            for label, share in enumerate(class_accuracies(confusion))
            if share.isfinite()
        }
        return Evaluated(figures, {"confusion": confusion.tolist()})
