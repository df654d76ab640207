"""The layout of activations between sparse convolutions, and what is computed in it."""
