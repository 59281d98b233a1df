"""Plot tables and draw schematics with matplotlib. No function here keeps a state.

- `show(figure, alt)`: a figure as a cell's output, with alternative text
- `change_by_part`, `change_over_steps`, `norm_by_layer`, `norm_spread`: the paper's Fig. 3 from `analysis` tables
- `layer_map`: every layer at every step as a heat map, from the same tables
- `pca_strip`: the paper's Fig. 2 from `pca_maps`
- `similarity_matrix`: every step against every other, from `step_similarity`
- `key_strips`: key steps and their groups, one row per schedule
- `group_errors`: a bar per group, as high as its error
- `span_costs`: the reuse cost of every span, and a schedule as a path through it
- `image_grid`, `image_row`: images of several methods, with their difference to the first; images side by side
- `key_step`, `timeline`, `speedup`, `landing`, `programme`: schematics, which bring their alternative text
- `html_image(figure, alt)`, `png_address(figure)`, `png(figure)`, `svg(figure)`: an HTML image, its address, and files
"""

from .images import image_grid, image_row
from .output import html_image, png, png_address, show, svg
from .schematics import key_step, speedup, timeline
from .schematics_of_calibration import landing, programme
from .style import BANDS, PETROFF, figure
from .tables import (
    change_by_part,
    change_over_steps,
    group_errors,
    key_strips,
    layer_map,
    norm_by_layer,
    norm_spread,
    pca_strip,
    similarity_matrix,
    span_costs,
)

__all__ = [
    "BANDS",
    "PETROFF",
    "change_by_part",
    "change_over_steps",
    "figure",
    "group_errors",
    "html_image",
    "image_grid",
    "image_row",
    "key_step",
    "key_strips",
    "landing",
    "layer_map",
    "norm_by_layer",
    "norm_spread",
    "pca_strip",
    "png",
    "png_address",
    "programme",
    "show",
    "similarity_matrix",
    "span_costs",
    "speedup",
    "svg",
    "timeline",
]
