"""The device of a pipeline, asked through `torch.accelerator`: CUDA, XPU and MPS by the same calls."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from models import denoiser, pipeline
from systems import ROWS

from fastdiff_lab.comparison.environment import about_machine
from fastdiff_lab.hooks import device as accelerator
from fastdiff_lab.hooks.device import device_of, free_bytes, peak_of, synchronize
from fastdiff_lab.sampling.batches import in_halves, one_decoded_at_a_time
from fastdiff_lab.sampling.methods import decode


@pytest.fixture(params=["cuda", "xpu", "mps"])
def present(request, monkeypatch):
    """An accelerator that notes what it is asked."""
    asked, device = [], torch.device(request.param, 0)

    def told(name, value=None):
        return lambda *given: asked.append((name, *given)) or value

    fake = SimpleNamespace(
        current_accelerator=lambda check_available: torch.device(request.param), synchronize=told("synchronize"),
        empty_cache=told("empty_cache"), get_memory_info=told("get_memory_info", (700, 1000)), memory_reserved=told("reserved", 200),
        memory_allocated=told("allocated", 150), reset_peak_memory_stats=told("reset"), max_memory_allocated=told("peak", 170),
    )  # fmt: skip
    monkeypatch.setattr(accelerator.torch, "accelerator", fake)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 900)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 150)
    return device, asked


def test_every_accelerator_is_waited_for_and_tells_its_memory(present):
    device, asked = present
    synchronize(device)
    accelerator.release_cache(device)
    assert asked == [("synchronize", device), ("empty_cache",)]
    assert free_bytes(device) == 750  # what torch keeps for reuse among it
    accelerator.begin_peak(device)
    assert peak_of(device) == 170 or (device.type == "mps" and peak_of(device) != peak_of(device))


def test_on_the_cpu_there_is_nothing_to_ask(present):
    _, asked = present
    cpu = torch.device("cpu")
    synchronize(cpu)
    assert not asked and free_bytes(cpu) is None and peak_of(cpu) != peak_of(cpu)


def test_offloaded_weights_rest_elsewhere_than_where_they_are_used():
    here = pipeline()
    assert device_of(here).type == "cpu"
    offloaded = SimpleNamespace(unet=denoiser(), _execution_device=torch.device("cuda:1"))
    assert device_of(offloaded) == torch.device("cuda:1")
    offloaded.unet.to("meta")  # sequentially
    assert device_of(offloaded) == torch.device("cuda:1")
    assert device_of(SimpleNamespace(unet=denoiser().to("meta"))) == torch.device("meta")


@pytest.mark.parametrize("precision", ["tf32", "ieee", "none"])
def test_tf32_is_told_however_it_was_set(precision):
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = precision
        assert about_machine("cpu")["tf32"] == (precision == "tf32")
    finally:
        matmul.fp32_precision = before


def test_off_the_cpu_images_are_decoded_one_by_one(monkeypatch):
    pipe, rows = ROWS["sd"].build(), []
    latents = torch.randn((3, 4, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = decode(pipe, latents)
    handle = pipe.vae.decoder.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    decode(pipe, latents)
    monkeypatch.setattr("fastdiff_lab.sampling.batches.device_of", lambda pipe: torch.device("cuda"))
    apart = decode(pipe, latents)
    handle.remove()
    assert rows == [3, 1, 1, 1] and not pipe.vae.use_slicing
    assert [image.tobytes() for image in apart] == [image.tobytes() for image in together]
    pipe.vae.use_slicing = True  # as the user wants it
    with one_decoded_at_a_time(pipe):
        assert pipe.vae.use_slicing
    assert pipe.vae.use_slicing


def test_batches_are_halved_where_memory_runs_out():
    pipe, sizes = pipeline(), []

    def draw(part):
        sizes.append(part.stop - part.start)
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(range(part.start, part.stop))

    with pytest.warns(UserWarning, match=r"memory ran out with .* images at once; going on with batch_size=(4|2)"):
        found = [number for _, part in in_halves(pipe, [slice(0, 7), slice(7, 14)], draw) for number in part]
    assert found == list(range(14))
    assert sizes == [7, 4, 2, 2, 3, 2, 2, 2, 1] or sizes.count(7) == sizes.count(4) == 1


def test_a_single_image_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        list(in_halves(pipeline(), [slice(0, 1)], lambda part: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory"))))
