"""What Lightning runs: cross entropy, and a stop when the loss is no number."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import nn

from l2r2.config import TrainSettings
from l2r2.errors import TrainingError
from l2r2.training.optimize import configure


class ViewClassifier(pl.LightningModule):
    """Trains `network`: a whole model on images, or its head alone on features.

    Images come augmented already (`l2r2.training.augment`).
    """

    def __init__(self, network: nn.Module, settings: TrainSettings) -> None:
        super().__init__()
        self.network = network
        self._settings = settings
        self._loss = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        images, labels = batch
        loss: torch.Tensor = self._loss(self.network(images), labels)
        self._check("training", loss, index)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        images, labels = batch
        logits = self.network(images)
        right = (logits.argmax(dim=1) == labels).float().mean()
        self._log_validation(nn.functional.cross_entropy(logits, labels), right, len(images), index)

    def configure_optimizers(self) -> dict[str, object]:
        return configure((p for p in self.network.parameters() if p.requires_grad), self._settings)

    def _log_validation(self, loss: torch.Tensor, right: torch.Tensor, n: int, index: int) -> None:
        self._check("validation", loss, index)
        self.log("val_loss", loss, on_epoch=True, batch_size=n)
        self.log("val_accuracy", right, on_epoch=True, batch_size=n)

    def _check(self, which: str, loss: torch.Tensor, index: int) -> None:
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the {which} loss is {loss.item()} in epoch {self.current_epoch}, batch {index}; expected a number; "
                f"lower train.learning_rate (now {self._settings.learning_rate}) or look at the images"
            )
