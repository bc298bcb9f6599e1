"""What Lightning runs: cross entropy, AdamW, a cosine to zero, and a stop when the loss is no number."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import nn

from l2r2.config import TrainSettings
from l2r2.errors import TrainingError


class ViewClassifier(pl.LightningModule):
    """Trains `network`: a whole model on images, or its head alone on features."""

    def __init__(self, network: nn.Module, settings: TrainSettings, seed: int, *, mirror: bool) -> None:
        super().__init__()
        self.network = network
        self._settings = settings
        self._seed = seed
        self._mirror = mirror
        self._loss = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        images, labels = batch
        if self._mirror:
            draw = torch.Generator().manual_seed(hash((self._seed, self.current_epoch, index)) % 2**63)
            which = (torch.rand(len(images), generator=draw) < 0.5).to(images.device)
            images = torch.where(which[:, None, None, None], images.flip(-1), images)
        loss: torch.Tensor = self._loss(self.network(images), labels)
        self._check("training", loss, index)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        images, labels = batch
        logits = self.network(images)
        loss = nn.functional.cross_entropy(logits, labels)
        self._check("validation", loss, index)
        self.log("val_loss", loss, on_epoch=True, batch_size=len(images))
        right = (logits.argmax(dim=1) == labels).float().mean()
        self.log("val_accuracy", right, on_epoch=True, batch_size=len(images))

    def _check(self, which: str, loss: torch.Tensor, index: int) -> None:
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the {which} loss is {loss.item()} in epoch {self.current_epoch}, batch {index}; expected a number; "
                f"lower train.learning_rate (now {self._settings.learning_rate}) or look at the images"
            )

    def configure_optimizers(self) -> dict[str, object]:
        chosen = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(chosen, self._settings.learning_rate, weight_decay=self._settings.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self._settings.epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}
