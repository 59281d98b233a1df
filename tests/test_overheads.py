"""What the library itself costs: the report, on a tiny pipeline. No second is asserted."""

from __future__ import annotations

import pytest
from systems.stable_diffusion import drawing_small

from studies.bench.overheads import measure


@pytest.mark.long
def test_hooks_recording_and_a_fit_are_measured():
    found = measure(drawing_small(), num_inference_steps=20, repeats=1)
    assert found["every_step_a_key"]["pairs"] == found["fit"]["sampling"]["pairs"] == 3
    assert found["fit"]["images"] == 8 and found["fit"]["fitting_seconds"] > 0 < found["fit"]["sampling"]["of_the_fastest"]
    memory = found["peak_bytes"]
    assert memory["baseline"] < memory["paper, serial"] < memory["paper, parallel"]
