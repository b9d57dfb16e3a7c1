"""The vectorised training model equals the scalar reference, term by term."""

import pytest
from hypothesis import given, settings
from plan_cases import Case, cases, staged

from moesaic.plan.memory import Memory, memory, memory_total
from moesaic.plan.reference_time import ReferenceTime
from moesaic.plan.step import PARTS, step_time


def near(value: float) -> object:
    return pytest.approx(value, rel=1e-9, abs=1e-15)


@settings(max_examples=300)
@given(cases())
def test_memory_is_that_of_the_heaviest_of_all_stages(case: Case) -> None:
    found = memory(case.shape, case.job, case.layouts, case.stack)
    totals = memory_total(case.shape, case.job, case.layouts, case.stack)
    for i, row in enumerate(case.layouts):
        wanted = ReferenceTime(case.shape, case.job, row, case.device, case.stack).memory()
        assert {n: float(getattr(found, n)[i]) for n in Memory.__dataclass_fields__} == near(wanted)
        assert found.total[i] == near(sum(wanted.values()))
        assert totals[i] == near(sum(wanted.values()))


@settings(max_examples=300)
@given(cases())
def test_a_step_is_all_micro_batches_on_the_slowest_of_all_stages(case: Case) -> None:
    found = step_time(case.shape, case.job, case.layouts, case.device, case.stack)
    for i, row in enumerate(case.layouts):
        wanted = ReferenceTime(case.shape, case.job, row, case.device, case.stack).step()
        assert set(wanted) == set(PARTS)
        assert {n: float(getattr(found, n)[i]) for n in PARTS} == near(wanted)
        assert found.total[i] == near(sum(wanted.values()))


@settings(max_examples=500)
@given(staged())
def test_no_stage_is_overlooked(case: Case) -> None:
    """The fast path looks at a few stages only; here each stage may differ from its neighbours."""
    one = ReferenceTime(case.shape, case.job, case.layouts.row(0), case.device, case.stack)
    assert memory_total(case.shape, case.job, case.layouts, case.stack)[0] == near(sum(one.memory().values()))
    found = step_time(case.shape, case.job, case.layouts, case.device, case.stack)
    assert found.total[0] == near(sum(one.step().values()))
