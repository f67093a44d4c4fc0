"""The parts of ``mxfp4moe bench``: problems, contenders, the measurement, the report."""
