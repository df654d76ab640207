"""Many tickets in one run: superposed into one network, or kept as an ensemble; and how to judge them."""

from regrow.tickets.average import prune_back, superpose
from regrow.tickets.copying import copied
from regrow.tickets.cores import core_of, narrow_core, narrower
from regrow.tickets.early import EarlyTicket
from regrow.tickets.ensemble import Ensemble
from regrow.tickets.free import FreeTickets
from regrow.tickets.metrics import (
    accuracy,
    disagreement,
    expected_calibration_error,
    kl_diversity,
    negative_log_likelihood,
    overlap,
    probabilities,
)
from regrow.tickets.norms import reestimate
from regrow.tickets.phases import Phases
from regrow.tickets.prune import pruned, rewound
from regrow.tickets.rates import steps, triangular
from regrow.tickets.records import DST, EDST, LOTTERY, SUP
from regrow.tickets.registry import Cost, Plan, TicketKind, TicketMaker, Training, kind_of, kinds, register
from regrow.tickets.rounds import Round, lottery, sparsities
from regrow.tickets.scores import Gradient
from regrow.tickets.sup import SupTickets, calendar

__all__ = [
    "DST",
    "EDST",
    "LOTTERY",
    "SUP",
    "Cost",
    "EarlyTicket",
    "Ensemble",
    "FreeTickets",
    "Gradient",
    "Phases",
    "Plan",
    "Round",
    "SupTickets",
    "TicketKind",
    "TicketMaker",
    "Training",
    "accuracy",
    "calendar",
    "copied",
    "core_of",
    "disagreement",
    "expected_calibration_error",
    "kind_of",
    "kinds",
    "kl_diversity",
    "narrow_core",
    "narrower",
    "lottery",
    "negative_log_likelihood",
    "overlap",
    "probabilities",
    "prune_back",
    "pruned",
    "reestimate",
    "register",
    "rewound",
    "sparsities",
    "steps",
    "superpose",
    "triangular",
]
