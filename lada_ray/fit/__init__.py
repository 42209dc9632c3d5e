"""Fitting, distributed: k-means and mixtures over CPU tasks (`classes`), one task after another in Ray Train (`task`)."""
