"""Benchmarks: commands, not tests. python -m odenet_lightning.benchmarks.solve"""
