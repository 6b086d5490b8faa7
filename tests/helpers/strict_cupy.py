"""A stand-in for CuPy on host memory that is as strict as CuPy: an operation that also gets a NumPy array is an error.

Numbers, NumPy's among them, may be mixed in, as with CuPy. It knows what NumPy knows: whether CuPy has a function, and
does the same, only a GPU tells.
"""

import sys
from types import ModuleType

import numpy as np

FROM_HOST = ("asarray", "array")


class ndarray(np.ndarray):
    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
        plain = [_host(a) for a in (*inputs, *out)]
        given = {"out": tuple(plain[len(inputs) :])} if out else {}
        result = getattr(ufunc, method)(*plain[: len(inputs)], **given, **options)
        return out[0] if out else _device(result)

    def __array_function__(self, function, types, args, kwargs):
        return _device(function(*map(_host, args), **{name: _host(a) for name, a in kwargs.items()}))

    def __getitem__(self, index):
        return _device(_host(self)[_host(index)])

    def __setitem__(self, index, value):
        _host(self)[_host(index)] = _host(value)

    def take(self, indices):
        return _device(_host(self).take(_host(indices)))

    def get(self):
        return self.view(np.ndarray).copy()


ndarray.__module__ = "cupy"


def _host(a):
    """What NumPy computes with; TypeError for its own arrays, which CuPy refuses."""
    if isinstance(a, ndarray):
        return a.view(np.ndarray)
    if isinstance(a, (tuple, list)):
        return type(a)(map(_host, a))
    if isinstance(a, np.ndarray) and a.ndim:
        raise TypeError(f"Unsupported type {type(a)}: NumPy's array of shape {a.shape} among CuPy's")
    return a


def _device(a):
    if isinstance(a, tuple):
        return tuple(map(_device, a))
    return np.asarray(a).view(ndarray) if isinstance(a, np.ndarray) or np.isscalar(a) else a


class Module(ModuleType):
    """The functions of numpy, on these arrays."""

    def __getattr__(self, name):
        thing = getattr(np, name)
        if isinstance(thing, type) or not callable(thing):
            return thing
        if name in FROM_HOST:
            return lambda *args, **kwargs: _device(thing(*args, **kwargs).copy())

        def call(*args, out=None, **kwargs):
            given = {key: _host(a) for key, a in kwargs.items()}
            if out is None:
                return _device(thing(*map(_host, args), **given))
            thing(*map(_host, args), out=_host(out), **given)
            return out

        return call


def install(monkeypatch):
    """import cupy gives this from now on."""
    cupy = Module("cupy")
    cupy.ndarray = ndarray
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy
