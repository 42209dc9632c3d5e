"""Forgetting a domain or a class: a version without it, then the deletion of all that is left of it.

    subject     what is to be forgotten, and where it stands
    packs       the model's packs without it
    erase       deletion from storage
    forgetting  the order of it all, which a kill at any point does not upset

What is deleted: packs that were made with it and the versions that consist of them (their records stay in the
history), rows of every feature bank of the storage, k-means and mixtures, lists of images, pages with pictures, rows,
candidates, and in MLflow the versions, their uploads, and what the stream's own runs hold. What is not ours stays:
the image files themselves, the inbox, other runs and sweeps that learnt the same images, copies that were exported.
"""

from lada_ray.forget.forgetting import Forgotten, finish_forgetting, forget, is_forgetting
from lada_ray.forget.subject import Subject

__all__ = ["Forgotten", "Subject", "finish_forgetting", "forget", "is_forgetting"]
