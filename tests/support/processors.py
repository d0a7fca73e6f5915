"""Which tests need what a processor has."""

import pytest

from rl_reasoner.kernels import integer_weights

needs_int8 = pytest.mark.skipif(
    not integer_weights.work(), reason="no exact products of 8-bit integers on this processor"
)
