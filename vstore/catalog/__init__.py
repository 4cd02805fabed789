"""What changes: refs, the snapshot log, operations, config, gc state, all by one atomic call.

`base` is the contract, `transaction` what is asked and answered, `conditions` the pure check of preconditions;
`sqlite` and `log` implement it; `location` decides which one a place uses. Every implementation passes
`vstore.testing.catalog_contract`.
"""
