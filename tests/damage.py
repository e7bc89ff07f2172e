"""Shards made bad."""

import tarfile


def spoil(shard):
    """Overwrites the image of every second sample in a shard; returns their keys."""
    with tarfile.open(shard) as tar:
        images = [member for member in tar if member.name.endswith((".jpg", ".png")) and ".mask." not in member.name]
    with shard.open("r+b") as file:
        for member in images[::2]:
            file.seek(member.offset_data)
            file.write(bytes(member.size))
    return [member.name.partition(".")[0] for member in images[::2]]
