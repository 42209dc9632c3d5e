"""LADA itself, in plain torch, NumPy and scikit-learn: readable and testable without Ray or MLflow.

Read in the order of the algorithm (Luo, Zhou, Wei, Zhang, ICML 2025, arXiv 2505.23271):

    settings   the hyperparameters
    memory     label-specific memory vectors: k-means initialisation and grouped logits
    tuner      AdaptFormer in CLIP's text tower
    prompts    what prompts have in common, computed once
    mixture    per-class Gaussian mixtures, and the features replayed from them
    draws      every random draw, as a pure function of (seed, task, step)
    objective  logits over all seen classes and the weighted cross-entropy
    learner    the optimisation of one task, step by step
    fusion     the gate between seen and unseen classes at prediction time
"""
