"""Deploy a trained network once, and call it from several threads at the same time."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

import regrow


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(784, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 10))


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # of each call: the requests share the cores instead
    trained = regrow.sparsify(network(), sparsity=0.95).eval()  # trained, in your case
    regrow.deploy(trained, torch.randn(1, 784)).save("deployed.safetensors")

    # in the process that serves: torch and regrow, and nothing of the network's code
    deployed = regrow.Deployed.load("deployed.safetensors")
    requests = [torch.randn(1 + number % 3, 784) for number in range(300)]
    with ThreadPoolExecutor(max_workers=4) as pool:
        answers = list(pool.map(deployed, requests))

    with torch.no_grad():
        for request, answer in zip(requests, answers, strict=True):
            torch.testing.assert_close(answer, trained(request), rtol=1e-4, atol=1e-5)
    print(f"{len(answers)} requests were answered by {deployed}")


if __name__ == "__main__":
    main()
