"""bfloat16 is used where it is fast, checked against the CPU flags that the Linux kernel reports and the resulting
dtypes."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from small_detector import build_detector

from ovd import precision
from ovd.clip.load import load_clip
from ovd.format_count import format_count
from ovd.inference import Inference
from ovd.model.detection_options import DetectionOptions
from ovd.model.query_texts import QueryTexts
from ovd.precision import (
    Compute,
    describe_machine,
    deterministic,
    fast_low_precision,
    use_low_precision,
)

CPU = torch.device("cpu")


@contextmanager
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def test_fast_where_the_kernel_lists_the_instructions():
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        pytest.skip("no /proc/cpuinfo to compare with")
    words = set(cpuinfo.read_text().split())
    assert fast_low_precision(CPU) == bool(words & {"amx_tile", "avx512_bf16"})


@pytest.mark.parametrize("amx", [True, False])
def test_auto_follows_the_machine_and_a_choice_overrides_it(monkeypatch, amx: bool):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert use_low_precision("auto", CPU) == amx
    assert use_low_precision("bf16", CPU)
    assert not use_low_precision("float32", CPU)
    assert ("AMX" in describe_machine(CPU)) == amx


def test_auto_asks_each_cuda_device(monkeypatch):
    asked = []

    def select(device: torch.device) -> AbstractContextManager[None]:
        asked.append(device)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device", select)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert not fast_low_precision(torch.device("cuda:1"))
    assert asked == [torch.device("cuda:1")]


@pytest.mark.parametrize(("enabled", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_autocast_and_layout(enabled: bool, dtype: torch.dtype):
    compute = Compute(CPU, enabled)
    convolution = compute.place(torch.nn.Conv2d(3, 8, 3))
    images = torch.randn(1, 3, 6, 9).to(memory_format=compute.memory_format)
    with compute.autocast():
        out = convolution(images)
    assert out.dtype == dtype
    assert convolution.training
    assert convolution.weight.is_contiguous(memory_format=compute.memory_format)
    (gradient,) = torch.autograd.grad(out.sum(), [convolution.weight])
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize("has_onednn", [True, False])
def test_what_learns_nothing_is_channels_last_in_float32_on_a_cpu_with_onednn(monkeypatch, has_onednn: bool):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: has_onednn)
    expected = torch.channels_last if has_onednn else torch.contiguous_format
    frozen = Compute(CPU, False).freeze(torch.nn.Conv2d(3, 8, 3))
    assert not frozen.training
    assert not frozen.weight.requires_grad
    assert frozen.weight.is_contiguous(memory_format=expected)
    assert Compute(CPU, True).frozen_memory_format == torch.channels_last
    assert Compute(torch.device("cuda"), False).frozen_memory_format == torch.contiguous_format


def test_machine_line_names_what_bits_depend_on(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    line = describe_machine(CPU)
    assert "\n" not in line
    for fact in (
        torch.__version__,
        f", {format_count(torch.get_num_threads(), 'thread')}, ",
        "ONEDNN_MAX_CPU_ISA=AVX2",
    ):
        assert fact in line
    assert torch.backends.cpu.get_cpu_capability() in line


@pytest.mark.parametrize(
    ("limit", "instructions"),
    [
        (None, ["AMX", "AVX512-BF16"]),
        ("all", ["AMX", "AVX512-BF16"]),
        ("AVX512_CORE_AMX", ["AMX", "AVX512-BF16"]),
        ("AVX512_CORE_BF16", ["AVX512-BF16"]),
        ("AVX512_CORE", []),
        ("avx2", []),
    ],
)
def test_instructions_that_onednn_may_not_use_do_not_count(monkeypatch, limit, instructions):
    for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: True, raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert precision._cpu_bf16_instructions() == instructions
    assert fast_low_precision(torch.device("cpu")) == bool(instructions)


def test_a_deterministic_block_leaves_a_warning_a_warning():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with deterministic(True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_model_is_not_loaded_where_float64_is_the_default():
    with (
        float64_by_default(),
        pytest.raises(ValueError, match=r"default dtype is torch\.float64; call torch\.set_default_dtype"),
    ):
        load_clip("tiny")


@pytest.mark.parametrize("task_aligned", [False, True])
def test_a_loaded_detector_detects_in_float32_whatever_the_default_is(untrained_clip, task_aligned):
    detector = build_detector(untrained_clip, "pyramid", "head", task_aligned=task_aligned).eval()
    image = np.random.default_rng(0).integers(0, 256, (80, 96, 3), dtype=np.uint8)
    text = torch.nn.functional.normalize(torch.randn(5, 256, generator=torch.Generator().manual_seed(0)), dim=1)
    for threshold in (0.001, 1.0):  # keeps many, or none
        options = DetectionOptions(score_threshold=threshold)
        inference = Inference(detector, size=96, options=options, low_precision=False)
        expected = inference.image(QueryTexts(text), image)
        with float64_by_default():
            found = inference.image(QueryTexts(text), image)
        assert (len(expected.boxes) > 0) == (threshold < 1)
        assert found.boxes.dtype == found.scores.dtype == torch.float32
        torch.testing.assert_close(found.boxes, expected.boxes)
        torch.testing.assert_close(found.scores, expected.scores)
