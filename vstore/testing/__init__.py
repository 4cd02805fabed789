"""What vstore's tests are made of, shipped for those who write a storage or test on top of vstore.

`storage_contract` and `catalog_contract` hold the tests that every storage and every catalog must pass, `faults` a
storage that fails on demand, `proxy` the network before a server that does. Imported by nothing else in vstore.
"""
