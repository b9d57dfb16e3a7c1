"""What others can read, and what we read of theirs: Hugging Face folders and GGUF, in and out; sparse upcycling."""

from moesaic.interop.folder import load_model, save_model
from moesaic.interop.hf_config import read_json

__all__ = ["load_model", "read_json", "save_model"]
