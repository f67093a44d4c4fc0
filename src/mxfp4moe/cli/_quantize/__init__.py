"""The parts of ``mxfp4moe quantize``."""
