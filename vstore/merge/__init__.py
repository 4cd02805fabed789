"""Three-way merges: what two sides made of one base, put together, and what to do where they clash.

`conflicts` says what a clash is, `solvers` decide, `cells` reads and writes the values of chunks. `sides` says what
each side did, `decisions` what was decided of it, `places` where nodes end up, `problems` what can't be, `grids` who
holds where an array's meaning changed, `questions` asks the solver, `chunks` merges refs, and `three_way` makes the
merged worktree of it all. Below: `worktree`; above: `rebase`, `comparison`, `session`, `branching`.
"""
