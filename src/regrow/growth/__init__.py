"""Which free positions would grow: scores, and the search that never holds a dense gradient.

    the step's dense gradient (`gradient.DenseGradient`): whole, or computed from operands a tile at a time
        -> what each position of a tile is worth (`scores.Score`), by a kernel where the score has one
        -> the best of all tiles, or of each row (`search.best`, `search.best_of_rows`)

`among.Among` narrows a search to some of the columns.
"""
