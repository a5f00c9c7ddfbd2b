"""Linear maps by few parameters, with the way back from what maps are worth to what the parameters are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stepwarp.config import LinearKind

#: From the derivatives of a loss with respect to matrices (n, D, D) and translations (n, D) to those with respect to
#: the parameters (n, P).
Back = Callable[[Tensor, Tensor], Tensor]


class LinearMaps:
    """Maps x -> A x + t of one kind, each around a start: A = start R for rigid ones, start R exp(s) for similarities,
    start (I + E) for affine ones.

    matrices, translations: the starts, (N, D, D) and (N, D) in double precision, on any device. Parameters (N, P) are
    the translation, then w and s, or E. R = (I - W / 2)^-1 (I + W / 2), W the skew matrix of w (Cayley): about |w|
    radians, and always a rotation."""

    def __init__(self, kind: LinearKind, matrices: Tensor, translations: Tensor) -> None:
        d = translations.shape[1]
        self.kind, self.matrices = kind, matrices
        self._one = torch.eye(d, dtype=matrices.dtype, device=matrices.device)
        #: What each entry of w or E adds to W or E, row by row.
        self._changes = torch.eye(d * d, dtype=matrices.dtype, device=matrices.device)
        if kind != "affine":
            row, column = torch.triu_indices(d, d, 1, device=matrices.device)
            self._changes = self._changes[row * d + column] - self._changes[column * d + row]
        free = len(self._changes) + (kind == "similarity")
        self.start = torch.cat([translations, translations.new_zeros(len(translations), free)], 1)

    def at(self, parameters: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Back]:
        """The matrices (n, D, D) and translations (n, D) of parameters (n, P) around the starts `which` (n,), and the
        way back."""
        d, start = len(self._one), self.matrices[which]
        translation, free = parameters[:, :d], parameters[:, d : d + len(self._changes)]
        change = (free @ self._changes).unflatten(1, (d, d))
        if self.kind == "affine":
            matrix = start @ (self._one + change)

            def back_of_strain(to_matrix: Tensor, to_translation: Tensor) -> Tensor:
                return torch.cat([to_translation, (start.mT @ to_matrix).flatten(1)], 1)

            return matrix, translation, back_of_strain
        inverse = torch.linalg.inv_ex(self._one - change / 2).inverse
        turn = inverse @ (self._one + change / 2)
        scaled = start if self.kind == "rigid" else start * parameters[:, -1].exp()[:, None, None]
        matrix = scaled @ turn

        def back(to_matrix: Tensor, to_translation: Tensor) -> Tensor:
            # Of (I - W / 2) R = I + W / 2: (I - W / 2) dR = dW / 2 (I + R).
            to_change = inverse.mT @ (scaled.mT @ to_matrix) @ (self._one + turn).mT / 2
            to_free = [to_translation, to_change.flatten(1) @ self._changes.T]
            if self.kind == "similarity":
                to_free.append((to_matrix * matrix).sum((1, 2))[:, None])
            return torch.cat(to_free, 1)

        return matrix, translation, back
