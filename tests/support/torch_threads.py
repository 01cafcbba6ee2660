"""torch with another number of threads, for as long as a test needs it."""

import contextlib

import torch


@contextlib.contextmanager
def threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
