"""The memory in which a tensor's elements lie, for sparse tensors too."""

from __future__ import annotations

import torch
from torch import Tensor

from .shards import local

_INDICES = {
    torch.sparse_coo: (Tensor._indices,),
    torch.sparse_csr: (Tensor.crow_indices, Tensor.col_indices),
    torch.sparse_bsr: (Tensor.crow_indices, Tensor.col_indices),
    torch.sparse_csc: (Tensor.ccol_indices, Tensor.row_indices),
    torch.sparse_bsc: (Tensor.ccol_indices, Tensor.row_indices),
}


def memory_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors that hold a tensor's elements: its indices and values if it is sparse.

    Of a sharded tensor they are this process's. A tensor whose memory torch does not show (MKL-DNN)
    has none.
    """
    part = local(tensor)
    if part.layout in _INDICES:
        values = part._values() if part.layout == torch.sparse_coo else part.values()
        return (*(indices(part) for indices in _INDICES[part.layout]), values)
    return (part,) if torch._C._has_storage(part) else ()
