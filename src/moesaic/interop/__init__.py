"""What others can read, and what we read of theirs: Hugging Face folders and GGUF, in and out; sparse upcycling."""

from moesaic.interop.families import family_for
from moesaic.interop.folder import load_model, save_model, stop_ids_of
from moesaic.interop.gguf_write import write_gguf
from moesaic.interop.hf_config import read_json, read_shape
from moesaic.interop.sources import import_model
from moesaic.interop.upcycle import expert_distance, layer_ranges, upcycle

__all__ = [
    "expert_distance",
    "family_for",
    "import_model",
    "layer_ranges",
    "load_model",
    "read_json",
    "read_shape",
    "save_model",
    "stop_ids_of",
    "upcycle",
    "write_gguf",
]
