"""A task of your own in a file: `hyperstack train examples/custom_task.py:Disc` trains its network."""

from pathlib import Path

import torch
from torch import Tensor, nn

from hyperstack.tasks import Classifier, Data
from hyperstack.training import Plan, Trainer


class Disc(Classifier):
    """Whether a point lies in a disc, by a 2-32-2 network; in training the points are moved a little each time."""

    name, summary, batch_size, epochs = "disc", "points in a disc or not", 50, 20

    def load(self, data_dir: Path | None, device: torch.device, notify: object = None) -> Data:
        """2000 random points to train on, and 1000 to test on."""
        points = 2 * torch.rand(3000, 2, generator=torch.Generator().manual_seed(0)) - 1
        points, classes = points.to(device), (points.norm(dim=1) < 0.8).long().to(device)
        return Data(points[:2000], classes[:2000], points[2000:], classes[2000:])

    def prepare(self, inputs: Tensor, targets: Tensor, draw: torch.Generator, training: bool) -> tuple[Tensor, Tensor]:
        """Points with noise, in training only."""
        noise = 0.02 * torch.randn(inputs.shape, generator=draw, device=inputs.device)
        return (inputs + noise if training else inputs), targets

    def model(self) -> nn.Module:
        """The network."""
        return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))


if __name__ == "__main__":
    task, plan = Disc(), Plan("disc", "Adam(0.01) / SGD(1e-6)", epochs=9, seed=0, device="cpu", batch_size=50)
    trainer = Trainer(plan, task, task.load(None, torch.device("cpu")))
    trainer.run(after_epoch=print)
    assert trainer.test_error() < 0.1, "one answer for all points leaves half of them wrong"
