"""Blocks into any network, by module path, and out again.

A block runs in a forward hook of the module it stands after, and is a registered submodule: ``parameters()``,
``state_dict()``, ``to()`` and ``train()`` see it, and the host's own keys stay as they are.
"""

from cgnl.insertion.hook import (
    BLOCK_NAME,
    Layout,
    _as_in_host,
    _BlockHook,
    attach_without_hook,
    block_without_hook,
    inserted_blocks,
)
from cgnl.insertion.insert import insert_blocks, remove_blocks
from cgnl.insertion.probe import undisturbed

__all__ = [
    "BLOCK_NAME",
    "Layout",
    "_BlockHook",  # under this name in pickled networks
    "_as_in_host",  # under this name in traced ones
    "attach_without_hook",
    "block_without_hook",
    "insert_blocks",
    "inserted_blocks",
    "remove_blocks",
    "undisturbed",
]
