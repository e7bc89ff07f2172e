"""Data sets on disk and in batches.

`shards`: the file format; `index`: a row per sample; `build`: write many shards at once; `pipeline`: shards to
batches; `augment`: random crops and colours. Building needs neither torch nor torchvision, so nothing is imported here.
"""
