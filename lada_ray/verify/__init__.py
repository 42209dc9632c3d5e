"""Whether a run's numbers are what its packs and the feature bank give, and what has changed since it was learnt.

Nothing is written, nothing is learnt or encoded, and no cluster is needed.

    record     the run's folder as it is
    rows       its rows, recomputed
    numbers    what it records, what the rows give, and where these differ
    changes    configuration, model.json, code and encoder, then and now
    images     the images, then and now
    verdict    all of it
"""

from lada_ray.verify.numbers import Difference
from lada_ray.verify.verdict import Verdict, show, verify

__all__ = ["Difference", "Verdict", "show", "verify"]
