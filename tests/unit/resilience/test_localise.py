"""What is known of a run from outside is enough to name the rank that is slow and the tensor that is not finite."""

import math
import threading
import time
from pathlib import Path

import torch
from torch import nn

import tiny
from moesaic.resilience.beats import Beat, BeatFile, Heartbeat, innermost, read_beats
from moesaic.resilience.incidents import incidents, report
from moesaic.resilience.localise import GradientWatch, SlowRanks, WorkClock, backward_order, first_not_finite
from moesaic.resilience.places import waits


def beats(step: int, seconds: list[float]) -> dict[int, Beat]:
    return {r: Beat(r, 1, 0.0, "between", step, step, working=s, busy_in=f"f.py:{r} g") for r, s in enumerate(seconds)}


def test_a_rank_that_is_often_slower_is_named_once() -> None:
    ranks = SlowRanks()
    found = [slow for step in range(2, 20) for slow in ranks.look(beats(step, [0.1, 0.1, 0.31, 0.1]))]
    assert [(s.rank, round(s.seconds, 2), s.place) for s in found] == [(2, 0.21, "f.py:2 g")]


def test_a_rank_that_is_slow_now_and_then_is_not() -> None:
    ranks = SlowRanks()
    times = [[0.1, 0.1 + 0.3 * (step % 2)] for step in range(2, 20)]
    assert not [slow for step, t in enumerate(times, start=2) for slow in ranks.look(beats(step, t))]


def test_a_rank_that_recovered_is_named_again() -> None:
    ranks = SlowRanks()
    seconds = [0.4] * 8 + [0.1] * 8 + [0.4] * 8
    found = [s for step, t in enumerate(seconds, start=2) for s in ranks.look(beats(step, [0.1, t]))]
    assert [s.rank for s in found] == [1, 1]


def test_the_clock_tells_work_from_waiting() -> None:
    clock = WorkClock()
    clock.take()
    deadline = time.perf_counter() + 0.3
    while time.perf_counter() < deadline:
        pass
    working, place = clock.take()
    assert working > 0.1
    assert "test_localise.py" in place


def test_frames_of_collectives_are_waiting() -> None:
    assert waits("distributed_c10d.py:3252 all_reduce")
    assert waits("schedules.py:700 _wait_batch_p2p")
    assert not waits("schedules.py:700 _step_microbatches")
    assert not waits("faults.py:216 _hang")


def test_the_innermost_frame_of_a_dump_is_read() -> None:
    dump = 'Stack (most recent call first):\n  File "/a/b.py", line 3 in f\n  File "/a/c.py", line 9 in g\n'
    assert innermost("old\n" + dump + dump.replace("b.py", "d.py")) == "d.py:3 f"
    assert innermost("") == ""


def test_weights_are_ordered_as_the_backward_pass_meets_them() -> None:
    names = ["embedding", "layers.0.attention.wq", "layers.10.attention.wq", "layers.10.experts.w_in", "norm.weight"]
    assert sorted(names, key=backward_order) == list(reversed(names))


def step(watch: GradientWatch, number: int, net: nn.Module, norm: float, seconds: float = 1.0) -> None:
    net(torch.ones(2, 4)).sum().backward()
    watch.step_begins(number)
    watch.gradients_ready(number)
    watch.step_ends({"step": number, "grad_norm": norm, "loss": 1.0, "seconds": seconds})
    net.zero_grad()


def test_only_a_norm_that_is_not_finite_is_reported(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    watch = GradientWatch(tmp_path, 3)
    watch.stage_ready(tiny.stage(), [net], torch.optim.SGD(net.parameters()))
    for number in range(1, 5):
        step(watch, number, net, 1.0)
    assert not incidents(tmp_path)
    hook = net[1].weight.register_hook(lambda g: g * math.inf)
    step(watch, 5, net, math.nan)
    hook.remove()
    (found,) = incidents(tmp_path, "not_finite")
    assert (found["rank"], found["tensors"], found["looked"]) == (3, ["1.weight"], True)


def test_a_weight_of_which_this_rank_holds_no_piece(tmp_path: Path) -> None:
    """With more replicas than rows, some shards are empty: an empty tensor has no largest value."""
    net = nn.Sequential(nn.Linear(4, 4))
    net.register_parameter("empty", nn.Parameter(torch.zeros(0, 4)))
    net.get_parameter("empty").grad = torch.zeros(0, 4)
    watch = GradientWatch(tmp_path, 0)
    watch.stage_ready(tiny.stage(), [net], torch.optim.SGD(net.parameters()))
    net(torch.ones(2, 4)).sum().backward()
    net[0].weight.grad.fill_(math.inf)
    watch.step_begins(1)
    watch.gradients_ready(1)
    watch.step_ends({"step": 1, "grad_norm": math.inf, "loss": 1.0, "seconds": 1.0})
    assert [i["tensors"] for i in incidents(tmp_path)] == [["0.weight"]]


def test_where_looking_is_dear_it_begins_after_the_first_time(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    watch = GradientWatch(tmp_path, 0)
    watch.stage_ready(tiny.stage(), [net], torch.optim.SGD(net.parameters()))
    for number in range(1, 6):
        step(watch, number, net, 1.0, seconds=1e-7)
    net[0].weight.register_hook(lambda g: g * math.nan)
    step(watch, 6, net, math.nan, seconds=1e-7)
    step(watch, 7, net, math.nan, seconds=1e-7)
    assert [(i["looked"], i["tensors"]) for i in incidents(tmp_path)] == [(False, []), (True, ["0.weight"])]


def test_the_first_tensor_over_all_ranks_is_the_one_nearest_to_the_loss(tmp_path: Path) -> None:
    """A NaN spreads to all layers below, on all ranks that hold them."""
    for rank, names in enumerate((["layers.0.a"], ["layers.3.a", "layers.2.a"], ["layers.3.a"], [])):
        report(
            tmp_path, "not_finite", step=9, rank=rank, looked=True, count=1, tensors=names, modules=[], loss_finite=True
        )
    found = first_not_finite(tmp_path, 9)
    assert found is not None
    assert (found.tensor, found.ranks) == ("layers.3.a", (1, 2))
    assert first_not_finite(tmp_path, 8) is None


def test_of_sharded_gradients_the_rank_that_brought_it_is_named_and_not_the_one_that_holds_the_sum(
    tmp_path: Path,
) -> None:
    """Ranks 0 and 2 hold pieces of the sum; rank 1 put the NaN in, whose own pieces are all finite."""
    for rank, names, modules in ((0, ["layers.3.a"], []), (1, [], ["layers.3"]), (2, ["layers.3.a"], [])):
        report(
            tmp_path, "not_finite", step=9, rank=rank, looked=True, count=1, tensors=names, modules=modules,
            loss_finite=True,
        )  # fmt: skip
    found = first_not_finite(tmp_path, 9)
    assert found is not None
    assert (found.tensor, found.ranks) == ("layers.3.a", (1,))


def test_a_heartbeat_tells_where_a_rank_stands(tmp_path: Path) -> None:
    pulse = Heartbeat(BeatFile(tmp_path, 2))
    said = []
    for call in (
        lambda: None,
        lambda: pulse.step_begins(7),
        lambda: pulse.gradients_ready(7),
        lambda: pulse.step_ends({}),
        lambda: pulse.saving(7, "copied"),
        lambda: pulse.saving(7, "committed"),
    ):
        call()
        beat = read_beats(tmp_path)[2]
        said.append((beat.step, beat.phase, beat.steps))
    assert said == [
        (0, "start", 0), (7, "step", 0), (7, "update", 0), (7, "between", 1), (7, "saving", 1), (7, "between", 1),
    ]  # fmt: skip


def test_a_record_is_read_whole_while_it_is_written(tmp_path: Path) -> None:
    file = BeatFile(tmp_path, 0)
    over = threading.Event()

    def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            file.write(step=number, text="x" * (number % 900))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = [read_beats(tmp_path) for _ in range(2000)]
    finally:
        over.set()
        writer.join()
    whole = [b[0] for b in seen if b]
    assert len(whole) > 1000
    assert all(beat.text == "x" * (beat.step % 900) for beat in whole)
