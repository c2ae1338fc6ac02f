"""The course's applications: what its tests and notebooks import beside `needle`."""
