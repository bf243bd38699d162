"""Boundary points that are rows of a table: categories change as a whole, and some columns never."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_boundary._core.checks import check_count
from captum_boundary._core.mask import Mask
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search._categories import Categories, Groups, columns_of, group_columns
from captum_boundary.search._combinations import Combinations
from captum_boundary.search.boundary_search import BoundarySearch
from captum_boundary.search.closest import ClosestBoundary
from captum_boundary.search.foolbox import FoolboxBoundary
from captum_boundary.search.search_problem import Proposal, SearchProblem

__all__ = ["CategoricalBoundary"]


class CategoricalBoundary(BoundarySearch):
    r"""Boundary points of tables in which categories are whole: a row that could exist, nearest to the input.

    Columns of a one-hot group change from one category to another, never to something in between; fixed columns do not
    change at all; the other columns move as in any search. Combinations of categories are tried in the order of the
    number of groups that change, none first:

    - Where a combination alone changes the decision, its point is the row with these categories and all else as it was.
      Such a point lies beyond the boundary and mostly *not on it*: no row with these categories is nearer, and between
      categories there are no rows. Its ``margin`` says by how much the decision changed.
    - Where not, the other columns are searched with the categories fixed, from the row with these categories. Such
      a point lies just beyond the boundary (a fraction of the margin that the row with these categories
      has).

    Combinations that are farther from the input than the nearest point found, by their categories alone, are left out:
    none of their rows can be nearer. Of many others, those nearest to the boundary are searched, so that distances are
    upper bounds, as everywhere. All that is returned has been evaluated: ``found`` is False where no valid row with
    another decision was found.

    A change of category has a length: from one column to another, :math:`\sqrt 2` for ``norm=2``, 2 for ``norm=1``, and
    1 for ``math.inf``. Scale the other columns so that this is comparable.

    Args:

        search (BoundarySearch): Search for the columns without categories, such as ``NearestBoundary(model, norm=1)``.
            Its model, bounds, norm, ``max_distance``, ``strict`` and so on are those of this search. Bounds also forbid
            categories: an upper limit of 0 for a column that must not become 1.
        categories (Sequence or Mapping): Groups of columns, ``[[3, 4, 5], [6]]``, or by name ``{"color": [3, 4, 5],
            "sold": [6]}``. Of several columns one is 1 and the others are 0; one column alone is 0 or 1.
        fixed (Sequence[int], optional): Columns that must not change, in the place of the ``mask`` of other searches.
            Default: (), none.
        n_combinations (int, optional): Combinations for which the other columns are searched, for each number of
            groups that change. Each costs up to the budget of the search. Default: 4

    Raises:

        BoundaryTypeError: If ``search`` is no BoundarySearch, or one that compares or wraps others or runs Foolbox, and
            if ``categories`` and ``fixed`` are no columns.
        BoundaryValueError: For empty groups, and columns that are named twice.

    Examples::

        >>> import torch
        >>> from captum_boundary import NearestBoundary
        >>> from captum_boundary.search import CategoricalBoundary
        >>> model = torch.nn.Linear(4, 2, bias=False)
        >>> model.weight.data = torch.tensor([[0.1, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 4.0]])
        >>> search = CategoricalBoundary(NearestBoundary(model), categories=[[1, 2, 3]])
        >>> boundary = search.find(torch.tensor([[10.0, 0.0, 1.0, 0.0]]))
        >>> boundary.points
        tensor([[10.,  0.,  0.,  1.]])
        >>> boundary.adversarial, boundary.distance
        (tensor([1]), tensor([1.4142]))
    """

    _description = "Categorical boundary"

    def __init__(
        self, search: BoundarySearch, categories: Groups, *, fixed: Sequence[int] = (), n_combinations: int = 4
    ) -> None:
        if not isinstance(search, BoundarySearch) or isinstance(
            search, ClosestBoundary | FoolboxBoundary | CategoricalBoundary
        ):
            raise BoundaryTypeError(
                "search must be a search that keeps to limits of every column, such as NearestBoundary(model) or "
                f"PGDBoundary(model), but it is {type(search).__name__}."
            )
        check_count("n_combinations", n_combinations)
        super().__init__(
            search.forward_func,
            bounds=search.bounds,
            norm=search.norm,
            max_distance=search.max_distance,
            strict=search.strict,
            generator=search.generator,
            show_progress=search.show_progress,
            internal_batch_size=search.internal_batch_size,
        )
        groups = group_columns(categories)
        self.search = search
        self.categories = categories
        self.fixed = columns_of("fixed", fixed)
        self.n_combinations = n_combinations
        self._names, self._groups = tuple(groups), tuple(groups.values())
        both = sorted({column for group in self._groups for column in group} & set(self.fixed))
        if both:
            raise BoundaryValueError(
                f"fixed must hold no columns of categories, but it holds {both}. A group that must not change belongs "
                "to fixed alone."
            )

    def check(self, inputs: tuple[Tensor, ...], mask: Mask) -> None:
        r"""Refuse what is no table with these columns and categories, and masks."""
        if len(inputs) != 1 or inputs[0].ndim != 2:
            shapes = [tuple(tensor.shape) for tensor in inputs]
            raise BoundaryValueError(
                f"inputs must be one table of shape (N, D), whose columns have categories, but the shapes are "
                f"{shapes}. Give what must not change as additional_forward_args."
            )
        (table,) = inputs
        largest = max((column for group in (*self._groups, self.fixed) for column in group), default=-1)
        if largest >= table.shape[1]:
            raise BoundaryValueError(
                f"inputs must have a column {largest}, which categories or fixed name, but they have "
                f"{table.shape[1]} columns, counted from 0."
            )
        Categories.of(self._groups, table).check(table.detach(), self._names)
        if mask is not None:
            raise BoundaryValueError("CategoricalBoundary takes no mask: name the columns that are held in fixed.")

    def propose(self, problem: SearchProblem) -> Proposal:
        r"""The nearest valid rows beyond the boundary."""
        combinations = Combinations(problem, Categories.of(self._groups, problem.x), self.fixed, self.search)
        with torch.no_grad():
            best = combinations.nearest(self.n_combinations)
        # The line back to the input leads through points between categories.
        return Proposal(best.points, best.status, is_final=True)
