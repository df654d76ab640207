"""Measurements of the sparse kernels against dense PyTorch, and the check of what a machine has.

`command` does what ``regrow bench`` does with the cases that `plan` makes of its options. A case is measured by one
file: `layers` (with a small file for each kind of layer), `networks`, `updates`, `memory`, `scale`. `doctor` does what
``regrow doctor`` does.
"""
