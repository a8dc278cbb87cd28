"""Frontier: a sampler that knows what its candidates cost.

The costs of a net are exact before it is trained; only its scores are not. So every net within the budget is
enumerated, the scores alone are learnt (``surrogate``), and the net is proposed whose training is expected to gain
the most hypervolume, its costs taken as the numbers they are (``gain``). The largest gain is found among all nets, not
among a sample of them (up to ``candidates.WHOLE``): a bound that is cheap to compute rules most of them out. The first
proposals are spread over the costs. How much a net computes, how far it sees and what part of that is its encoder's
mostly say most of a score, so the first thing that is learnt is a plane over these three, or a line along the first.

A proposal is a function of the seed, the trial's number and the study's trials, so that a study rebuilt from them
goes on as if it had never stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from onenet_bench import costs
from onenet_bench.budget import Budget, excess
from onenet_bench.errors import RecipeError, SpaceError
from onenet_bench.pareto import Box, Objective
from onenet_bench.recipe import Recipe
from onenet_bench.record import Record, Status
from onenet_bench.screen import SCREENED
from onenet_bench.search.candidates import COMBINATIONS, REDRAWN, Candidates, Groups, Net, candidates, is_drawn
from onenet_bench.search.gain import cells, expected_gain
from onenet_bench.search.parameters import distributions
from onenet_bench.search.surrogate import Floats, Hyperparameters, Ints, Surrogate, fit, similarity
from onenet_bench.space import SearchSpace, is_ordered
from onenet_bench.spec import NetSpec

START = 4
"""Nets that are spread over the costs, before there is anything to learn from."""

SOME = 64
"""How many nets of a quantile are drawn, to choose from."""

PRICED = ("parameters", "macs", "activation_bytes", "peak_inference_mib")
FEATURED = (*PRICED, *costs.TRAITS)
"""The costs, and with the traits all that the surrogate sees beside the choices."""

MEANS = ((("macs", "extent", "encoder_macs"), 0.75), (("macs",), 0.25))
"""Those along whose logarithms a score may be expected to change, and how likely it is to before any was observed."""

PROPOSED = "onenet_bench:proposed"
"""A system attribute of a trial: its options. Optuna itself notes them only once they are asked for."""

EXAMINED = 1024
"""Candidates whose gains are bounded one by one at a time, those of the best groups first …"""

PREDICTED = 64
"""… and, of these, worked out."""

UNSURE = 1.5
"""A net is predicted to be over a ceiling on latency when it is predicted to be over so many times that."""

TRIED = 1e3
"""The loss that a candidate is bounded with once it was tried: far beyond what could gain anything."""

SLACK = 1e-5
"""By which bounds are widened, for the rounding of what they are compared with."""

_LOCK = Lock()


@dataclass(frozen=True, kw_only=True, slots=True)
class Past:
    """What became of the nets that were tried: those ``told`` and their objectives (``values``, row by row), those
    still ``pending``, and of all that ended, told or not, which ``failed`` (1, else 0)."""

    told: list[Net]
    values: Floats  # (n, objectives), in the study's order
    pending: list[Net]
    ended: list[Net]
    failed: Floats
    rows: set[int]  # of all candidates that were tried, whatever became of them


class FrontierSampler(BaseSampler):
    """Proposes nets of ``space`` for images of ``resolution`` pixels, to a study with these ``objectives``.

    Objectives that are known beforehand (``SCREENED`` costs) are never modelled; every other one has a surrogate of
    its own, the latency too. Nets over ``budget`` are not proposed; a budget on the memory of training needs the
    ``recipe``, and one on latency cannot be held before the net has run: nets that ``predict`` says to be well over it
    are not proposed. Nothing is proposed twice; nets that failed, as those with an infinite objective have, make those
    like them less likely to be proposed.
    ``earlier`` Records, of the same task and recipe (see ``warm``), count as trials that came before the study's.
    Raises SpaceError where the study asks for something else than the objectives, or once every net was proposed.
    """

    known: Sequence[str] = SCREENED
    """The costs that are taken as known."""

    featured: Sequence[str] = FEATURED

    canonical: bool = True
    """Whether combinations that make the same net are one candidate."""

    outliers: bool = True
    """Whether some scores are taken to be far too low, as those of a training that went wrong (see ``noise``)."""

    def __init__(
        self, space: SearchSpace, *, resolution: int, classes: int, in_channels: int = 3,
        objectives: Sequence[Objective] = (), budget: Sequence[Budget] | None = None, recipe: Recipe | None = None,
        seed: int = 0, predict: Callable[[NetSpec], float] | None = None, earlier: Sequence[Record] = (),
    ) -> None:  # fmt: skip
        self._space = space
        self._objectives = tuple(objectives) or space.objectives
        limits = tuple(space.budget if budget is None else budget)
        self._budget = tuple(b for b in limits if b.cost in SCREENED)
        self._on_training = tuple(b for b in limits if b.cost == "peak_training_mib")
        if self._on_training and recipe is None:
            raise SpaceError(f"the memory of training depends on the recipe, but {self._on_training[0]} came without")
        self._recipe = recipe
        self._earlier = tuple(earlier)
        self._places: dict[str, dict[Any, int]] = {  # of the values of Optuna's parameters
            name: {_key(value): at for at, value in enumerate(range(len(options)) if is_ordered(options) else options)}
            for name, options in space.choices.items()
        }
        self._on_latency = tuple(b for b in limits if b.cost == "latency_ms")
        self._predict = predict if self._on_latency else None
        self._question = (json.dumps(space.to_dict()), resolution, classes, in_channels)
        self._seed = seed
        self._others = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return distributions(self._space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """At random: a parameter that is none of the space's."""
        return self._others.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        wanted = ["maximize" if o.maximise else "minimize" for o in self._objectives]
        if [d.name.lower() for d in study.directions] != wanted:
            names = ", ".join(o.name for o in self._objectives)
            raise SpaceError(f"the study must have the directions of {names}, {wanted}; create it with them")
        with _LOCK:
            found, past, reason = self._present(study, trial.number)
            if reason:
                raise SpaceError(f"there must be a net left to propose, but {reason}; allow more, or end the study")
            row = self._propose(found, past, np.random.default_rng([self._seed, trial.number]))
            options = found.options[row].tolist()
            study._storage.set_trial_system_attr(trial._trial_id, PROPOSED, options)
        choices = found.encoding.choices(options)
        return {
            name: at if is_ordered(self._space.choices[name]) else choices[name]
            for (name, at) in zip(choices, options, strict=True)
        }

    def ended(self, study: Study, number: int) -> str:
        """Why there is nothing to propose for trial ``number``; empty where there is."""
        found = self._candidates(number)
        tried = len(self._earlier) + len(study.get_trials(deepcopy=False))
        if tried < len(found) and not (self._on_training or self._predict):
            return ""
        return self._present(study, number)[2]

    def _present(self, study: Study, number: int) -> tuple[Candidates, Past, str]:
        """What trial ``number`` chooses from, what came before it, and why there is nothing left; empty where there
        is."""
        for further in range(REDRAWN):
            found = self._candidates(number, further)
            past = self._past(study, found)
            if not (reason := self._spent(found, past)) or not found.is_part:
                break
        return found, past, reason

    def _spent(self, found: Candidates, past: Past) -> str:
        if any(row not in past.rows and self._fits(found, row) for row in range(len(found))):
            return ""
        within = f" within {' and '.join(map(str, limits))}" if (limits := self._limits) else ""
        if found.is_part:
            drawn = f"{COMBINATIONS:,} combinations" if is_drawn(self._question) else f"{len(found):,} nets"
            return f"in {REDRAWN} draws of {drawn} from {self._space.name} was no net{within} that had not been tried"
        if not past.rows:
            return f"{self._space.name} has no net{within}"
        return f"all nets of {self._space.name}{within} were tried"

    @property
    def _limits(self) -> tuple[Budget, ...]:
        return self._budget + self._on_training + (self._on_latency if self._predict else ())

    # What is known ---------------------------------------------------------------------------------------

    def _candidates(self, number: int, further: int = 0) -> Candidates:
        featured = tuple(dict.fromkeys([*self.featured, *(o.name for o in self._objectives if o.name in self.known)]))
        return candidates(
            self._question, self._budget, featured, canonical=self.canonical, seed=self._seed, number=number,
            further=further,
        )  # fmt: skip

    def _past(self, study: Study, found: Candidates) -> Past:
        trials: list[tuple[TrialState, list[float] | None, Any, Net]] = []  # with what their nets are known by
        before = [(*self._outcome(record), self._indices(record.choices)) for record in self._earlier]
        now = [(trial.state, trial.values, self._options(trial)) for trial in study.get_trials(deepcopy=False)]
        for state, values, options in [*before, *now]:
            if values is not None and not np.isfinite(values).all():  # as of a study whose bad nets score -inf
                state, values = TrialState.FAIL, None
            if options is not None and (net := found.net(options)) is not None:
                trials.append((state, values, options if net.row is None else net.row, net))
        of: dict[TrialState, set[Any]] = {state: set() for state in TrialState}
        for state, _, key, _ in trials:
            of[state].add(key)
        complete, pending, stopped = (of[s] for s in (TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED))
        failed = of[TrialState.FAIL] - complete - pending - stopped  # not those that were rejected as duplicates
        ended = [
            (net, values, key in failed)
            for state, values, key, net in trials
            if state is TrialState.COMPLETE or key in failed
        ]
        told = [(net, values) for net, values, _ in ended if values is not None]
        return Past(
            told=[net for net, _ in told],
            values=np.array([values for _, values in told]).reshape(len(told), len(self._objectives)),
            pending=list({key: net for *_, key, net in trials if key in pending - complete}.values()),
            ended=[net for net, *_ in ended],
            failed=np.array([float(failure) for *_, failure in ended]),
            rows={net.row for *_, net in trials if net.row is not None},
        )

    def _options(self, trial: FrozenTrial) -> tuple[int, ...] | None:
        """A trial's options; None where it has none yet, or those of another space."""
        try:
            return tuple([places[_key(trial.params[name])] for name, places in self._places.items()])
        except KeyError:
            proposed = trial.system_attrs.get(PROPOSED)
            return None if proposed is None else tuple(proposed)

    def _indices(self, choices: Mapping[str, Any]) -> tuple[int, ...] | None:
        """A Record's options; None where its choices are another space's."""
        try:
            return tuple(options.index(choices[name]) for name, options in self._space.choices.items())
        except (KeyError, ValueError):
            return None

    def _outcome(self, record: Record) -> tuple[TrialState, list[float] | None]:
        """What an earlier Record would be in the study. One that lacks an objective was tried, and says no more."""
        if record.status is Status.FAILED:
            return TrialState.FAIL, None
        known = {**record.scores, **(record.costs.to_dict() if record.costs else {})}
        values = [known[o.name] for o in self._objectives if known.get(o.name) is not None]
        if record.status is Status.COMPLETE and len(values) == len(self._objectives):
            return TrialState.COMPLETE, values
        return TrialState.PRUNED, None

    def _fits(self, found: Candidates, row: int) -> bool:
        """Whether a candidate fits the budgets that no screening knows."""
        if self._predict is not None:
            timed = (row, self._on_latency)
            if timed not in found.fitting:
                highest = UNSURE * min(budget.limit for budget in self._on_latency)
                found.fitting[timed] = self._predict(found.spec(row)) <= highest
            if not found.fitting[timed]:
                return False
        if not self._on_training or self._recipe is None:
            return True
        key = (row, self._recipe, self._on_training)
        if key not in found.fitting:
            spec = found.spec(row)
            try:
                over = excess(costs.count_training(spec, found.encoding.resolution, self._recipe), self._on_training)
            except RecipeError:
                over = "no training by this recipe"
            found.fitting[key] = not over
        return found.fitting[key]

    # What is proposed ------------------------------------------------------------------------------------

    def _propose(self, found: Candidates, past: Past, draws: np.random.Generator) -> int:
        """The row of the next candidate."""
        untried = np.ones(len(found), dtype=bool)
        untried[list(past.rows)] = False
        tried = past.ended + past.pending
        if len(tried) >= START and past.told:
            return self._best(found, past, untried)
        while not self._fits(found, row := self._spread(found, tried, np.flatnonzero(untried), draws)):
            untried[row] = False
        return row

    def _spread(self, found: Candidates, tried: Sequence[Net], rows: Ints, draws: np.random.Generator) -> int:
        """Of ``rows``: the cheapest, the most expensive, then one of each quantile of the costs, halving the gaps; of
        some that are drawn there, the one that is least like those tried."""
        names = [o.name for o in self._objectives if o.name in SCREENED] or PRICED
        price = np.sum([np.log(found.costs[name][rows]) for name in names], axis=0)
        rows = rows[np.argsort(price, kind="stable")]
        if len(tried) < 2:
            return int(rows[-len(tried)])
        half = max(1, len(rows) // (2 * START))
        middle = int(_halving(len(tried) - 1) * len(rows))
        near = rows[max(0, middle - half) : middle + half]
        near = draws.choice(near, min(SOME, (len(near) + 1) // 2), replace=False)
        lengths = found.encoding.lengths[found.encoding.groups]  # (d,)
        alike = similarity(found.features[near], np.stack([net.features for net in tried]), lengths)
        return int(near[alike.max(axis=1).argmin()])

    def _surrogates(self, found: Candidates, past: Past) -> list[Surrogate]:
        """A surrogate of each objective that is not known, of its losses between 0 and 1."""
        told, losses = self._told(past)
        pending = np.array([net.features for net in past.pending]).reshape(-1, told.shape[1])  # (p, d)
        return [
            Surrogate(h, told, found.encoding.groups, loss, pending, outliers=self.outliers)
            for h, loss in zip(self._hyperparameters(found, past), losses.T, strict=True)
        ]

    def _hyperparameters(self, found: Candidates, past: Past) -> list[Hyperparameters]:
        """Those of each surrogate."""
        told, losses = self._told(past)
        means = [
            ([found.encoding.column(name) for name in along if name in self.featured], prior) for along, prior in MEANS
        ]
        return [
            fit(told, found.encoding.groups, loss, expected=found.encoding.lengths, means=means) for loss in losses.T
        ]

    def _told(self, past: Past) -> tuple[Floats, Floats]:
        """Features (n, d) of the nets that were told, and their losses (n, u) in the objectives that are not known."""
        unknown = [i for i, o in enumerate(self._objectives) if o.name not in self.known]
        values = {self._objectives[i].name: past.values[:, i] for i in unknown}
        losses = Box.around([self._objectives[i] for i in unknown], values).place(values)
        return np.stack([net.features for net in past.told]), losses

    def _best(self, found: Candidates, past: Past, untried: npt.NDArray[np.bool_]) -> int:
        """The untried candidate of the largest expected gain."""
        unknown = [i for i, o in enumerate(self._objectives) if o.name not in self.known]
        columns = [found.encoding.column(o.name) for o in self._objectives if o.name in self.known]
        surrogates = self._surrogates(found, past)
        tried = past.told + past.pending
        seen = np.array([net.features for net in tried]).reshape(-1, found.features.shape[1])  # (n + p, d)
        points = np.column_stack([*(s.predict(seen)[0] for s in surrogates), seen[:, columns]])  # (n + p, m)
        reference = np.ones(points.shape[1])
        boxes = cells(points, reference)

        known = found.features[:, columns]  # (rows, m - u)
        glanced = [
            surrogate.glance(found.many[self._objectives[i].name])
            for i, surrogate in zip(unknown, surrogates, strict=True)
        ]
        least, widest = (np.stack([g[i] for g in glanced], axis=1).astype(np.float32) for i in range(2))  # (rows, u)
        least[~untried] = TRIED
        groups = found.grouped(tuple(columns))
        lowest = np.minimum.reduceat(least[groups.rows], groups.starts, axis=0)  # (groups, u)
        highest = np.maximum.reduceat(widest[groups.rows], groups.starts, axis=0)
        bound = expected_gain(boxes, lowest, highest, groups.least) * (1 + 1000 * SLACK)  # singles
        most, row = -1.0, -1
        for rows, highest_bound in _descending(bound, groups):
            if highest_bound <= most:
                break
            rows = rows[untried[rows]]
            # A gain falls with the mean and rises with the deviation.
            nearer = expected_gain(boxes, least[rows], widest[rows], known[rows]) * (1 + 1000 * SLACK)  # singles
            order = np.argsort(-nearer, kind="stable")
            for part in np.split(order, range(PREDICTED, len(order), PREDICTED)):
                part = part[nearer[part] > most]
                if not len(part):
                    break
                features = found.features[rows[part]].astype(np.float64)
                predicted = [s.predict(features) for s in surrogates]
                mean, deviation = (np.stack([p[i] for p in predicted], axis=1) for i in range(2))  # (part, u)
                gains = expected_gain(boxes, mean, deviation, features[:, columns])
                if past.failed.any():
                    gains *= self._succeeds(found, past, features)
                for i in np.argsort(-gains, kind="stable"):
                    if gains[i] <= most:
                        break
                    if self._fits(found, int(rows[part[i]])):
                        most, row = float(gains[i]), int(rows[part[i]])
        return row

    def _succeeds(self, found: Candidates, past: Past, features: Floats) -> Floats:
        """How likely nets (q, d) are to be trained to the end: a surrogate of failing, 0 or 1, stays below a half."""
        nets = np.stack([net.features for net in past.ended])
        surrogate = Surrogate(
            fit(nets, found.encoding.groups, past.failed), nets, found.encoding.groups, past.failed, nets[:0]
        )
        mean, deviation = surrogate.predict(features)
        return np.array([NormalDist().cdf(t) for t in (0.5 - mean) / deviation])


def _key(option: Any) -> Any:
    """By what an option is looked up: a list cannot be itself."""
    return repr(option) if isinstance(option, list) else option


def _descending(bound: Floats, groups: Groups) -> Iterator[tuple[Ints, float]]:
    """The rows of ``groups``, those of the highest ``bound`` first, in portions that grow, each with its bound."""
    sizes = np.diff(groups.starts, append=len(groups.rows))
    order, size, done = np.argsort(-bound, kind="stable"), EXAMINED, 0
    together = np.cumsum(sizes[order])
    while done < len(order):
        after = max(done + 1, int(np.searchsorted(together, size, "right")))
        portion = order[done:after]
        rows = [groups.rows[groups.starts[g] : groups.starts[g] + sizes[g]] for g in portion]
        yield np.sort(np.concatenate(rows)), float(bound[order[done]])
        done, size = after, int(together[after - 1])
        size += max(EXAMINED, size // 2)


def _halving(place: int) -> float:
    """1/2, 1/4, 3/4, 1/8, 5/8, … for 1, 2, 3, … (van der Corput)."""
    value, share = 0.0, 0.5
    while place:
        place, bit = divmod(place, 2)
        value += bit * share
        share /= 2
    return value
