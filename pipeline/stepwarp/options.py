"""The options of a registration: what `stepwarp.register` takes besides images and masks, and what `stepwarp register`
and `stepwarp batch` have an option of the same name for, which is made from what stands here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError

from stepwarp import catalogue
from stepwarp.config import PRESETS, SIMILARITIES, LinearKind, Preset, SimilarityChoice, preset, preset_summary
from stepwarp.errors import InputError
from stepwarp.limits import as_bytes
from stepwarp.printable import counted
from stepwarp.recipes import Strict, first_problem, nearest


@dataclass(frozen=True)
class OptionHelp:
    """How the command line shows an option: its help, its value in capitals, and what holds where it is not given."""

    help: str
    metavar: str | None = None
    default: str | bool = True


def _texts(given: str | Iterable[str] | None) -> tuple[str, ...]:
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)


Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]


#: Starts that need no file. header and identity are one: world coordinates as both headers claim them.
StartWord = Literal["header", "centres", "identity"]
START_WORDS: tuple[str, ...] = get_args(StartWord)


def _several(given: Any) -> tuple[Any, ...]:
    """One or several, as a tuple; none for None."""
    return () if given is None else tuple(given) if isinstance(given, list | tuple) else (given,)


def _starts(given: Any) -> tuple[Any, ...]:
    """Paths as texts. What is neither stays what it is."""
    return tuple(str(each) if isinstance(each, Path) else each for each in _several(given))


def _words(given: Any) -> Any:
    """One word as it is, several as a tuple."""
    words = tuple(str(each) for each in _several(given))
    return words if len(words) > 1 else (words or ("auto",))[0]


_PRESETS = catalogue.listed({name: preset_summary(name) for name in PRESETS})
_SIMILARITIES = catalogue.listed(catalogue.summaries(SIMILARITIES))


class RegisterOptions(Strict):
    """How a pair is registered.

    Parameters
    ----------
    **options
        The keywords of `stepwarp.register` that are about neither the images nor their masks, with the same defaults;
        what each means says its help, and `stepwarp.register`. weights: a file, the name of shipped ones, or a
        `Registrar`. initial: texts, or a `Transform`, or several.

    Raises
    ------
    ValidationError
        Of pydantic, for a value that cannot be; `of` makes it an InputError.
    InputError
        For a preset that does not exist or cannot be changed so, and for options that contradict each other.
    """

    preset: Annotated[
        str | Path | Preset,
        OptionHelp(f"How far it goes: {_PRESETS}. Or a YAML file of one's own.", "NAME|FILE"),
    ] = "default"
    set: Annotated[
        Texts,
        OptionHelp(
            "Change a setting of the preset, at its place in the file: deformable.levels.0.iterations=50; repeatable.",
            "A.B=C",
            False,
        ),
    ] = ()
    affine_only: Annotated[bool, OptionHelp("Stop after the linear stage.")] = False
    transform: Annotated[
        Literal[LinearKind, "none"],
        OptionHelp(
            "What the linear stage may do: move; also scale; also stretch and shear. none: it is left out, the linear "
            "part is that of --initial, or what the headers say."
        ),
    ] = "affine"
    initial: Annotated[
        tuple[Any, ...],
        BeforeValidator(_starts),
        OptionHelp(
            "Where to begin, in place of the search among rotations: a transform file or a result's folder, from the "
            "fixed to the moving image; repeat it for a chain in the order of apply; '[PATH,1]' is the inverse. header "
            "(or identity): as the headers lie; centres: the centres of mass on each other.",
            "PATH|header|centres",
            "the search",
        ),
    ] = ()
    similarity: Annotated[
        SimilarityChoice | tuple[SimilarityChoice, ...],
        BeforeValidator(_words),
        OptionHelp(
            f"What makes two images alike: {_SIMILARITIES}. auto: the preset's, which is lncc, or, where it turns out "
            "that the images are of different contrasts, mi and then lncc of greys mapped onto one contrast. Of "
            "several pairs: once for all, or once for each in their order.",
            "|".join(get_args(SimilarityChoice)),
            "auto",
        ),
    ] = "auto"
    pair_weight: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...],
        BeforeValidator(_several),
        OptionHelp(
            "What each of several pairs of images counts, in their order: 2 as if it were given twice.", "N", "1 each"
        ),
    ] = ()
    device: Annotated[
        Literal["auto", "cpu", "cuda"], OptionHelp("Where to compute. auto: on a CUDA GPU if there is one.")
    ] = "auto"
    threads: Annotated[int | None, Field(ge=1), OptionHelp("CPU threads.", "N", "all that this process may use")] = None
    max_memory: Annotated[
        int | None,
        BeforeValidator(lambda given: None if given is None else as_bytes(given)),
        OptionHelp(
            "The most memory to take, of a GPU if that computes: 6G, 800M. Where a pair needs more, its finest levels "
            "are left out, and the verdict says so.",
            "SIZE",
            "what is free",
        ),
    ] = None
    time_budget: Annotated[
        float | None, OptionHelp("Of each pair: start no further iteration after this time.", "SECONDS", "none")
    ] = None
    weights: Annotated[
        Any,
        OptionHelp(
            "A network that goes on from the affine: a file of stepwarp train, of icon_registration or of uniGradICON, "
            "or the name of weights that come with stepwarp. The preset then refines what it found.",
            "FILE|NAME",
            "no network",
        ),
    ] = None
    steps: Annotated[
        int | None,
        Field(ge=1),
        OptionHelp("How often the network runs each step that it repeats.", "N", "as the weights say"),
    ] = None
    refine: Annotated[bool, OptionHelp("Go on with the preset from what the network found.")] = True
    escalate: Annotated[bool, OptionHelp("Where the verdict is fail, make a second, more thorough try.")] = True
    strip: Annotated[
        bool | None,
        OptionHelp(
            "Find the brain in both images, each of a head of any contrast, whole or stripped, and leave out what is "
            "around it: as masks; one that is given is kept where it leaves little but brain, else narrowed to that. "
            "The images are not cut. Includes --structures.",
            default="where one head is whole and the other one stripped",
        ),
    ] = None
    structures: Annotated[
        bool,
        OptionHelp(
            "Name the structures of both heads, and say in the verdict whether they lie on each other. Changes nothing "
            "else; takes a few seconds."
        ),
    ] = False
    trace: Annotated[bool, OptionHelp("Keep what every step found.")] = False
    trust: Annotated[
        Texts,
        OptionHelp(
            "Where the voxels lie, for files whose sform and qform contradict each other or are both unset; base: the "
            "voxel sizes alone. FILE=: of that file alone (path or name; may be repeated). Files whose header is in "
            "order are not touched.",
            "[FILE=]sform|qform|base",
            "refuse such files",
        ),
    ] = ()
    outside: Annotated[
        float | None,
        OptionHelp(
            "What images become where the moving image ends, such as -1000 for the air of a CT; nan for nothing. "
            "Label maps become 0.",
            "VALUE",
            "in apply, what the registration was given; the most frequent value on the faces of the image if it covers "
            "half of them, else 0",
        ),
    ] = None

    interpolation: Annotated[
        Literal["linear", "cubic"],
        OptionHelp(
            "How the moving image is read for Warped.nii.gz. cubic: the cubic B-spline through its voxels, BSpline of "
            "ANTs, which may overshoot. The search is linear all the same."
        ),
    ] = "linear"

    _changed: Preset = PrivateAttr()

    @classmethod
    def of(cls, **given: Any) -> RegisterOptions:
        """These options, each by its name. InputError for values that cannot be, or that contradict each other."""
        try:
            return cls(**given)
        except ValidationError as error:
            raise InputError(_problem(error)) from error

    def model_post_init(self, context: Any) -> None:
        self._changed = preset(self.preset, self.set)
        if self.time_budget is not None and not self.time_budget > 0:
            raise InputError(f"a time budget of {self.time_budget:g} s is no time at all; give the seconds there are")
        if self.weights is None and self.steps is not None:
            raise InputError("a number of steps was given, and no network to run them")
        if self.weights is None and not self.refine:
            raise InputError("without a network and without refinement nothing is left; that is affine_only")
        if self.transform == "none" and self.affine_only:
            raise InputError("without a linear stage and without a deformable one nothing is left to do")
        words = [each for each in self.initial if isinstance(each, str) and each in START_WORDS]
        if words and len(self.initial) > 1:
            raise InputError(f"'{words[0]}' is a whole start, and stands alone; leave out the others")
        if self.weights is not None and self.affine_only:
            raise InputError("affine_only ends before the network; leave out one of them")

    @property
    def changed_preset(self) -> Preset:
        """The preset with what `set` changes, as its file was when these options were made."""
        return self._changed

    @property
    def recipe(self) -> Preset:
        """The same with the similarity that was asked for of the first pair; auto leaves it to the search."""
        similarity = self.similarity_of(0)
        if similarity == "auto":
            return self._changed
        deformable = self._changed.deformable.model_copy(update={"similarity": similarity})
        return self._changed.model_copy(update={"deformable": deformable})

    def similarity_of(self, pair: int) -> SimilarityChoice:
        """What was asked for of a pair of images, counted from 0."""
        return self.similarity if isinstance(self.similarity, str) else self.similarity[pair]

    def weight_of(self, pair: int) -> float:
        """What it counts beside the others."""
        return self.pair_weight[pair] if self.pair_weight else 1.0

    def check_pairs(self, count: int) -> None:
        """InputError where what can be said of each pair of images is said of more or fewer than there are."""
        similarities = 1 if isinstance(self.similarity, str) else len(self.similarity)
        for name, given, allowed, how in (
            ("similarity", similarities, (1, count), "once for all, or once for each"),
            ("pair-weight", len(self.pair_weight), (0, count), "once for each"),
        ):
            if given not in allowed:
                raise InputError(
                    f"--{name} is given {counted(given, 'time')} for {counted(count, 'pair')} of images; give it {how} "
                    "in their order"
                )


def _problem(error: ValidationError) -> str:
    first, *others = error.errors()
    # Of what may be one word or several, it is the word that is wrong.
    same = [first, *(each for each in others if each["loc"][:1] == first["loc"][:1])]
    first = next((each for each in same if each["type"] == "literal_error" and isinstance(each["input"], str)), first)
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] != "literal_error":
        return first_problem(error)
    return f"{name} '{first['input']}' does not exist; {nearest(str(first['input']), choices(name))}"


def choices(name: str) -> tuple[str, ...]:
    """The words that an option takes; none for one that takes anything else."""
    return tuple(dict.fromkeys(_texts_in(RegisterOptions.model_fields[name].annotation)))


def _texts_in(kind: Any) -> Iterator[str]:
    for each in get_args(kind):
        if isinstance(each, str):
            yield each
        else:
            yield from _texts_in(each)
