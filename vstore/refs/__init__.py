"""What moves branches and tags, and the log of what was done: one catalog transaction for each change.

A `Change` is decided on a view of the catalog and applied by `apply` (`change`). `branches` makes, moves and deletes
branches and tags, `protection` keeps branches from being moved back, `operations` reads the log, and `undo` puts refs
back to what it says they held. `repository` gives all of this its public names, `history` finds the snapshots.
"""

from vstore.keys.refs import MAIN
from vstore.refs.change import Change, Done, Plan, apply, carry_out, set_value, settled
from vstore.refs.operations import OperationInfo, iter_operations, operation_info

__all__ = [
    "MAIN",
    "Change",
    "Done",
    "OperationInfo",
    "Plan",
    "apply",
    "carry_out",
    "iter_operations",
    "operation_info",
    "set_value",
    "settled",
]
