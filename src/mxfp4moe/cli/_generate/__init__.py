"""What ``mxfp4moe generate`` and ``mxfp4moe chat`` share: texts to ids, ids to texts, the stream of them."""
