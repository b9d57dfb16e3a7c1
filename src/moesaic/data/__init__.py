"""What the model learns from: sources -> filters -> tokens -> shards -> mixture -> packed batches, with a
ledger."""

from moesaic.data.batch import IGNORE, PADDING, Batch
from moesaic.data.build import build_data, data_path
from moesaic.data.chat import content_bytes, encode_chat, encode_chats
from moesaic.data.folder import DataFolder, HeldOut, held_out_sequences
from moesaic.data.ledger import Ledger
from moesaic.data.loader import Carry, Loader
from moesaic.data.packing import Piece, pack
from moesaic.data.shards import Shard, ShardWriter
from moesaic.data.sources import Document, read_documents
from moesaic.data.tokenizer import Tokenizer, train_tokenizer

__all__ = [
    "IGNORE",
    "PADDING",
    "Batch",
    "Carry",
    "DataFolder",
    "Document",
    "HeldOut",
    "Ledger",
    "Loader",
    "Piece",
    "Shard",
    "ShardWriter",
    "Tokenizer",
    "build_data",
    "content_bytes",
    "data_path",
    "encode_chat",
    "encode_chats",
    "held_out_sequences",
    "pack",
    "read_documents",
    "train_tokenizer",
]
