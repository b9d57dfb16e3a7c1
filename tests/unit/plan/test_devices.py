"""The registry of devices: what measurements call them, their peaks, and the sanity of each row."""

import pytest

from moesaic.errors import PlanError
from moesaic.plan.device import device, devices

# Devices of published measurements, with the nominal peak that their authors divided by, in TFLOP/s.
MEASURED = [
    ("A100-40G-SXM", "fp16", 312),
    ("A100-80G-SXM", "bf16", 312),
    ("B200", "bf16", 2250),
    ("B200", "mxfp8", 4500),
    ("B200", "nvfp4", 9000),
    ("B300", "bf16", 2250),
    ("B300", "fp8", 4500),
    ("B300", "nvfp4", 14000),
    ("GB200", "bf16", 2500),
    ("GB200", "fp8", 5000),
    ("GB200", "nvfp4", 10000),
    ("GB300", "bf16", 2500),
    ("GB300", "mxfp8", 5000),
    ("GB300", "nvfp4", 15000),
    ("H100-80G-SXM", "bf16", 989.4),
    ("H100-80G-SXM", "fp8", 1979),
    ("H100-96G-500W", "bf16", 989.4),
    ("H200-141G-SXM", "fp8", 1979),
    ("H800", "bf16", 989),
    ("TPUv3", "bf16", 123),
    ("TPUv4", "bf16", 275),
    ("TPUv5p", "bf16", 459),
    ("TPUv6e", "bf16", 917),
    ("V100", "fp16", 125),
]
# 8 B300 are 108 PFLOP/s of dense FP4 = 13.5 each; the maker's column per GPU rounds it to 14.
ROUNDED = {("B300", "nvfp4"): 0.04}


@pytest.mark.parametrize(("name", "precision", "tflops"), MEASURED)
def test_peaks_are_those_that_measurements_divide_by(name: str, precision: str, tflops: float) -> None:
    tolerance = ROUNDED.get((name, precision), 0.002)
    assert device(name).peak(precision) / 1e12 == pytest.approx(tflops, rel=tolerance)


@pytest.mark.parametrize("name", ["MI325X", "RTX-PRO-6000-96G", "TPU7x-Ironwood", "mi300x", "MI355X", "h20"])
def test_devices_without_a_published_peak_resolve(name: str) -> None:
    assert device(name).peak("bf16") > 1e14


def test_names_are_one_device_in_any_case() -> None:
    assert device("H100") is device(" h100-80g-sxm ") is devices()["h100"]


def test_no_two_devices_share_a_name() -> None:
    names = [n.lower() for d in devices().values() for n in (d.name, *d.aliases)]
    assert len(names) == len(set(names))


def test_the_fast_link_ends_at_eight_but_for_racks_and_pods() -> None:
    domains = {name: d.domain for name, d in devices().items()}
    assert {n for n, size in domains.items() if size == 72} == {"gb200", "gb300"}
    assert all(size > 72 for n, size in domains.items() if n.startswith("tpu"))
    assert all(size == 8 for n, size in domains.items() if not n.startswith(("tpu", "gb")))


@pytest.mark.parametrize("d", devices().values(), ids=lambda d: d.name)
def test_rows_make_sense(d: object) -> None:
    from moesaic.plan.device import Device

    assert isinstance(d, Device)
    assert d.source
    assert d.memory_gb > 0
    assert d.watts > d.host_watts / 2 > 0
    assert d.domain_gb_s > d.network_gb_s > 0
    # A byte of memory traffic is worth 100 to 600 FLOP in 16 bit on every part since the V100; H20 was cut below it.
    ratio = d.peak("fp16") / (d.memory_tb_s * 1e12)
    assert 30 < ratio < 600
    if "fp8" in d.tflops and "bf16" in d.tflops:
        assert d.tflops["fp8"] == pytest.approx(2 * d.tflops["bf16"], rel=0.01)


def test_a_precision_that_a_device_lacks_is_an_error_that_lists_the_others() -> None:
    with pytest.raises(PlanError, match="no fp8; use one of bf16, int8"):
        device("a100").peak("fp8")
    with pytest.raises(PlanError, match="no bf16; use one of fp16"):
        device("v100").peak("bf16")


def test_an_unknown_device_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(PlanError, match="no device 'k80'; known: v100, a100-40"):
        device("k80")
