"""RigL in a plain training loop, with a checkpoint."""

import torch
from torch import nn

import regrow

STEPS = 300


def main() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2000, 64)
    targets = inputs[:, :10].argmax(1)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))

    regrow.sparsify(model, sparsity=0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = regrow.RigL(model, optimizer, total_steps=STEPS, update_every=20)

    for step in range(STEPS):
        batch = torch.arange(step * 50, step * 50 + 50) % len(inputs)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
        loss.backward()
        optimizer.step()

    accuracy = (model(inputs).argmax(1) == targets).float().mean().item()
    print(method)
    print(regrow.summary(model))
    print(f"loss {loss.item():.3f}, accuracy {accuracy:.3f}")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "checkpoint.pt")


if __name__ == "__main__":
    main()
