"""Widgets; the only importer of ipywidgets and anywidget.

>>> from fastdiff_lab.lab.widget import schedule_lab
>>> lab = schedule_lab(fl.load_pipeline())  # doctest: +SKIP
>>> lab  # in a notebook, the last line of a cell  # doctest: +SKIP
"""

from ...inputs.extras import check_installed, extra

check_installed("anywidget", "lab", "fastdiff_lab.lab.widget")  # named first, whatever else is missing
with extra("lab", "fastdiff_lab.lab.widget"):
    from .recording_explorer import RecordingExplorer, recording_explorer
    from .schedule_lab import ScheduleLab, schedule_lab

__all__ = ["RecordingExplorer", "ScheduleLab", "recording_explorer", "schedule_lab"]
