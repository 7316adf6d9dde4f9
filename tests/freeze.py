"""Imported last by the server of `warm`: what was imported before is no longer garbage collection's concern.

Otherwise, each forked program spends half a second on its first full collection, which also copies all pages.
"""

import atexit
import gc

gc.collect()
gc.freeze()
# compiled extensions complain about objects that are left when the server ends
atexit.register(gc.unfreeze)
