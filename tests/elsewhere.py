"""A pretended second device, for what a GPU would refuse: the values lie on the CPU, and two devices do not mix.

Its name is torch's "meta", whose tensors of this kind do have values. Nothing of a GPU's own (graphs, streams,
reduced precision) is tried.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = torch.device("meta")
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # a GPU's tensors take indices from the CPU, too


class Elsewhere(torch.Tensor):
    """A tensor of the pretended device, around one of the CPU."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=ELSEWHERE)

    def __init__(self, inner):
        self.inner = inner

    def tolist(self):
        return self.detach().cpu().tolist()

    def numpy(self):
        raise TypeError("a tensor of another device has no NumPy array; copy it to the CPU first.")

    def __format__(self, spec):
        return format(self.item(), spec)

    def __repr__(self):
        return f"Elsewhere({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):
        return carried(function, arguments, keywords or {})


def carried(function, arguments, keywords):
    """What an operation gives, on the device where it would. Raises RuntimeError for tensors of two."""
    name = function.overloadpacket.__name__
    leaves = tree_leaves((arguments, keywords))
    far = isinstance(arguments[0], Elsewhere) if name == "copy_" else any(isinstance(x, Elsewhere) for x in leaves)
    if far and name != "copy_":
        asked = tree_leaves(arguments[1]) if name in INDEXING else []
        near = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, Elsewhere)
                and x.dim() and not any(x is index for index in asked)]  # a number may come from anywhere
        if near:
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, and found two")
    if keywords.get("device") is not None:
        far = torch.device(keywords["device"]).type == ELSEWHERE.type
        keywords = keywords | {"device": "cpu"}
    arguments_here, keywords = tree_map(lambda leaf: leaf.inner if isinstance(leaf, Elsewhere) else leaf,
                                        (arguments, keywords))
    found = function(*arguments_here, **keywords)
    written = [value for value, about in zip(arguments, function._schema.arguments, strict=False)
               if about.alias_info is not None and about.alias_info.is_write]
    if written and isinstance(found, torch.Tensor):
        return written[0]
    return tree_map(lambda leaf: Elsewhere(leaf) if far and isinstance(leaf, torch.Tensor) else leaf, found)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        return carried(function, arguments, keywords or {})


@contextlib.contextmanager
def elsewhere(monkeypatch, *modules):
    """While it lasts, what `modules` call choose_device is ELSEWHERE, and tensors can be made there."""
    autocast, enabled, tensor = torch.autocast, torch.is_autocast_enabled, torch.tensor

    class Autocast(autocast):  # which torch does not know of on this device
        def __new__(cls, kind, *arguments, **keywords):
            return contextlib.nullcontext() if kind == ELSEWHERE.type else super().__new__(cls)

    with monkeypatch.context() as patch, _Mode():
        patch.setattr(torch, "autocast", Autocast)
        # torch's own fills it where no mode sees it
        patch.setattr(torch, "tensor", lambda data, *, device=None, **keywords: tensor(data, **keywords).to(device))
        patch.setattr(torch, "is_autocast_enabled", lambda *kind: kind != (ELSEWHERE.type,) and enabled(*kind))
        for module in modules:
            patch.setattr(module, "choose_device", lambda name="auto": ELSEWHERE)
        yield
