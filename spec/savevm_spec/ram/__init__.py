"""The section "ram": guest memory, in four versions.

Version 4 (since 0.13) and 3 (0.10 to 0.12) are be64 words of address | flags.  Flags are the bits
below the target page size.  Each word announces what follows it; the word EOS ends a body.
``blocks`` is the list of blocks behind MEM_SIZE, ``pages`` the page records, and ``body`` the
whole.

Before version 4 all RAM is one block without a name: ``unnamed``.  Before version 3 it comes as a
whole, page by page as it is (``plain``, version 1) or compressed (``chunks``, version 2).
"""
