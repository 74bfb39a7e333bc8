"""The parts of ``benchmarks/cpu_vs_peers.py``: what is measured, each engine, and the report."""
