"""The executor: programs, storage, threads, caches and packages."""

from nir.runtime._core import (
    Storage,
    Watch,
    get_num_threads,
    holdings,
    memory_stats,
    reset_peak_memory,
    set_num_threads,
    trim_memory,
)
from nir.runtime.cache import CacheStats, ObjectCache, object_cache
from nir.runtime.executable import Executable, InterpExecutable, as_storage, best_isa
from nir.runtime.host import HostKernel
from nir.runtime.loaded import Loaded, load
from nir.runtime.profile import CallTime, Line, Piece, Profile, Roofs
from nir.runtime.stored import Entry, Stored, entry_of

__all__ = [
    "CacheStats",
    "CallTime",
    "Entry",
    "Executable",
    "HostKernel",
    "InterpExecutable",
    "Line",
    "Loaded",
    "ObjectCache",
    "Piece",
    "Profile",
    "Roofs",
    "Storage",
    "Stored",
    "Watch",
    "as_storage",
    "best_isa",
    "entry_of",
    "get_num_threads",
    "holdings",
    "load",
    "memory_stats",
    "object_cache",
    "reset_peak_memory",
    "set_num_threads",
    "trim_memory",
]
