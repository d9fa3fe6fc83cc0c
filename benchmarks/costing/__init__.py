"""Parts of the benchmark `benchmarks/adapter_cost.py`, one question each."""
