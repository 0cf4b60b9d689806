"""Something that stands in the place of a method of one object, and leaves it as it was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class StandIn:
    """Stands in the place of a method of one object, until :meth:`leave`.

    Whatever the user had put there is called through it, and is there again afterwards; what the user puts there
    meanwhile stays. A copy of the object, pickled or deep-copied, has what was there before.

    Args:
        owner: the object.
        name: of its method.
        instead: what to do; gets the method that was there, and then what it is called with.

    Example:
        >>> class Door:
        ...     def knock(self): return "knock"
        >>> door = Door()
        >>> louder = StandIn(door, "knock", lambda knock: knock().upper())
        >>> door.knock(), louder.leave(), door.knock()
        ('KNOCK', None, 'knock')
    """

    def __init__(self, owner: object, name: str, instead: Callable[..., Any]) -> None:
        self._owner = owner
        self._name = name
        self._instead: Callable[..., Any] | None = instead
        self._own = owner.__dict__.get(name)  # what the user put on the object itself
        self._method = getattr(owner, name)
        owner.__dict__[name] = self  # past __setattr__, which modules have their own of

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Does the new thing in the place of the old; or, after :meth:`leave`, what was there before."""
        if self._instead is None:
            return self._method(*args, **kwargs)
        return self._instead(self._method, *args, **kwargs)

    def leave(self) -> None:
        """Leaves the place as it was found."""
        self._instead = None
        if self._owner.__dict__.get(self._name) is not self:
            return
        if self._own is None:
            del self._owner.__dict__[self._name]
        else:
            self._owner.__dict__[self._name] = self._own

    def __reduce__(self) -> tuple[Any, ...]:
        if self._own is None:
            return _method_of, (self._owner, self._name)
        return _same, (self._own,)


def _method_of(owner: object, name: str) -> Any:
    return getattr(type(owner), name).__get__(owner)


def _same(thing: Any) -> Any:
    return thing
