"""What the system computes: attention, router, experts, block, transformer. No distributed code."""

from moesaic.model.cache import Cache
from moesaic.model.generate import SamplingSettings, Step, generate_tokens
from moesaic.model.losses import balance_loss, expert_load, z_loss
from moesaic.model.next_token import IGNORE, next_token_loss, next_token_loss_reference
from moesaic.model.peak import gemm_peak
from moesaic.model.router import Router, RouterStats, Routing
from moesaic.model.transformer import Transformer, initial_value, initialise, matching, select_trainable

__all__ = [
    "IGNORE",
    "Cache",
    "Router",
    "RouterStats",
    "Routing",
    "SamplingSettings",
    "Step",
    "Transformer",
    "balance_loss",
    "expert_load",
    "gemm_peak",
    "generate_tokens",
    "initial_value",
    "initialise",
    "matching",
    "next_token_loss",
    "next_token_loss_reference",
    "select_trainable",
    "z_loss",
]
