"""This package handles data sets on disk and in batches.

`shards`: the file format; `index`: a row per sample; `folder`: here or at a URL, `cache`: copies of shards from there;
`build`: write many shards at once, in `processes` or on a `cluster`, and keep what is `unfinished`; `verify` and `describe`:
look at a data set, by `raw` samples; `streams` and `pipeline`: shards to batches; `augment`: random crops and colors.
Building needs neither torch nor torchvision, so nothing is imported here.
"""
