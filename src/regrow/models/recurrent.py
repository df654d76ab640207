"""Networks of torch's own recurrent layers: the RigL paper's character GRU, the stacked LSTM, and the AWD-LSTM."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from regrow.arguments import require_count, require_fraction, require_positive
from regrow.errors import RegrowValueError
from regrow.models.dropouts import DroppedEmbedding, LockedDropout, WeightDropLSTM
from regrow.models.language import LanguageModel, MixtureOfSoftmaxes, initialised
from regrow.models.width import require_width, scaled


def char_gru(
    classes: int = 256, embedding: int = 128, hidden: int = 512, readout: int = 256, width: float = 1.0
) -> LanguageModel:
    """Build the RigL paper's character GRU: an embedding, one GRU, and two linear layers before the logits.

    The paper has read-outs of 256 and 128 and a shared embedding of 128: the second read-out is as long as the
    embedding's vectors, whose products with it are the logits. It does not name the function between the read-outs;
    here it is ReLU.

    Args:
        classes: the size of the vocabulary; 256 for bytes.
        embedding: length of a token's vector, and of the last read-out.
        hidden: units of the GRU.
        readout: units of the first read-out.
        width: factor of all sizes but the vocabulary.
    """
    classes, width = require_count("classes", classes), require_width(width)
    size = scaled(require_count("embedding", embedding), width)
    units = scaled(require_count("hidden", hidden), width)
    first = scaled(require_count("readout", readout), width)
    model = LanguageModel(
        nn.Embedding(classes, size),
        [nn.GRU(size, units, batch_first=True)],
        nn.Linear(size, classes),
        readout=nn.Sequential(nn.Linear(units, first), nn.ReLU(), nn.Linear(first, size)),
    )
    return initialised(model, tied=True)


def stacked_lstm(
    classes: int = 10_000,
    embedding: int = 1500,
    hidden: int = 1500,
    layers: int = 2,
    dropout: float = 0.65,
    width: float = 1.0,
) -> LanguageModel:
    """Build a stacked LSTM; by default the large one of Zaremba et al. 2014 in the form of Selfish-RNN.

    Embedding and read-out are two weights.

    Args:
        classes: the size of the vocabulary.
        embedding: length of a token's vector.
        hidden: units of each layer.
        layers: number of LSTM layers.
        dropout: probability, of the embedded tokens, between the layers and of the last outputs.
        width: factor of all sizes but the vocabulary.
    """
    classes, width = require_count("classes", classes), require_width(width)
    size = scaled(require_count("embedding", embedding), width)
    units = scaled(require_count("hidden", hidden), width)
    layers, dropout = require_count("layers", layers), require_fraction("dropout", dropout)
    between = dropout if layers > 1 else 0.0  # torch warns of dropout after a single layer
    model = LanguageModel(
        nn.Embedding(classes, size),
        [nn.LSTM(size, units, layers, batch_first=True, dropout=between)],
        nn.Linear(units, classes),
        before=nn.Dropout(dropout),
        after=nn.Dropout(dropout),
    )
    return initialised(model, tied=False)


def awd_lstm(
    classes: int = 33_278,
    embedding: int = 400,
    hidden: int = 1150,
    last: int | None = None,
    layers: int = 3,
    experts: int = 1,
    dropout: float = 0.4,
    hidden_dropout: float = 0.2,
    input_dropout: float = 0.65,
    embedding_dropout: float = 0.1,
    weight_drop: float = 0.5,
    latent_dropout: float = 0.29,
    activity: float = 2.0,
    slowness: float = 1.0,
    width: float = 1.0,
) -> LanguageModel:
    """Build the AWD-LSTM of Merity et al. 2017 for WikiText-2, its read-out tied to the embedding.

    With ``experts=15, embedding=300, last=650`` it is the mixture of softmaxes of Yang et al. 2018, which returns
    logarithms of probabilities.

    Args:
        classes: the size of the vocabulary.
        embedding: length of a token's vector.
        hidden: units of each layer but the last.
        last: units of the last layer. Default: `embedding`; another needs a mixture.
        layers: number of LSTM layers.
        experts: softmaxes of the mixture; 1 is a plain softmax.
        dropout: probability, of the last outputs.
        hidden_dropout: probability, of the outputs between layers.
        input_dropout: probability, of the embedded tokens.
        embedding_dropout: probability, of whole words.
        weight_drop: probability, of recurrent weights.
        latent_dropout: probability, of the experts' vectors.
        activity: weight of activation regularisation.
        slowness: weight of temporal activation regularisation.
        width: factor of all sizes but the vocabulary and `experts`.
    """
    classes, width = require_count("classes", classes), require_width(width)
    experts = require_count("experts", experts)
    size = scaled(require_count("embedding", embedding), width)
    ends = size if last is None else scaled(require_count("last", last), width)
    sizes = [
        size,
        *[scaled(require_count("hidden", hidden), width)] * (require_count("layers", layers) - 1),
        ends,
    ]
    if experts == 1 and ends != size:
        raise RegrowValueError(
            f"`last` must be `embedding` = {embedding} where one softmax is tied to it, got {last}\n"
            "Leave it out, or take a mixture: experts=15."
        )
    drop = require_fraction("weight_drop", weight_drop)
    model = LanguageModel(
        DroppedEmbedding(classes, size, require_fraction("embedding_dropout", embedding_dropout)),
        [WeightDropLSTM(i, o, drop) if drop else nn.LSTM(i, o, batch_first=True) for i, o in pairwise(sizes)],
        nn.Linear(size, classes)
        if experts == 1
        else MixtureOfSoftmaxes(
            ends, size, classes, experts, require_fraction("latent_dropout", latent_dropout)
        ),
        before=LockedDropout(require_fraction("input_dropout", input_dropout)),
        between=LockedDropout(require_fraction("hidden_dropout", hidden_dropout)),
        after=LockedDropout(require_fraction("dropout", dropout)),
        activity=require_positive("activity", activity, zero=True),
        slowness=require_positive("slowness", slowness, zero=True),
    )
    return initialised(model, tied=True)
