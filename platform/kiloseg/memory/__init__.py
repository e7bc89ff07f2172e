"""Memory as a measurement."""

from kiloseg.memory.out_of_memory import is_out_of_memory
from kiloseg.memory.peak import GIB, PeakMemory

__all__ = ["GIB", "PeakMemory", "is_out_of_memory"]
