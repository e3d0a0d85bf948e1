"""One module a benchmark: `run()` measures and returns figures."""
