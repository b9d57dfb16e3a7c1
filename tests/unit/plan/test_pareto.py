"""The front against a comparison of every pair."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plan_cases import dominated

from moesaic.plan.search import pareto


@settings(deadline=None)
@example([(1e-20, 1.0), (0.0, 1.0), (1.0, 0.0), (1.0, 0.5)])  # a sum that hides which is smaller
@given(
    st.integers(1, 3).flatmap(
        lambda k: st.lists(st.tuples(*[st.integers(0, 6) | st.floats(0, 1e9, width=32)] * k), max_size=40)
    )
)
def test_pareto_front_has_no_dominated_member_and_misses_none(points: list[tuple[float, ...]]) -> None:
    array = np.array(points, float).reshape(len(points), -1 if points else 1)
    assert set(pareto(array).tolist()) == set(range(len(points))) - dominated(array)
