"""What is behind `kiloseg COMMAND`: a module each, with `Arguments` and `main`.

They import what they need when they run, so that --help and completion start without torch.
"""
