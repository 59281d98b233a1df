"""The explainer page: one HTML file that anyone can try, made of measured data: `python -m studies.explainer docs/explainer.html`."""
