"""The vision addition: a separate image encoder joined by gated cross-attention (Flamingo, arXiv:2204.14198)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesaic.errors import PlanError
from moesaic.plan.flops import parameter_flops
from moesaic.plan.shape import Shape
from moesaic.plan.sheet import Sheet, Value

if TYPE_CHECKING:
    from moesaic.recipe import Recipe


RESAMPLER_LAYERS = 6  # Flamingo, app. A.1.1


@dataclass(frozen=True)
class Encoder:
    """A vision transformer. Widths in features, patch in pixels."""

    n_layers: int
    width: int
    d_ff: int
    patch: int
    source: str

    def patches(self, pixels: int) -> int:
        """Patches of a square image. Raises PlanError when they do not fill it."""
        if pixels % self.patch:
            nearest = max(1, round(pixels / self.patch)) * self.patch
            raise PlanError(f"an image of {pixels} pixels is not whole patches of {self.patch}; use {nearest}")
        return (pixels // self.patch) ** 2

    def parameters(self, pixels: int) -> int:
        """Weights with biases, two LayerNorms a layer, one at the end, and learned positions."""
        w, f = self.width, self.d_ff
        layer = 4 * w * w + 4 * w + 2 * w * f + f + w + 4 * w
        return self.n_layers * layer + (3 * self.patch**2 + 1 + self.patches(pixels) + 2) * w

    def flops(self, pixels: int) -> float:
        """FLOP of one image's forward pass: every patch sees every patch."""
        w, n = self.width, self.patches(pixels)
        projections = 2.0 * n * (self.n_layers * (4 * w * w + 2 * w * self.d_ff) + 3 * self.patch**2 * w)
        return projections + 4.0 * n * n * w * self.n_layers


ENCODERS: Mapping[str, Encoder] = {
    "vit-l": Encoder(24, 1024, 4096, 14, "CLIP ViT-L/14 (arXiv:2103.00020)"),
    "vit-h": Encoder(32, 1280, 5120, 14, "ViT-H/14, as in Llama 3 (arXiv:2407.21783, sec. 7.1)"),
    "vit-bigg": Encoder(48, 1664, 8192, 14, "OpenCLIP ViT-bigG/14 (arXiv:2212.07143), 1.84 B"),
    "eva-02-e": Encoder(64, 1792, 15360, 14, "EVA-02-CLIP-E/14 (arXiv:2303.15389), 4.4 B"),
    "vit-22b": Encoder(48, 6144, 24576, 14, "ViT-22B (arXiv:2302.05442), table 1"),
}


@dataclass(frozen=True)
class VisionPlan:
    """Choices that the description leaves open, with defaults that have a reason.

    `vit-bigg` was the largest open encoder of mid-2023's size class that trained in a known budget; one layer before
    each 8 keeps the pipeline's stages of 8 layers alike; 448 pixels and 256 latents are what a page of text needs
    where Flamingo's 64 latents were made for photographs; one image in 256 tokens is Flamingo's interleaved web text.
    """

    encoder: str = "vit-bigg"
    every: int = 8
    pixels: int = 448
    latents: int = 256
    tokens_per_image: int = 256

    @property
    def vit(self) -> Encoder:
        """The encoder. Raises PlanError for one that is unknown."""
        if self.encoder not in ENCODERS:
            raise PlanError(f"no image encoder '{self.encoder}'; use one of {', '.join(ENCODERS)}")
        return ENCODERS[self.encoder]

    def layers(self, shape: Shape) -> int:
        """Cross-attention layers: one before each `every` layers, the first before layer 0."""
        if not 1 <= self.every <= shape.n_layers:
            raise PlanError(f"a cross-attention layer every {self.every} layers of {shape.n_layers}; use fewer")
        return -(-shape.n_layers // self.every)

    def resampler_parameters(self) -> int:
        """Perceiver resampler: `RESAMPLER_LAYERS` of attention (4 w^2) and a block of 4 w (8 w^2), and its latents."""
        w = self.vit.width
        return RESAMPLER_LAYERS * 12 * w * w + self.latents * w

    def layer_parameters(self, shape: Shape) -> int:
        """One gated layer: queries and output as wide as the decoder's, its KV heads, a block of 4 d, two gates."""
        q, kv = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        return 2 * shape.d_model * q + 2 * self.vit.width * kv + 8 * shape.d_model**2 + 2 * shape.d_model + 2

    def image_flops(self, shape: Shape) -> float:
        """FLOP of one image, forward: encoder, resampler, and keys and values of every cross-attention layer."""
        vit, n = self.vit, self.vit.patches(self.pixels)
        w, m = vit.width, self.latents
        # Latents ask, latents and patches answer (Flamingo, app. A.1.1).
        resampler = RESAMPLER_LAYERS * (2.0 * m * 10 * w * w + 2.0 * (n + m) * 2 * w * w + 4.0 * m * (n + m) * w)
        kv = 4.0 * m * w * shape.n_kv_heads * shape.head_dim * self.layers(shape)
        return vit.flops(self.pixels) + resampler + kv

    def token_flops(self, shape: Shape) -> float:
        """FLOP that the gated layers add to one token, forward; a token sees the latents of one image."""
        q = shape.n_heads * shape.head_dim
        one = 2.0 * (2 * shape.d_model * q + 8 * shape.d_model**2) + 4.0 * self.latents * q
        return one * self.layers(shape)


def add_vision(sheet: Sheet, shape: Shape, plan: VisionPlan, tokens: float, recipe: Recipe | None = None) -> None:
    """Append the vision section to a sheet: parameters, FLOP per image and token, and `tokens` more of training.

    With a recipe the cost is also a share of its first stage's. Raises PlanError.
    """
    section, vit, layers = "Vision", plan.vit, plan.layers(shape)
    encoder, resampler = vit.parameters(plan.pixels), plan.resampler_parameters()
    gated = layers * plan.layer_parameters(shape)
    facts: dict[str, Value] = {"encoder": plan.encoder, "pixels": plan.pixels, "latents": plan.latents}
    sheet.add(section, "vision_encoder_parameters", f"image encoder, {plan.encoder}", encoder, "", vit.source, **facts)
    sheet.add(
        section,
        "vision_resampler_parameters",
        f"resampler to {plan.latents} latents",
        resampler,
        "",
        "6 layers x 12 width^2 + latents x width",
        width=vit.width,
        **facts,
    )
    sheet.add(
        section,
        "vision_cross_attention_parameters",
        f"{layers} gated cross-attention layers",
        gated,
        "",
        "layers x (2 d q + 2 width kv + 8 d^2 + 2 d + 2 gates)",
        layers=layers,
        d=shape.d_model,
        q=shape.n_heads * shape.head_dim,
        width=vit.width,
        kv=shape.n_kv_heads * shape.head_dim,
    )
    added = encoder + resampler + gated
    sheet.add(
        section,
        "vision_added_parameters",
        "added in all",
        added,
        "",
        "encoder + resampler + gated layers",
        share_of_active=added / shape.active_parameters,
    )
    image, token, text = plan.image_flops(shape), plan.token_flops(shape), parameter_flops(shape)
    sheet.add(
        section,
        "vision_gflop_per_image",
        "one image, forward",
        image / 1e9,
        "GFLOP/image",
        "encoder + resampler + keys and values of the gated layers",
        patches=vit.patches(plan.pixels),
        **facts,
    )
    sheet.add(
        section,
        "vision_added_gflop_per_token",
        "added to a token, forward",
        token / 1e9,
        "GFLOP/token",
        "layers x (2 (2 d q + 8 d^2) + 4 latents q)",
        over_2n=token / text,
        layers=layers,
    )
    _training(sheet, plan, image, token, text, tokens, recipe)


def _training(
    sheet: Sheet, plan: VisionPlan, image: float, token: float, text: float, tokens: float, recipe: Recipe | None
) -> None:
    """What `tokens` more cost, by what is trained. `image`, `token`, `text`: FLOP forward, the last of the decoder."""
    base = 3 * text * recipe.stages[0].tokens if recipe else None
    images = tokens / plan.tokens_per_image
    new = 3 * (token * tokens + image * images)
    ways = {
        "decoder alone, all of it trained": 3 * text * tokens,
        "decoder trained, with encoder and gated layers": 3 * text * tokens + new,
        "decoder frozen, gradients pass through it": 2 * text * tokens + new,
        "decoder frozen, forward only (a lower bound)": text * tokens + new,
    }
    sheet.add(
        "Vision",
        "vision_training_flop",
        "whole active model on the tokens",
        ways["decoder alone, all of it trained"],
        "FLOP",
        "6 N x tokens",
        tokens=tokens,
        two_n=text,
    )
    sheet.table(
        "vision_training",
        f"Training on {tokens:.3g} tokens with {images:.3g} images",
        [
            {"trained": way, "training_flop": flop, "pretraining_share": flop / base if base else None}
            for way, flop in ways.items()
        ],
    )
    sheet.note(
        "A frozen decoder saves only the gradients of its weights (2 N of 6 N): the gated layers are learned through "
        "it. Forward only would do if nothing below the last decoder layer were trained."
    )
