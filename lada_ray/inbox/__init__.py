"""The inbox: a folder or bucket in which new domains arrive, and the checks that each has to pass before it is learnt.

    <inbox>/<entry>/domain.yaml      name, kind and that kind's keys, prompt, class_names, owner, shots, ...
    <inbox>/<entry>/...              its data, as its kind has it
    <inbox>/<entry>/_READY           written last: without it nobody looks at the rest
    <inbox>/<entry>/_REJECTED.json   written by us: why it was not learnt

On the way to being learnt an entry goes through `scan`, `validate`, the hashing of its images, and `recognise`; what
is wrong with it goes to `reject`, and the others go on. Whoever writes into an inbox need not be trusted: all that an
entry names has to lie in its own folder, and its YAML may neither be large nor repeat itself.
"""

from lada_ray.inbox.card import CARD_LIMIT, Arrival, Card, parse_card
from lada_ray.inbox.content import Known, Recognition, content_key, images_by_class, overlap_share, recognise
from lada_ray.inbox.entries import (
    ADVICE,
    CARD,
    OURS,
    READY,
    REJECTED,
    Entry,
    Scan,
    check_there,
    clear_rejection,
    reject,
    scan,
)
from lada_ray.inbox.validate import validate

__all__ = [
    "ADVICE",
    "CARD",
    "CARD_LIMIT",
    "OURS",
    "READY",
    "REJECTED",
    "Arrival",
    "Card",
    "Entry",
    "Known",
    "Recognition",
    "Scan",
    "check_there",
    "clear_rejection",
    "content_key",
    "images_by_class",
    "overlap_share",
    "parse_card",
    "recognise",
    "reject",
    "scan",
    "validate",
]
