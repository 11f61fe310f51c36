"""The garbage collector of the test process, kept out of what is measured."""

import gc


def set_heap_aside() -> None:
    """Lets all collections from now on pass over what exists now, once what is garbage is gone.

    The heap of a test process holds thousands of tests, and a full collection of it takes some 0.3 s
    of whatever thread it meets. A process of the product has no such heap.
    """
    gc.collect()
    gc.freeze()
