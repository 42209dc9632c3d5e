"""Fitting, distributed: k-means and mixtures over CPU tasks (`classes`), tasks in Ray Train (`task`)."""
