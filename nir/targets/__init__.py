"""Targets: tables of which kernel covers which op on a machine. Lowering lives here, not in ops."""
