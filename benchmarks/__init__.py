"""vstore beside its peers and the machine's own limits, in one run: `python -m benchmarks --help`."""
