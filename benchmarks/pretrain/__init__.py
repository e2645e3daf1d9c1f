"""Self-supervised pretraining of the small encoder on histology chunks, and its export.

    python -m benchmarks.pretrain --data shared/data/histology/pool --out DIR [--minutes 7] [--seed 0] [--resume]

`chunks` decodes the pictures, `geometry` cuts views, `colour` changes them, `network` holds trainable encoder and heads, `losses` and
`methods` say what is learned, `train` runs it against the clock, `export` writes the weights.
"""
