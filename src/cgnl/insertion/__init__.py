"""Blocks into any network, by module path, and out again.

A block runs in a forward hook of the module it stands after, and is a registered submodule: ``parameters()``,
``state_dict()``, ``to()`` and ``train()`` see it, and the host's own keys stay as they are.

Paths: containers (``nn.Sequential``, ``nn.ModuleList``, ``nn.ModuleDict``) would run a child as one of their elements.
After such a module, say ``layer3``, the block belongs to the nearest enclosing module that is no container, as
``inserted_block_after_layer3`` (or to the first leaf module inside, where all the enclosing ones are containers, as in
a network that is one ``nn.Sequential``). Where a host may run the elements of a container one by one, as timm does with
gradient checkpointing, the container itself does not run, nor does a block after it: let the block stand after the
last element.

A callable alone, ``insert_blocks(model, cgnl.CGNL2d, example_input=x)``: the place is right before the last block of
the last stage whose map is 1/16 of the input along each spatial axis (``layer3.4`` in a ResNet-50), else of the last
stage but one; in a network of one stage, such as a ViT, before its last block; after a stage's only block. The line
"put 1 block after ..." on stderr says which it took; where logging shows INFO, it is a log line of ``cgnl.insertion``
instead.

Wrappers: insert before ``torch.compile``, ``DistributedDataParallel`` and ``fully_shard``. Compiled code does not see
later hooks, and the wrappers collect the parameters when they wrap. To shard parts of a network that is one
``nn.Sequential``, let the blocks stand after modules that are not containers.
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

# _BlockHook and _as_in_host are named so in pickled and traced networks.
__all__ = [
    "BLOCK_NAME", "Layout", "_BlockHook", "_as_in_host", "attach_without_hook", "block_without_hook",
    "insert_blocks", "inserted_blocks", "remove_blocks", "undisturbed",
]  # fmt: skip
