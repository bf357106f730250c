"""Some test pictures with the maps of several entries, made once more for the eye.

Nothing of it is kept while an evaluation runs: a gallery shows a handful of pictures, and making
their maps again takes seconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float32

from models.scoped import evaluating
from pipelines import evaluation_files as files
from pipelines.assemble import TrainingData
from pipelines.evaluation_collect import Measured
from pipelines.evaluation_records import CasePicture, Entry, Evaluation
from pipelines.evaluation_samples import Samples, batch_at, regions_of, samples_of
from pipelines.evaluation_work import maps_of, shown_to, work_of

Maps = dict[str, tuple[Float32[np.ndarray, "_h _w"], bool]]
"""Sample -> its map, and whether it is signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cases:
    """Where maps can be made again.

    Attributes
    ----------
    units
        Everything that was measured; of each model the first seed is shown.
    """

    units: tuple[Measured, ...] = field(repr=False)
    data: TrainingData = field(repr=False)
    found: Evaluation = field(repr=False)

    def case_maps(
        self, sample_ids: Sequence[str], entries: Sequence[str]
    ) -> Mapping[str, CasePicture]:
        """Explain some test pictures again by some entries.

        Parameters
        ----------
        sample_ids
            Those that the test split does not hold are left out.
        entries
            Names in ``found.entries``, or of maps under attack, which are made as they are; the
            prediction is that of the first one's model.

        Raises
        ------
        PipelineError, ModelError
            A run was altered meanwhile.
        """
        samples = self._samples()
        places = {name: i for i, name in enumerate(samples.pictures.sample_ids)}
        indices = [places[name] for name in sample_ids if name in places]
        if not indices or not entries:
            return {}
        attacked = {} if self.found.robustness is None else self.found.robustness.entries
        known = {**attacked, **self.found.entries}
        chosen = [known[name] for name in entries]
        maps: dict[str, Maps] = {}
        for model in dict.fromkeys(entry.model for entry in chosen):
            own = [entry for entry in chosen if entry.model == model]
            maps |= self._maps_of(self._first(model), own, indices)
        return self._pictures(samples, indices, chosen, maps)

    def _samples(self) -> Samples:
        test = self.data.splits["test"]
        classes = self.data.summary.classes
        return samples_of(test, classes, perturbed=1).resized(self.found.picture_size)

    def _first(self, model: str) -> Measured:
        own = [measured for measured in self.units if measured.unit.model == model]
        return min(own, key=lambda measured: measured.unit.run.seed)

    def _maps_of(
        self, measured: Measured, entries: Sequence[Entry], indices: Sequence[int]
    ) -> dict[str, Maps]:
        """Return the maps of a model's entries, in the order of the samples."""
        methods = tuple(dict.fromkeys(entry.method for entry in entries))
        changes = {"fills": (), "methods": () if measured.unit.kind == "controls" else methods}
        settings = measured.unit.settings.model_copy(update=changes)
        work = work_of(replace(measured.unit, settings=settings), self.data)
        ids = work.samples.pictures.sample_ids
        found: dict[str, Maps] = {entry.name: {} for entry in entries}
        with evaluating(work.network):
            shown = shown_to(work, batch_at(work.samples, indices))
            for method in methods:
                levels = {maps.level: maps for maps in maps_of(work, shown, method)}
                for entry in entries:
                    if entry.method == method and entry.level in levels:
                        maps = levels[entry.level]
                        found[entry.name] = {
                            ids[i]: (values, maps.signed)
                            for i, values in zip(indices, maps.values.numpy(), strict=True)
                        }
        return found

    def _pictures(
        self,
        samples: Samples,
        indices: Sequence[int],
        entries: Sequence[Entry],
        maps: Mapping[str, Maps],
    ) -> dict[str, CasePicture]:
        regions = regions_of(samples, indices).numpy()
        ids = [samples.pictures.sample_ids[i] for i in indices]
        scores, predictions = self._scores(ids, entries)
        shown = {}
        for region, i, name in zip(regions, indices, ids, strict=True):
            own = {entry: found[name] for entry, found in maps.items() if name in found}
            shown[name] = CasePicture(
                image=np.ascontiguousarray(samples.pictures[i].numpy(), dtype=np.float32),
                mask=region if samples.has_regions and region.any() else None,
                label=int(samples.truths[i]),
                prediction=predictions[name],
                scores=scores[name],
                maps={entry: values.astype(np.float32) for entry, (values, _) in own.items()},
                signed={entry: signed for entry, (_, signed) in own.items()},
            )
        return shown

    def _scores(
        self, sample_ids: Sequence[str], entries: Sequence[Entry]
    ) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, int]]:
        """Read what the maps of some samples scored, and the first entry's prediction."""
        names = {(entry.model, entry.method, entry.level): entry.name for entry in entries}
        scores: dict[str, dict[str, dict[str, float]]] = {name: {} for name in sample_ids}
        for model in dict.fromkeys(entry.model for entry in entries):
            measured = self._first(model)
            measures = measured.facts["measures"]
            for row in files.rows_of(measured.unit.files.tables[files.SCORES]):
                entry = names.get((model, row["method"], row["level"]))
                if row["sample_id"] not in scores or entry is None:
                    continue
                values = {name: float(row[name]) for name in measures if row[name]}
                scores[row["sample_id"]][entry] = values
        return scores, self._predictions(entries[0].model)

    def _predictions(self, model: str) -> dict[str, int]:
        """Return the most probable class of every picture."""
        path = self._first(model).unit.files.tables[files.PREDICTIONS]
        shares = [f"probability_{name}" for name in self.found.classes]
        return {
            row["sample_id"]: int(np.argmax([float(row[name]) for name in shares]))
            for row in files.rows_of(path)
        }
