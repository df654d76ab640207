"""Model in, model out: fusing, folding, compacting, compressing."""
