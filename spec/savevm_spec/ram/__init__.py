"""The live section "ram", version 4 (since 0.13): be64 words of address | flags.

Flags are the bits below the target page size.  Each word announces what follows it; the word EOS
ends a body.  ``blocks`` is the list of blocks behind MEM_SIZE, ``pages`` the page records, and
``body`` the whole.
"""
