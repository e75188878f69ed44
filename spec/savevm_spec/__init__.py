"""The grammar of QEMU's savevm / migration stream.

``constants``, ``rules``, ``dialects`` and ``devices`` are plain data that any implementation may
import.  The other modules are the executable grammar itself and need the ``construct`` package.
"""
