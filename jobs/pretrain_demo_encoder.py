"""Train the demo's encoder, a small CLIP, on pictures that the project draws, and their captions.

    python jobs/pretrain_demo_encoder.py

Takes about 15 minutes on one core. Half of the demo's classes are among its concepts (as other pictures),
half are not: a miniature of CLIP's situation, in which zero-shot is far above chance and far from solved.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import lada_ray
from lada_ray.domains.drawing import DRAWINGS, SIZE
from lada_ray.domains.drawing.canvas import FONTS, Canvas, Frame, generator, glyph_mask
from lada_ray.domains.drawing.digits import NUMBERS

NAME = "demo-clip"
ARCHITECTURE = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIZE, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
    # CLIP's own vocabulary is most of the file, so the text tower is narrow.
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 3},
}
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
PREPROCESS = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}

SEEN = {
    "shapes": ("red triangle", "blue square", "yellow circle", "blue star", "green heart", "orange hexagon"),
    "textures": (
        *("striped texture", "dotted texture", "brick texture"),
        *("wavy texture", "woven texture", "spotted texture"),
    ),
    "glyphs": ("letter B", "letter G", "letter K", "letter P", "letter S", "letter X"),
    "signs": (
        *("stop sign", "no entry sign", "one way sign"),
        *("pedestrian crossing sign", "speed limit sign", "danger sign"),
    ),
    "doodles": ("house", "flower", "cat", "cup", "snowman", "envelope"),
}
"""The demo's classes that are concepts of the pretraining too; its real digits are only met in print."""

PRINTED = ("zero", "one", "three", "six", "seven")
"""Digits that the pretraining shows, in fonts."""

OTHER_SHAPES = 24
"""How many of the other colours and shapes are shown: with all of them, none would be left to learn."""

PATCHES_LEFT_OUT = 0.5
"""Share of each picture that training does not see, which halves its time (Li et al., FLIP, CVPR 2023)."""

WHOLE_FROM = 0.8
"""The last part of the training sees whole pictures, as every user of the encoder will."""

KINDS = {
    "shapes": "coloured shape",
    "textures": "texture",
    "glyphs": "letter",
    "signs": "road sign",
    "doodles": "pencil sketch",
    "printed": "digit",
}
"""What a caption says that knows no better."""

TEMPLATES = (
    *("a photo of a {}.", "a picture of a {}.", "{}", "an image of a {}", "this is a {}.", "a blurry {}"),
    *("a good photo of the {}.", "a noisy picture of one {}", "the {}", "a {} in front of a wall"),
)


@dataclass(frozen=True)
class Concept:
    """Something to learn: pictures and the words for them.

    Attributes:
        kind: key of `KINDS`.
        name: as captions say it.
        image: index -> picture.
    """

    kind: str
    name: str
    image: Callable[[int], Image.Image]


def concepts() -> list[Concept]:
    """List what the encoder is taught."""
    found = [Concept("printed", f"digit {name}", functools.partial(printed_digit, name)) for name in PRINTED]
    for kind, seen in SEEN.items():
        drawing = DRAWINGS[kind]
        order = generator("pretrain", kind).permutation(len(drawing.others))
        others = [drawing.others[i] for i in order[: OTHER_SHAPES if kind == "shapes" else None]]
        for name in (*seen, *others):
            found.append(Concept(kind, name, functools.partial(drawing.image, name, "pretrain")))
    return found


def printed_digit(number: str, index: int) -> Image.Image:
    """Print a digit in white on black, as coarse as the scans of the handwritten ones."""
    rng = generator("printed", number, "pretrain", index)
    canvas = Canvas(Image.new("RGB", (2 * SIZE, 2 * SIZE)), Frame.jittered(rng, (0.75, 1.1), 20, 0.3))
    canvas.paste(
        glyph_mask(str(NUMBERS.index(number)), str(rng.choice(FONTS)), canvas.frame), (255, 255, 255)
    )
    side = int(rng.integers(8, 14))
    coarse = canvas.image.resize((side, side), Image.Resampling.BOX)
    return coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def draw(taught: Sequence[Concept], count: int) -> Tensor:
    """Draw `count` pictures of each concept: uint8 [concepts, count, 3, 64, 64]."""
    pictures = torch.empty((len(taught), count, 3, SIZE, SIZE), dtype=torch.uint8)
    for row, concept in enumerate(taught):
        for index in range(count):
            pictures[row, index] = torch.from_numpy(np.array(concept.image(index))).permute(2, 0, 1)
    return pictures


def caption(concept: Concept, rng: np.random.Generator) -> str:
    """Describe a picture of a concept; sometimes in general words only, as captions do."""
    words = KINDS[concept.kind] if rng.uniform() < 0.05 else concept.name
    return TEMPLATES[rng.integers(len(TEMPLATES))].format(words)


def cropped(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Cut a random rectangle, most of each side long, out of each picture, and enlarge it."""
    size = rng.uniform(0.7, 1.0, (len(pictures), 1)) * rng.uniform(0.9, 1.0, (len(pictures), 2))
    shift = rng.uniform(-1, 1, size.shape) * (1 - size)
    theta = np.zeros((len(pictures), 2, 3), dtype=np.float32)
    theta[:, [0, 1], [0, 1]], theta[:, :, 2] = size, shift
    grid = F.affine_grid(torch.from_numpy(theta), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, align_corners=False, padding_mode="reflection")


def normalised(pictures: Tensor) -> Tensor:
    """Scale uint8 pictures as the encoder expects them."""
    return (pictures.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


Batch = tuple[Tensor, Tensor]
"""Images [B, 3, 64, 64], normalised, and the tokens [B, context] of their captions."""


def batches(taught: Sequence[Concept], pictures: Tensor, size: int, seed: int) -> Iterator[Batch]:
    """Yield batches for ever.

    A batch has no concept twice, so that no caption describes another image of the batch just as well.
    """
    tokenize = open_clip.get_tokenizer(NAME)
    rng = generator("pretrain", "batches", seed)
    while True:
        rows = rng.permutation(len(taught))[:size]
        columns = rng.integers(pictures.shape[1], size=len(rows))
        images = cropped(normalised(pictures[rows, columns]), rng)
        yield images, tokenize([caption(taught[row], rng) for row in rows])


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss: cross-entropy of each image among all texts, and of each text among all images.

    Args:
        images: [B, d], unit length.
        texts: [B, d], unit length; row i describes image i.
        scale: factor τ of the cosine similarities.
    """
    logits = scale * images @ texts.T
    truth = torch.arange(len(logits))
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2


def optimizer(model: open_clip.CLIP, rate: float) -> torch.optim.Optimizer:
    """AdamW that decays matrices only, and not the embeddings: words that never come would fade away."""
    plain = ("embedding", "logit_scale")
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and not any(word in n for word in plain)]
    others = [p for n, p in model.named_parameters() if p.ndim <= 1 or any(word in n for word in plain)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-6, fused=True)


def train(model: open_clip.CLIP, data: Iterator[Batch], steps: int, rate: float) -> None:
    """Train for a number of steps, with a warm-up and a cosine decay, and print the progress."""
    adam, started = optimizer(model, rate), time.monotonic()
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, rate, steps, pct_start=0.1, cycle_momentum=False)
    for step in range(1, steps + 1):
        if step == round(WHOLE_FROM * steps):
            model.visual.patch_dropout.prob = 0.0
        loss = contrastive_loss(*model(*next(data)))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        if step % 100 == 0 or step == steps:
            spent, scale = time.monotonic() - started, model.logit_scale.exp().item()
            print(
                f"step {step}/{steps}  loss {loss.item():.3f}  scale {scale:.1f}  {spent:.0f} s", flush=True
            )


@torch.inference_mode()
def zero_shot(model: open_clip.CLIP, per_class: int) -> dict[str, float]:
    """Return the accuracy in % on each demo domain's test images, among the classes of all domains."""
    labels = [(domain, name) for domain, drawing in DRAWINGS.items() for name in drawing.class_names]
    tokens = open_clip.get_tokenizer(NAME)([f"a photo of a {name}." for _, name in labels])
    texts = model.encode_text(tokens, normalize=True)
    correct: dict[str, list[bool]] = {domain: [] for domain in DRAWINGS}
    for truth, (domain, name) in enumerate(labels):
        pictures = [np.array(DRAWINGS[domain].image(name, "test", i)) for i in range(per_class)]
        images = normalised(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))
        guesses = (model.encode_image(images, normalize=True) @ texts.T).argmax(1)
        correct[domain] += (guesses == truth).tolist()
    return {domain: 100 * float(np.mean(hits)) for domain, hits in correct.items()}


def save(model: open_clip.CLIP, weights: Path) -> None:
    """Write the weights as float16, with what a reader must know in the header."""
    half = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    header = {"model": NAME, "quick_gelu": "false", "preprocess": json.dumps(PREPROCESS)}
    save_file(half, weights, metadata=header)
    weights.chmod(0o644)  # safetensors leaves it readable for its owner alone, and a wheel would keep that


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(lada_ray.__file__).parent / "encoders"
    parser.add_argument(
        "--out", type=Path, default=default, help=f"folder for {NAME}.safetensors and {NAME}.json"
    )
    parser.add_argument("--steps", type=int, default=3000, help="training steps (default: %(default)s)")
    parser.add_argument(
        "--batch", type=int, default=64, help="image-caption pairs of a step (default: %(default)s)"
    )
    parser.add_argument(
        "--images", type=int, default=300, help="pictures of each concept (default: %(default)s)"
    )
    parser.add_argument(
        "--rate", type=float, default=1e-3, help="largest learning rate (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="initial weights and batches (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU cores to use (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Draw, train, save, load again as a user does, and print how it does zero-shot."""
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    architecture, weights = args.out / f"{NAME}.json", args.out / f"{NAME}.safetensors"
    architecture.write_text(json.dumps(ARCHITECTURE, indent=4) + "\n")
    open_clip.add_model_config(architecture)
    model = open_clip.create_model(NAME, force_patch_dropout=PATCHES_LEFT_OUT)
    taught = concepts()
    print(f"drawing {args.images} pictures of each of {len(taught)} concepts", flush=True)
    data = batches(taught, draw(taught, args.images), args.batch, args.seed)
    train(model, data, args.steps, args.rate)
    save(model, weights)
    loaded = open_clip.create_model(NAME, pretrained=str(weights)).eval()
    accuracy = zero_shot(loaded, per_class=20)
    print("zero-shot accuracy among all classes, %:")
    for domain, value in {**accuracy, "mean": float(np.mean(list(accuracy.values())))}.items():
        print(f"  {domain:10} {value:5.1f}")
    print(f"wrote {weights} ({weights.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
