"""The ordinary training loop on MNIST, with a stack in the place of torch.optim.Adam: one line differs."""

import torch

import hyperstack as hs
from hyperstack.tasks import get_task


def main(epochs: int = 1) -> float:
    """Train and return the test error, 0 to 1."""
    torch.manual_seed(0)
    task = get_task("mnist")
    data = task.load(None, torch.device("cpu"))
    model = task.model()
    opt = hs.HyperOptimizer(model.parameters(), "Adam / SGD(1e-5)")  # was: torch.optim.Adam(model.parameters())

    for _ in range(epochs):
        for chosen in torch.randperm(len(data.train_inputs)).split(256):
            opt.zero_grad()
            loss = task.losses(model(data.train_inputs[chosen]), data.train_targets[chosen]).mean()
            loss.backward()
            opt.step()
        print(f"loss {loss.item():.4f}  learned rate {opt.hyperparameters()['0.lr'].item():.5f}")

    with torch.no_grad():
        error = task.error(model(data.test_inputs), data.test_targets).mean().item()
    print(f"test error {100 * error:.2f} %")
    return error


if __name__ == "__main__":
    assert main() < 0.08, "one epoch should end below 8 % test error"
