"""Whole models: one skeleton of a decoder, a row of data for each model type, caches, generated text."""

from mxfp4moe.model.cache import ModelCache
from mxfp4moe.model.causal_lm import CausalLM

__all__ = ["CausalLM", "ModelCache"]
