"""How fast and how small the streams of events are, side by side with what else there is.

`python -m benchmarks` (or `make bench`) reads the same archives from the sandbox with this
connector, with what published connectors do, and with next to nothing, and writes the ratios to
`benchmarks/report/`. Linux only: memory and disk are read from /proc.
"""
