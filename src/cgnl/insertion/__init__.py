"""Put blocks into any network, by module path or at a place that is found, and take them out again.

A block runs in a forward hook of the module that it follows, and is a registered submodule: ``parameters()``,
``state_dict()``, ``to()`` and ``train()`` see it, and the host's own keys stay as they are.

Paths: a container (``nn.Sequential``, ``nn.ModuleList``, ``nn.ModuleDict``) would run the block as one of its elements.
After a container such as ``layer3``, the block therefore belongs to the nearest enclosing module that is not a
container, as ``inserted_block_after_layer3``. If all enclosing modules are containers, as in a network that is one
``nn.Sequential``, it belongs to the first leaf module inside. Some hosts run the elements of a container one by one, as
timm does with gradient checkpointing. Then neither the container nor a block after it runs: put the block after the
last element.

A callable without paths, ``insert_blocks(model, cgnl.CGNL2d, example_input=x)``: the block goes into the last stage
whose map is 1/16 of the input along each spatial axis, otherwise into the second-to-last stage, or into the only one of
a network such as a ViT. It goes right before the stage's last block (``layer3.4`` in a ResNet-50), or after the block
if there is only one. The line "put 1 block after ..." on stderr names the place. If logging shows INFO, it is a log
line of ``cgnl.insertion`` instead.

Wrappers: insert before ``torch.compile``, ``DistributedDataParallel`` and ``fully_shard``. Compiled code does not see
later hooks, and the wrappers collect the parameters when they wrap. To shard parts of a network that is one
``nn.Sequential``, put the blocks after modules that are not containers.
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

# Pickled and traced networks name _BlockHook and _as_in_host.
__all__ = [
    "BLOCK_NAME", "Layout", "_BlockHook", "_as_in_host", "attach_without_hook", "block_without_hook",
    "insert_blocks", "inserted_blocks", "remove_blocks", "undisturbed",
]  # fmt: skip
