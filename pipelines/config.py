"""Every setting of the command line as a pydantic model, YAML in and out.

An unknown key is an error with a "did you mean". No value is a class or function name to import:
names are looked up in the registries.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.config_problems import problem, unknown_key
from pipelines.presets import expanded

# Not typing.Self: beartype, which checks the suite, knows it only on decorated classes.
Settings = TypeVar("Settings", bound="StrictConfig")


class ConfigError(Exception):
    """A setting is unknown or out of range."""


class StrictConfig(BaseModel):
    """Frozen settings that refuse what they do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    raise ValueError(unknown_key(str(key), list(cls.model_fields)))
        return values

    @classmethod
    def of(cls: type[Settings], values: dict[str, Any]) -> Settings:
        """Validate plain values.

        Raises
        ------
        ConfigError
            One line that names each wrong key, its value and what is allowed.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError("; ".join(problem(item) for item in error.errors())) from None

    @classmethod
    def from_yaml(cls: type[Settings], path: Path) -> Settings:
        """Read settings from a YAML file (plain values only)."""
        return cls.of(read_yaml(path))

    def to_yaml(self) -> str:
        """Return the settings as YAML that ``from_yaml`` reads back to an equal object."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read plain 'key: value' settings; no tag in the file can run code.

    Raises
    ------
    ConfigError
        The file cannot be read, or holds something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"cannot read the settings in {path.name}: {reason}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path.name} holds no 'key: value' settings")
    return values


class BuildConfig(StrictConfig):
    """What every data set shares: how patients are split and shards are cut."""

    seed: int = 0
    test_fraction: float = Field(default=0.2, ge=0, lt=1)
    """Share of the patients kept for testing (the paper's 80/20)."""
    validation_fraction: float = Field(default=0.15, ge=0, lt=1)
    """Share of the remaining patients on which the model is chosen."""
    samples_per_shard: int = Field(default=256, ge=1)


class FdgPetConfig(BuildConfig):
    """Whole-body FDG-PET in DICOM to equalised coronal projections."""

    suv_formula: Literal["suvbw", "paper"] = "suvbw"
    projector: Literal["vtk", "vtk-mapper"] = "vtk"
    keep_aspect: bool = False
    image_size: int = Field(default=512, ge=32, le=4096)
    fill_gaps: int = Field(default=0, ge=0)
    """Longest run of missing slices to fill by linear interpolation; 0 refuses gaps."""
    allow_intercept: bool = False
    prefer_route: str = ""
    """Route to believe when two routes to the scan time disagree by more than 5 %."""


class Brats18Config(BuildConfig):
    """Four MR modalities and a segmentation to hemispheres with and without tumour."""

    crop: Literal["midline", "tumour-edge"] = "midline"
    """``tumour-edge`` is the published cut: its place tells the label."""
    crossing: Literal["exclude", "label-both"] = "exclude"
    """What becomes of a slice with tumour on both sides of the midline."""
    min_tumour_area: int = Field(default=1000, ge=0)
    """Slices are used with more tumour pixels than this."""
    min_half_area: int = Field(default=500, ge=1)
    """Tumour pixels from which a half counts as tumour, for ``label-both``."""
    image_size: int = Field(default=240, ge=32, le=1024)
    """Rows and columns that every volume must have; none is resampled."""
    dtype: Literal["int16", "float32"] = "int16"


class ChestXray14Config(BuildConfig):
    """NIH ChestX-ray14 to square grey pictures with label sets and boxes."""

    image_size: int = Field(default=512, ge=32, le=4096)


class AugmentConfig(StrictConfig):
    """Random changes of a training picture; each is drawn anew for every picture.

    A left-right flip is anatomically a mirrored patient: harmless where the label has no side. An
    up-down flip is not offered by default: a head is never below the feet.
    """

    flip_left_right: float = Field(default=0.5, ge=0, le=1)
    """Probability."""
    flip_up_down: float = Field(default=0.0, ge=0, le=1)
    """Probability."""
    rotate_deg: float = Field(default=5.0, ge=0, le=180)
    """Largest angle either way."""
    translate: float = Field(default=0.04, ge=0, le=0.5)
    """Largest shift either way, as a share of the picture's side."""
    zoom: float = Field(default=1.0, gt=0)
    """Size that ``scale`` varies: 1.2 and 0.25 give 0.9 to 1.5 times the picture's own."""
    scale: float = Field(default=0.08, ge=0, lt=1)
    """Largest relative change of size either way."""
    shear_deg: float = Field(default=0.0, ge=0, lt=90)
    """Largest angle either way by which columns lean."""
    intensity: float = Field(default=0.15, ge=0, lt=1)
    """Largest relative change of contrast, and largest shift in standard deviations."""


class RobustConfig(StrictConfig):
    """Settings of a robust objective; what is not given takes the objective's own default.

    One that the objective has no use for is refused.
    """

    radius: float | None = Field(default=None, ge=0)
    """Largest change of a value (``l1``, ``fgsm``, ``pgd``), of a patch (``group``) or of a picture
    (``l2``, ``pgd-l2``, ``mask-guided``), in shares of the valid range before normalisation; in
    standard deviations of the brain where pictures are scores. 0 is standard training."""
    ridge: float | None = Field(default=None, ge=0)
    """Weight of the squares in the elastic net."""
    patch: int | None = Field(default=None, ge=1)
    """Side of a patch of ``group`` in pixels; a sixteenth of the picture's shorter side."""
    across_channels: bool | None = None
    """Whether a patch holds all channels; else each channel has patches of its own."""
    steps: int | None = Field(default=None, ge=1)
    """Gradients taken for one batch: 7."""
    step_size: float | None = Field(default=None, gt=0)
    """Of ``pgd``, in radii: 2.5 over the number of steps."""
    random_start: bool | None = None
    """Whether ``pgd`` begins anywhere in its set; it does."""
    weight: float | None = Field(default=None, ge=0, le=1)
    """Share of the loss on perturbed pictures, beside that on pictures as they are; or factor of
    the penalty: 1. 0 is standard training."""


class TrainConfig(StrictConfig):
    """How a classifier is trained."""

    preset: str = ""
    """A name in ``pipelines.presets.PRESETS``, whose settings hold where none is given here."""
    network: str = "resnet18"
    """A name in ``models.networks.NETWORKS``."""
    variant: str = "exact"
    """A name in ``models.attention.ATTENTIONS``."""
    network_options: dict[str, bool | int | float | str | tuple[int, ...]] = Field(
        default_factory=dict
    )
    """Further options of the network or the variant, by name."""
    image_size: int | None = Field(default=None, ge=16, le=4096)
    """Side of the square that pictures are resampled to (area average); None keeps their own."""
    epochs: int = Field(default=40, ge=1)
    batch_size: int = Field(default=16, ge=1)
    """Pictures behind one step of the optimiser."""
    accumulate: int = Field(default=1, ge=1)
    """Parts that a batch is computed in, one after the other. The gradient is that of the whole
    batch, for a share of its memory; batch normalisation, and the variant ``dual-published``, see
    one part at a time."""
    freeze_trunk: bool = False
    """Let only gates, witness and head learn: weights and batch-normalisation statistics of the
    trunk stay those that the run starts from."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """Adam with decoupled weight decay, Adam with the decay in the gradient, or gradient descent
    with Nesterov's momentum of 0.9."""
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """Cosine to zero, or a tenth after ``plateau_patience`` epochs without a lower validation
    loss, or none; each after a linear warm-up (``plateau``: without)."""
    warmup_epochs: float = Field(default=1.0, ge=0)
    plateau_patience: int = Field(default=5, ge=1)
    balance: Literal["sampler", "loss", "batch", "w-cel", "none"] = "sampler"
    """Draw every class equally often, or weight its loss by its rarity, or neither. A picture of
    several classes has none to be drawn by: there ``sampler`` draws as ``none`` does. Only there,
    ``batch`` weighs every present finding by the ratio of absent to present ones, whichever they
    are, among the pictures that are computed at once, and ``w-cel`` both by the inverse of their
    share (Wang et al., CVPR 2017): with ``accumulate`` they are counted in each part, in several
    processes in each one's share, and for validation in the training split."""
    alpha: float | None = Field(default=None, ge=0)
    """Weight of the consistency penalty; None takes the variant's own default."""
    objective: str = "standard"
    """A name in ``models.adversarial.OBJECTIVES``."""
    robust: RobustConfig = Field(default_factory=RobustConfig)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    gradient_clip: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient; 0 does not clip."""
    statistics_pictures: int = Field(default=512, ge=0)
    """Training pictures from which batch-normalisation statistics are measured before each
    validation; 0 keeps the running averages of training, which trail behind the weights."""
    patience: int = Field(default=0, ge=0)
    """Epochs without a better model after which training stops; 0 never stops early."""
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    feed: Literal["auto", "resident", "stream"] = "auto"
    """Hold the split in memory, or read every batch from the shards; the batches are the same."""
    workers: int = Field(default=4, ge=0, le=64)
    """Threads that read ahead of a streaming feed, and fill a resident one; with 0 the training
    reads by itself, when it needs a batch."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    labels: Literal["true", "permuted"] = "true"
    """``permuted``: every training and validation picture has the label of another patient's, drawn
    by the seed. Such a run explains nothing; others' maps are held against its maps."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """``auto``: bfloat16 autocast on CUDA, float32 on a CPU. ``float16``: for accelerators without
    bfloat16; the loss is scaled, and steps whose gradient overflows are left out."""
    compile: bool = False
    """Train through ``torch.compile``; the first step takes a minute or more."""
    deterministic: bool = False
    """Use only kernels that repeat to the bit, and refuse operations that have none. On a CPU
    training repeats without it; on CUDA it is slower."""
    checkpoint_iterations: int = Field(default=0, ge=0)
    """Also write ``last.ckpt`` every so many iterations; 0 writes it after each epoch only."""
    bootstrap: int = Field(default=1000, ge=0)
    """Resamples of the patients behind the intervals on the test scores."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("preset"):
            return expanded(str(values["preset"]), values)
        return values


class DataSummary(StrictConfig):
    """What a run knows about the data set it was trained on."""

    name: str
    task: Literal["multi-class", "multi-label"] = "multi-class"
    """One class per picture (softmax), or any number of them, told one by one (sigmoid)."""
    classes: tuple[str, ...]
    in_channels: int = Field(ge=1)
    picture_size: tuple[int, int]
    """Rows and columns in the shards, before ``TrainConfig.image_size``."""
    recipe: str = ""
    """Recipe that a new scan is read with; empty for shards of unknown origin."""
    recipe_config: dict[str, Any] = Field(default_factory=dict)
    manifest_sha256: str = ""
    rows: dict[str, int] = Field(default_factory=dict)
    """Labelled samples per split."""


class Normalisation(StrictConfig):
    """Mean and standard deviation of each channel over the training split, in stored units."""

    mean: tuple[float, ...]
    sd: tuple[float, ...]

    @property
    def scored(self) -> bool:
        """Whether it changes nothing: pictures are scores over the brain already."""
        return not any(self.mean) and set(self.sd) == {1.0}


class ValidRange(StrictConfig):
    """Least and largest value of each channel that a picture can have, in stored units."""

    low: tuple[float, ...]
    high: tuple[float, ...]


class Origin(StrictConfig):
    """What a run's first weights were; where their file lies is not kept."""

    kind: Literal["random", "file", "run"] = "random"
    sha256: str = ""
    """Of the file of weights."""
    matched: int = Field(default=0, ge=0)
    """Weights that were taken over as they are."""
    adapted: tuple[str, ...] = ()
    """Weights that were fitted to another number of channels or another grid."""
    fresh: tuple[str, ...] = ()
    """Weights that the file does not hold in their shape."""
    unused: int = Field(default=0, ge=0)
    """Weights of the file that the network has no place for."""
    remarks: tuple[str, ...] = ()
    """What a reader of the scores should know about it."""


class RunConfig(StrictConfig):
    """``config.yaml`` of a run: everything needed to rebuild the model and its preprocessing."""

    encoding_type: Literal["dualwitness-run"] = "dualwitness-run"
    encoding_version: Literal["1.1"] = "1.1"
    data: DataSummary
    normalisation: Normalisation
    train: TrainConfig
    origin: Origin = Field(default_factory=Origin)


class CompareConfig(StrictConfig):
    """A grid of trainings on one data set."""

    variants: tuple[str, ...] = Field(min_length=1)
    """Names in ``models.attention.ATTENTIONS``; ``all`` for those that the network can take."""
    seeds: int = Field(default=1, ge=1)
    """Runs of each variant, with the seeds from ``train.seed`` on."""
    against: str = ""
    """Variant that the others are compared with; where not named, ``baseline`` or the first."""
    jobs: int = Field(default=1, ge=1)
    """Runs at a time, each in a process with its share of the processors."""
    train: TrainConfig
    """Settings of every run but for ``variant`` and ``seed``."""


class GridConfig(StrictConfig):
    """``config.yaml`` of a comparison, written when its tables are."""

    encoding_type: Literal["dualwitness-comparison"] = "dualwitness-comparison"
    encoding_version: Literal["1.0"] = "1.0"
    data: DataSummary
    compare: CompareConfig


Fraction = Annotated[float, Field(gt=0, lt=1)]
Radius = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class RetrainConfig(StrictConfig):
    """Networks retrained on pictures from which maps have removed pixels."""

    protocol: Literal["roar", "diffroar"] = "roar"
    """``roar``: the pixels of greatest importance are removed. ``diffroar``: once only those are
    kept, once only those of least importance; the difference of the accuracies is measured."""
    fractions: tuple[Fraction, ...] = Field(default=(0.1, 0.3, 0.5, 0.7, 0.9), min_length=1)
    """Of the pixels that are removed (``roar``) or kept (``diffroar``), ascending."""
    seeds: int = Field(default=1, ge=1)
    """Networks per map, protocol and fraction, with the seeds from the run's own on."""
    jobs: int = Field(default=1, ge=1)
    """Fractions of a map at a time, each in a process with its share of the processors."""
    batch_size: int = Field(default=8, ge=1)
    """Pictures, or copies of them, that are explained at once: it bounds the memory."""

    @model_validator(mode="after")
    def _refuse_disorder(self) -> "RetrainConfig":
        if list(self.fractions) != sorted(set(self.fractions)):
            raise ValueError("fractions are to ascend, each one named once")
        return self


class RetrainingConfig(StrictConfig):
    """``config.yaml`` of a retraining, written when its tables are."""

    encoding_type: Literal["dualwitness-retraining"] = "dualwitness-retraining"
    encoding_version: Literal["1.0"] = "1.0"
    methods: tuple[str, ...]
    """As they were named."""
    retrain: RetrainConfig
    explained: RunConfig
    """The run whose maps removed the pixels."""


class ExplainConfig(StrictConfig):
    """Which samples are explained, and how."""

    methods: tuple[str, ...] = ()
    """Names in ``models.explainers.EXPLAINERS``, or ``all`` for those that the network can take.
    None named: attention, where the network has any, and gradcam."""
    verify: bool = False
    """Hold every method against random weights and random maps before it explains."""
    split: Literal["train", "validation", "test", "all"] = "test"
    target: Literal["prediction", "truth"] = "prediction"
    """The class a class-bound method explains. Where a picture may show several: the most probable
    finding, or the most probable of the true ones (of all, where it shows none)."""
    batch_size: int = Field(default=8, ge=1)
    """Pictures, or copies of them, that the network sees at once: it bounds the memory."""
    limit: int = Field(default=0, ge=0)
    """Explain only so many samples, in the order of the data set; 0 explains all."""
    gallery: int = Field(default=6, ge=0, le=60)
    """Cases in the gallery of cases and methods, of all classes in turn; 0 draws none."""
    overlays: bool = True
    """Draw pictures; without them there is no gallery either."""
    volumes: bool = True
    """Carry maps back into patient space where the shards hold the depth of the projection."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


Fill = Literal["zero", "mean", "blur", "noisy-linear"]
"""What stands for a removed pixel: black, the training pictures' mean, the picture blurred, or the
weighted mean of its neighbours with noise."""


class RobustnessConfig(StrictConfig):
    """What attacks predictions and explanations are held against.

    Of each run, the network answers at most
    ``samples * (radii of predictions) * (steps + 1) * (restarts + 1)`` times for the attacks on
    predictions. Those on explanations make each method's map some 25 times for every picture of
    ``explained`` and every radius.
    """

    enabled: bool = False
    """Whether any of it is measured."""
    samples: int = Field(default=40, ge=1)
    """Test pictures whose predictions are attacked, of all classes and patients in turn."""
    explained: int = Field(default=12, ge=1)
    """How many of them have their explanations attacked, and compared between seeds."""
    radii: tuple[Radius, ...] = (0.01, 0.03, 0.1)
    """Of attacks on explanations: root mean square of the change, in standard deviations of the
    training split. None leaves these attacks out."""
    linf_radii: tuple[Radius, ...] | None = None
    """Largest change of a value by an attack on predictions, in shares of the valid range before
    normalisation: 0.01, 0.02 and 0.05 where not given; in standard deviations of the brain where
    pictures are scores: 0.1, 0.2 and 0.5."""
    l2_radii: tuple[Radius, ...] | None = None
    """Euclidean length of the change of a picture, in the same units: 0.5 and 1, or 5 and 10."""
    methods: tuple[str, ...] = ("gradient", "smoothgrad", "moreaugrad", "gradcam", "attention")
    """Names in ``models.explainers.EXPLAINERS``; each is measured on the networks that it fits."""
    steps: int = Field(default=20, ge=1)
    """Of one attack on predictions: more than training takes, so that a network that only hides
    its gradients is found out."""
    restarts: int = Field(default=3, ge=1)
    """How often that attack begins, after the first time at a random place."""

    @model_validator(mode="after")
    def _refuse_disorder(self) -> "RobustnessConfig":
        for name in ("radii", "linf_radii", "l2_radii"):
            radii = getattr(self, name) or ()
            if list(radii) != sorted(set(radii)):
                raise ValueError(f"{name} are to ascend, each one named once")
        if len(set(self.methods)) != len(self.methods):
            raise ValueError("methods are to be named once each")
        return self


class EvaluateConfig(StrictConfig):
    """What is measured of maps, and how surely."""

    methods: tuple[str, ...] = ()
    """Names in ``models.explainers.EXPLAINERS`` for every run, or ``all`` for those that each
    network can take. None named: attention for runs with gates, usual methods for a baseline."""
    target: Literal["truth", "prediction"] = "truth"
    """The class a class-bound method explains. Of label sets: the first true finding that has a
    region, or the first true one, so that every model explains the same."""
    fills: tuple[Fill, ...] = ("zero", "blur")
    """What stands for removed pixels; none leaves the perturbation curves out."""
    perturbation_samples: int = Field(default=200, ge=0)
    """Test pictures that pixels are removed from, of all classes and patients in turn; 0: all."""
    controls: bool = True
    """Also measure maps that know nothing, and the true regions themselves."""
    verify: bool = True
    """Also compare maps with those of the same network with random weights."""
    robustness: RobustnessConfig = Field(default_factory=RobustnessConfig)
    against: str = ""
    """Name of the entry that all others are compared with; where not named,
    ``exact attention fine``, the first attention, or the first entry."""
    batch_size: int = Field(default=32, ge=1)
    """Pictures that a network sees at once when it is explained: it bounds the memory."""
    resamples: int = Field(default=1000, ge=0)
    """Of the patients, behind the intervals."""
    seed: int = Field(default=0, ge=0)
    """Of the resamples, of random maps and weights, and of the order among equal pixels."""
    synthetic: bool = False
    """Whether the scans are phantoms, which the report then says; it cannot be told from them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
