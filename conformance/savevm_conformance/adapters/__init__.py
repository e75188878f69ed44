"""Adapters: programs that speak the protocol for the implementations that there are.

Each module is one, run as ``python -m savevm_conformance.adapters.<name>``.
"""
