"""RigL under Lightning's Trainer: the method is attached where the optimizer is made."""

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import regrow


class Classifier(lightning.LightningModule):
    """A sparse network and its method."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        regrow.sparsify(self.network, sparsity=0.9)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        steps = int(self.trainer.estimated_stepping_batches)
        self.method = regrow.RigL(self.network, optimizer, total_steps=steps, update_every=20)
        return optimizer

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])


def main() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2000, 64)
    loader = DataLoader(TensorDataset(inputs, inputs[:, :10].argmax(1)), batch_size=50)
    model = Classifier()
    lightning.Trainer(max_epochs=5, accelerator="cpu", logger=False).fit(model, loader)
    print(model.method)


if __name__ == "__main__":
    main()
