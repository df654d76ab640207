"""On real images a superposed network is better than its own tickets are on average, with no more connections."""

import copy
import statistics

import torch
from tiny import NEEDS_FASHION_MNIST
from torch.nn import functional as F

import regrow
from regrow.data import fashion_mnist, order
from regrow.models import mlp
from regrow.tickets import accuracy, negative_log_likelihood, probabilities

START, CYCLES, LENGTH, BATCH = 600, 3, 100, 100


@NEEDS_FASHION_MNIST
def test_superposed_above_the_mean_of_its_tickets() -> None:
    data = fashion_mnist()
    torch.manual_seed(0)
    model = regrow.sparsify(mlp(), sparsity=0.95)
    asked = regrow.summary(model).connections
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = regrow.RigL(model, optimizer, total_steps=START, update_every=50)
    tickets = regrow.SupTickets(
        method, start=START, cycles=CYCLES, cycle_steps=LENGTH, lr=(0.001, 0.05), explore=0.5
    )
    alone = []
    while not tickets.done:
        epoch, place = divmod(method.step, len(data.train_inputs) // BATCH)
        batch = order(0, epoch, len(data.train_inputs))[place * BATCH : (place + 1) * BATCH]
        optimizer.zero_grad()
        F.cross_entropy(model(data.train_inputs[batch]), data.train_targets[batch]).backward()
        optimizer.step()
        if tickets.ready:
            tickets.collect()
            alone.append(copy.deepcopy(model))
    assert method.step == START + CYCLES * LENGTH
    assert regrow.summary(tickets.model).connections <= asked
    test = [(data.test_inputs, data.test_targets)]
    superposed, *own = (probabilities(network, test) for network in (tickets.model, *alone))
    assert len(own) == CYCLES + 1
    assert accuracy(*superposed) > statistics.fmean(accuracy(*one) for one in own)
    assert negative_log_likelihood(*superposed) < statistics.fmean(
        negative_log_likelihood(*one) for one in own
    )
