"""A run of the network on the example input, which finds feature maps and leaves nothing behind.

Shapes: B batch, C channels, S spatial or space-time axes, N positions of a token sequence.
"""

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cgnl.insertion.nested import Key, describe, pick, put, tensors_in
from cgnl.insertion.targets import possible_owners

_STAND_IN_NAME = "_inserted_block_stand_in"


def probe(
    model: nn.Module, targets: Mapping[str, nn.Module], keys: Mapping[str, tuple[Key, ...]], example_input: Any
) -> tuple[dict[str, Tensor], dict[str, torch.dtype], dict[str, tuple[nn.Module, str]]]:
    """Run the host once to find each target's feature map and type under autocast, and its block's owner and name.

    Some modules that are not containers run all of their children too (``for layer in self.children()``). Each
    possible owner gets a stand-in child for the run; an owner whose stand-in ran cannot own a block.
    """
    candidates = {path: possible_owners(model, path) for path in targets}
    autocasts: dict[nn.Module, torch.dtype] = {}

    def note_autocast(target: nn.Module, _: Any, output: Any) -> None:
        for device_type in {tensor.device.type for tensor in tensors_in(output)} - {"meta"}:
            if torch.is_autocast_enabled(device_type):
                autocasts[target] = torch.get_autocast_dtype(device_type)

    stand_ins = {owner: nn.Identity() for owner in itertools.chain(*candidates.values())}
    try:
        for owner, stand_in in stand_ins.items():
            owner.add_module(_STAND_IN_NAME, stand_in)
        with undisturbed(model), ExitStack() as stack:
            for target in targets.values():
                stack.enter_context(target.register_forward_hook(note_autocast))
            runs, _ = run(model, [*targets.values(), *stand_ins.values()], example_input)
    finally:
        for owner in stand_ins:
            owner._modules.pop(_STAND_IN_NAME, None)

    maps = {path: _feature_map(path, runs[target], keys[path]) for path, target in targets.items()}
    owners = {}
    for path in targets:
        usable = [(owner, name) for owner, name in candidates[path].items() if not runs[stand_ins[owner]]]
        if not usable:
            raise ValueError(
                f"blocks[{path!r}]: no module in or around it can hold the block without running it as well, "
                "because all are containers or iterate over their children"
            )
        owners[path] = usable[0]
    return maps, {path: autocasts[target] for path, target in targets.items() if target in autocasts}, owners


def _feature_map(path: str, runs: list[Any], keys: tuple[Key, ...]) -> Tensor:
    if len(runs) != 1:
        raise ValueError(
            f"blocks[{path!r}]: the module must run exactly once in a forward pass, "
            f"but ran {len(runs)} times on example_input"
        )
    try:
        output = pick(runs[0], keys)
    except ValueError as error:
        raise ValueError(f"blocks[{path!r}]: {error}") from None
    if not _can_be_put_back(runs[0], keys, output):
        raise ValueError(
            f"blocks[{path!r}]: select: the output, {describe(runs[0])}, cannot be copied with another tensor in it"
        )
    if isinstance(output, Tensor) and output.is_floating_point() and 3 <= output.ndim <= 5:
        return output
    hint = "" if isinstance(output, Tensor) else "; select= takes one tensor out of a tuple, list, dict or dataclass"
    raise ValueError(
        f"blocks[{path!r}]: the module's output must be a feature map, one floating-point tensor "
        f"with 1 to 3 axes besides batch and channels, but is {describe(output)}{hint}"
    )


def _can_be_put_back(output: Any, keys: tuple[Key, ...], chosen: Any) -> bool:
    try:
        return pick(put(output, keys, chosen), keys) is chosen
    except Exception:  # raised by the output's own class
        return False


def run(model: nn.Module, modules: Iterable[nn.Module], example_input: Any) -> tuple[dict[nn.Module, list[Any]], Any]:
    """Run the model once; return each module's outputs, one for each time that it ran, and the model's output."""
    outputs: dict[nn.Module, list[Any]] = {module: [] for module in modules}

    def record(module: nn.Module, _: Any, output: Any) -> None:
        outputs[module].append(output)

    with ExitStack() as stack:
        for module in outputs:
            # before all other hooks, like the block's hook, because those may change the output
            stack.enter_context(module.register_forward_hook(record, prepend=True))
        if isinstance(example_input, dict):
            result = model(**example_input)
        elif isinstance(example_input, tuple):
            result = model(*example_input)
        else:
            result = model(example_input)
    return outputs, result


@contextmanager
def undisturbed(model: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Keep the model in eval mode, by default without gradients; then restore flags, buffers and random state."""
    training = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, buffer.detach().clone(), buffer.requires_grad)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    random_state = random.getstate()
    devices = {tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())}
    accelerators = [device for device in devices if device.type not in ("cpu", "meta")]
    device_type = accelerators[0].type if accelerators else "cuda"
    try:
        with torch.random.fork_rng(accelerators, device_type=device_type), torch.set_grad_enabled(gradients):
            model.eval()
            yield
    finally:
        random.setstate(random_state)
        for module, flag in training.items():
            module.training = flag
        with torch.no_grad():
            for module, name, buffer, saved, has_gradient in buffers:
                if buffer.requires_grad and not has_gradient:  # changed in place, and now part of this run's graph
                    buffer = buffer.detach() if buffer._is_view() else buffer.detach_()
                if buffer.device.type != "meta" and not torch.equal(buffer, saved):
                    buffer.copy_(saved)
                module._buffers[name] = buffer
