"""The garbage collector of the test process, kept out of what is measured."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def heap_set_aside() -> Iterator[None]:
    """Lets full collections pass over what exists now.

    The heap of a test process holds thousands of tests, and a full collection of it takes some 0.3 s
    of whatever thread it meets. A process of the product has no such heap.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
