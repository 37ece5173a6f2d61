"""A plugin for mypy: members of a torch module that only `__getattr__` knows have no type.

torch says `Tensor | Module` of whatever `register_buffer`, `register_parameter` and `add_module` made, and of every
member of a module that stands in a container. That is neither one: each use would need a cast.
"""

from __future__ import annotations

from collections.abc import Callable

from mypy.plugin import AttributeContext, Plugin
from mypy.types import AnyType, Instance, Type, TypeOfAny, UnionType, get_proper_type

_EITHER = {"torch._tensor.Tensor", "torch.nn.modules.module.Module"}


class TorchMembers(Plugin):
    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        return _without_type


def _without_type(context: AttributeContext) -> Type:
    declared = get_proper_type(context.default_attr_type)
    if isinstance(declared, UnionType):
        parts = {part.type.fullname for part in map(get_proper_type, declared.items) if isinstance(part, Instance)}
        if parts == _EITHER and len(declared.items) == 2:
            return AnyType(TypeOfAny.explicit)
    return context.default_attr_type


def plugin(version: str) -> type[Plugin]:
    return TorchMembers
