"""From listed domains to a filled bank: hash, choose, encode what is missing, choose again where images are bad."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lada_ray.domains.base import Domain, Sample
from lada_ray.encoder import EncoderSpec
from lada_ray.errors import InputError, LadaError
from lada_ray.features.bank import FeatureBank
from lada_ray.features.extract import Extraction, Gap, Pool, extract
from lada_ray.features.index import BadImage, FileIndex, fill_index
from lada_ray.features.selection import Selection, emptied, select
from lada_ray.views import training_views

Progress = Callable[[str, int, int], None]
SHOWN = 20


@dataclass(frozen=True)
class Choice:
    """What identifies a run's choice of images."""

    shots: int | None
    views: int
    seed: int
    max_bad_share: float = 0.01


@dataclass
class Images:
    """All images of a run, with the content hash of each."""

    selections: list[Selection]
    hashes: dict[str, str]
    """SHA-256 by URI."""
    spoilt: dict[str, str] = field(default_factory=dict)
    """Why an image cannot be used, by URI."""

    def shas(self, samples: Sequence[Sample]) -> list[str]:
        """Content hashes of samples."""
        return [self.hashes[s.uri] for s in samples]

    @property
    def bad(self) -> list[BadImage]:
        """The images that were wanted and cannot be used, of all domains."""
        return [image for selection in self.selections for image in selection.bad]

    def pairs(self) -> dict[tuple[str, str], Sample]:
        """Every (SHA-256, view) that is needed, once, with a sample to read it from."""
        found: dict[tuple[str, str], Sample] = {}
        for selection in self.selections:
            for sample, view in selection.needs():
                found.setdefault((self.hashes[sample.uri], view), sample)
        return found

    def with_views(self, views: int) -> Images:
        """The same images under another number of augmented views."""
        changed = [replace(s, views=tuple(training_views(s.domain.augment, views))) for s in self.selections]
        return replace(self, selections=changed)

    def in_order(self, names: Sequence[str]) -> Images:
        """The same images with the domains in another order."""
        selections = {s.domain.name: s for s in self.selections}
        return replace(self, selections=[selections[name] for name in names])


def choose_images(
    domains: Sequence[Domain],
    index: FileIndex,
    choice: Choice,
    run: str,
    progress: Progress,
    unread: Mapping[str, str] | None = None,
) -> Images:
    """Choose every domain's images, hashing (in Ray tasks) those that are new or changed.

    Args:
        domains: the listed domains.
        index: what is known of their files.
        choice: what to choose.
        run: id of the run.
        progress: called with ("hash", files done, files to do).
        unread: reason by URI, of files that cannot be read though they could be hashed.

    Raises:
        InputError: more than `max_bad_share` of the images are bad, or a class has none left.
    """
    images = Images([], {}, dict(unread or {}))
    reasons = index.bad()
    while True:
        images.selections = [
            select(domain, images.spoilt, choice.shots, choice.views, choice.seed) for domain in domains
        ]
        _refuse_too_many(images, choice.max_bad_share)
        new = {s.uri: s for x in images.selections for s in x.samples if s.uri not in images.hashes}
        if not new:
            return images
        hashes, unreadable = fill_index(index, list(new.values()), run, lambda a, b: progress("hash", a, b))
        images.hashes |= hashes
        images.spoilt |= {image.uri: image.reason for image in unreadable}
        images.spoilt |= {uri: reasons[sha] for uri, sha in hashes.items() if sha in reasons}


def find_gaps(pairs: Mapping[tuple[str, str], Sample], bank: FeatureBank) -> list[Gap]:
    """What the bank lacks of the (SHA-256, view) `pairs`, an image at a time, in their order."""
    missing = bank.missing([sha for sha, _ in pairs], [view for _, view in pairs])
    gaps: dict[str, tuple[str, list[str]]] = {}
    for ((sha, view), sample), absent in zip(pairs.items(), missing, strict=True):
        if absent:
            gaps.setdefault(sha, (sample.uri, []))[1].append(view)
    return [Gap(uri, sha, tuple(views)) for sha, (uri, views) in gaps.items()]


def fill_bank(
    domains: Sequence[Domain],
    spec: EncoderSpec,
    bank: FeatureBank,
    index: FileIndex,
    choices: Sequence[Choice],
    pool: Pool,
    run: str,
    progress: Progress,
) -> tuple[list[Images], Extraction]:
    """Encode everything a run needs that is not in the bank; bad images cost themselves and are replaced.

    Args:
        domains: the listed domains.
        spec: the encoder.
        bank: where its features are.
        index: what is known of the domains' files.
        choices: what to choose; several, for jobs that learn more than one stream.
        pool: the encoder actors.
        run: id of the run.
        progress: called with ("hash" or "encode", done, to do).

    Returns:
        The chosen images of each choice, all of them in the bank, and what the encoding did.

    Raises:
        InputError: more than `max_bad_share` of the images are bad, or a class has none left.
    """
    bank.table.adopt()
    total = Extraction()
    before: list[Gap] = []
    while True:
        images = [choose_images(domains, index, choice, run, progress, total.unread) for choice in choices]
        pairs = {key: sample for some in images for key, sample in some.pairs().items()}
        # Noted before anything is encoded: nobody removes meanwhile what is added now.
        bank.note_needs(run, [sha for sha, _ in pairs], [view for _, view in pairs])
        gaps = find_gaps(pairs, bank)
        if not gaps:
            return images, total
        if gaps == before:
            raise LadaError(
                f"{len(gaps)} images were neither encoded nor found bad, {gaps[0].uri} among them"
            )
        before = gaps
        done = extract(gaps, spec, bank, pool, run, lambda a, b: progress("encode", a, b))
        index.add_bad(done.bad, run)
        total.added += done.added
        total.start_s += done.start_s
        total.bad |= done.bad
        total.unread |= done.unread
        total.seconds = {
            k: total.seconds.get(k, 0) + done.seconds.get(k, 0) for k in {*total.seconds, *done.seconds}
        }


def _refuse_too_many(images: Images, max_bad_share: float) -> None:
    bad = images.bad
    good = sum(len(selection.samples) for selection in images.selections)
    problems = emptied(images.selections) if bad else []
    if len(bad) > max_bad_share * (len(bad) + good):
        share = 100 * len(bad) / (len(bad) + good)
        problems.append(
            f"{len(bad)} of {len(bad) + good} images are bad ({share:.1f} %, and max_bad_share is "
            f"{100 * max_bad_share:g} %): repair or remove them, or raise --max_bad_share"
        )
    if problems:
        named = [f"{image.uri}: {image.reason}" for image in bad[:SHOWN]]
        more = [f"and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
        raise InputError(problems + named + more, "Too many images cannot be used")
