"""The executor: programs, storage, threads, caches and packages."""
