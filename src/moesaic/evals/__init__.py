"""How good a model is: bits per byte, loss by position, multiple choice, and overlap with the training data."""

from moesaic.evals.against import Difference, compare_logits
from moesaic.evals.bits import BitsPerByte, bits_per_byte, loss_by_position
from moesaic.evals.card import keep_results
from moesaic.evals.choice import Answer, ChoiceScore, answer_items, choice_requests, score
from moesaic.evals.evaluate import SuiteResult, evaluate, suite_names
from moesaic.evals.likelihood import Likelihood, Request, log_likelihoods, log_likelihoods_reference
from moesaic.evals.overlap import Match, SuiteOverlap, find_overlap
from moesaic.evals.suites import SUITES, Item, Suite, locate_suites, read_items
from moesaic.evals.text import bits_per_byte_of_text, read_text_documents

__all__ = [
    "SUITES",
    "Answer",
    "BitsPerByte",
    "ChoiceScore",
    "Difference",
    "Item",
    "Likelihood",
    "Match",
    "Request",
    "Suite",
    "SuiteOverlap",
    "SuiteResult",
    "answer_items",
    "bits_per_byte",
    "bits_per_byte_of_text",
    "choice_requests",
    "compare_logits",
    "evaluate",
    "find_overlap",
    "keep_results",
    "locate_suites",
    "log_likelihoods",
    "log_likelihoods_reference",
    "loss_by_position",
    "read_items",
    "read_text_documents",
    "score",
    "suite_names",
]
