"""Entropy coding of integers, exact on every machine.

Which module to use:

- To write symbols whose probabilities come from frozen tables, use `range_coder`: `RangeEncoder` and `RangeDecoder`
  turn int32 symbols and one table index per symbol into bytes and back. `ideal_bits` computes what they will cost.
- To hold the probabilities, use `tables.Tables`: integer weights that sum to 2**24 per table, stored in weights files.
  Tables are made from probabilities when a model is exported (`train/export/tables.py`), never while coding.
- To choose the table of a symbol with a neural network, use `integer_net.IntegerNet`: it evaluates the network in exact
  integers, so encoder and decoder choose the same table on every device.
- To draw random numbers that encoder and decoder share, use `philox`: each number is a function of its address alone.

A model that adapts to a picture passes its own `Tables` to `encode` and `decode` at each step, together with an array
that counts the coded entries. Symbols that no table covers need no special treatment: every table ends in an escape.

Example:
    >>> import numpy as np
    >>> from latcodec.entropy.range_coder import RangeDecoder, RangeEncoder
    >>> from latcodec.entropy.tables import Tables
    >>> tables = Tables(np.array([2**22, 2**23, 2**22 - 1, 1]), np.array([0, 4]), np.array([-1]))
    >>> encoder = RangeEncoder(tables)
    >>> encoder.encode(np.array([-1, 0, 0, 1, 0], np.int32), np.zeros(5, np.uint16))
    >>> data = encoder.finish()
    >>> data.hex(" ", 4)
    'fcffff24'
    >>> decoder = RangeDecoder(data, tables)
    >>> decoder.decode(np.zeros(5, np.uint16)).tolist()
    [-1, 0, 0, 1, 0]
    >>> decoder.finish()
"""
