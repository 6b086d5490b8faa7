"""What `algo="auto"` means: the sum that the cost model predicts to be quickest on the link between the ranks.

The link is the one that CUTPQ_LINK names on rank 0, else the one that rank 0's GPU mostly has, else (NumPy) l4-pcie.
"""

from __future__ import annotations

import os
from weakref import WeakKeyDictionary

import numpy as np

from ..array import Array
from ..codecs.codec import Codec
from ..cost.all_reduce import choose_all_reduce
from ..cost.links import LINKS, Link
from .communicator import Communicator

# For each communicator: its link, and the (codec, algorithm) pairs that rank 0 has printed.
_links: WeakKeyDictionary[Communicator, Link] = WeakKeyDictionary()
_printed: WeakKeyDictionary[Communicator, set[tuple[str, str]]] = WeakKeyDictionary()


def choose(x: Array, comm: Communicator, codec: Codec) -> str:
    """The algorithm for this sum, the same on all ranks; rank 0 prints it once for each codec and choice.

    The first call of a communicator is collective. Raises ValueError for a CUTPQ_LINK that is no known link.
    """
    algo, why = choose_all_reduce(x.size, x.dtype.itemsize, comm.size, codec, link(comm))
    printed = _printed.setdefault(comm, set())
    if comm.rank == 0 and (codec.name, algo) not in printed:
        printed.add((codec.name, algo))
        ranks = "1 rank" if comm.size == 1 else f"{comm.size} ranks"
        print(f"# cutpq: all_reduce of {x.nbytes} bytes on {ranks}, {codec.name}: {algo} ({why})", flush=True)
    return algo


def link(comm: Communicator) -> Link:
    """The link to decide for: rank 0's choice on all ranks. The first call is collective.

    Raises ValueError for a CUTPQ_LINK that is no known link.
    """
    if comm not in _links:
        _links[comm] = LINKS[comm.bcast(_link_name(comm) if comm.rank == 0 else None)]
    return _links[comm]


def _link_name(comm: Communicator) -> str:
    name = os.environ.get("CUTPQ_LINK")
    if name is not None and name not in LINKS:
        raise ValueError(f"CUTPQ_LINK={name!r} is not one of {', '.join(LINKS)}")
    if name is None and comm.xp is not np:
        gpu = comm.xp.cuda.runtime.getDeviceProperties(comm.device or 0)["name"].decode().lower()
        name = next((link.name for link in LINKS.values() if link.gpu in gpu), None)
    return name or "l4-pcie"
