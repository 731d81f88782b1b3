"""From Amplitude to a DuckDB file and a picture: what `make demo` and `make sync` run."""
