"""The similarities as settings of a training: which one, and what its own file says that it takes, with the limits."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_type_hints

from pydantic import Field, create_model

from stepwarp import catalogue
from stepwarp.config import SIMILARITIES
from stepwarp.losses.similarity import Similarity, find_similarity
from stepwarp.recipes import Strict


class SimilaritySettings(Strict):
    """kind: the name of a file of `losses.similarities`; besides, the parameters of its similarity."""

    kind: str

    def build(self) -> Similarity:
        return find_similarity(self.kind)(**self.model_dump(exclude={"kind"}))


def settings_of(name: str) -> type[SimilaritySettings]:
    """The settings of one similarity: a field for each parameter of its constructor."""
    similarity = find_similarity(name)
    parameters = inspect.signature(similarity).parameters.values()
    kinds = get_type_hints(similarity.__init__, include_extras=True) if parameters else {}
    fields: dict[str, Any] = {
        each.name: (kinds[each.name], similarity.in_training.get(each.name, each.default)) for each in parameters
    }
    fields["kind"] = (Literal[name], name)
    return create_model(similarity.__name__, __base__=SimilaritySettings, __doc__=similarity.__doc__, **fields)


_ALL = {name: settings_of(name) for name in catalogue.names(SIMILARITIES)}
# As classes of this module, so that what holds them can be pickled.
globals().update({each.__name__: each for each in _ALL.values()})
if TYPE_CHECKING:
    AnySimilarity = SimilaritySettings
else:
    AnySimilarity = Annotated[Union[tuple(_ALL.values())], Field(discriminator="kind")]  # noqa: UP007
DEFAULT = _ALL["lncc"](kind="lncc")
