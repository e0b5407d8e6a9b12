"""Facts and rules -> advice, and what is left to try where it does not fit into memory. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from warmstart.methods.advise_facts import Facts
from warmstart.methods.advise_rules import METHODS, RULES, SLOTS, Rule, rules_of

_FEWEST_AT_ONCE = 4  # images, before anything else is given up for memory (4.14)
_FACTORS = {"try.faster": 3.0, "try.slower": 1 / 3}  # of every rate
# Settings that are a choice of what trains: whoever gives one of them has chosen.
_METHOD_PATHS = ("adapt.freeze", "adapt.unfreeze", "adapt.layer_decay", "lora.rank", "lora.bits")


@dataclass(frozen=True)
class Decision:
    """A setting, its value, and the rule that says so."""

    path: str
    value: Any
    rule: Rule


@dataclass(frozen=True)
class Advice:
    """A method and settings; `taken` are the rules of the slot `memory` that it follows."""

    method: str
    decisions: tuple[Decision, ...]
    taken: tuple[Rule, ...] = ()

    @property
    def values(self) -> dict[str, Any]:
        return {decision.path: decision.value for decision in self.decisions}

    def value(self, path: str, default: Any) -> Any:
        return self.values.get(path, default)

    def changed(self, rule: Rule, values: Mapping[str, Any]) -> Advice:
        """With other values for some settings, by a rule of the slot `memory` or `try`."""
        kept = tuple(decision for decision in self.decisions if decision.path not in values)
        new = tuple(Decision(path, value, rule) for path, value in values.items())
        is_new = rule.slot == "memory" and rule not in self.taken
        return replace(self, decisions=kept + new, taken=(*self.taken, rule) if is_new else self.taken)


def decide(facts: Facts, given: Mapping[str, Any], step: Rule | None = None) -> Advice:
    """What the rules say of each slot; settings that were `given` (by path) stay as they are.

    `step` is the rule of the slot `memory` or `try` that sets another method than the rules of `method` do.
    """
    facts = replace(facts, method=_given_method(given))
    decisions: list[Decision] = []
    for slot in SLOTS:
        if slot == "method" and facts.method:
            continue
        rules = rules_of(slot) if step is None or slot != "method" else (step,)
        rule = next(rule for rule in rules if rule is step or rule.applies(facts))
        for path, said in rule.sets.items():
            value = said(facts) if callable(said) else said
            if path == "method":
                facts = replace(facts, method=value)
                decisions += [Decision(leaf, v, rule) for leaf, v in METHODS[value].items()]
            else:
                decisions.append(Decision(path, value, rule))
    kept = tuple(decision for decision in decisions if decision.path not in given)
    return Advice(facts.method, kept, (step,) if step is not None and step.slot == "memory" else ())


def options(facts: Facts, given: Mapping[str, Any]) -> Iterator[Iterator[Advice]]:
    """What to try one after the other until something fits: for each method its `forms`."""
    start = decide(facts, given)
    own = replace(facts, method=start.method)
    is_chosen = bool(_given_method(given))
    steps = [rule for rule in rules_of("memory") if "method" in rule.sets and rule.applies(own)]
    for advice in (start, *(decide(facts, given, step) for step in steps if not is_chosen)):
        yield from forms(advice, facts, given)


def forms(advice: Advice, facts: Facts, given: Mapping[str, Any]) -> Iterator[Iterator[Advice]]:
    """A method as it is, then with gradient checkpointing, each with batches from the largest to the smallest."""
    (checkpointing,) = (rule for rule in rules_of("memory") if rule.id == "memory.checkpointing")
    with_method = replace(facts, method=advice.method)
    yield _smaller_batches(advice, with_method, given)
    if checkpointing.applies(with_method) and not checkpointing.sets.keys() & given.keys():
        yield _smaller_batches(advice.changed(checkpointing, checkpointing.sets), with_method, given)


def others(advice: Advice, facts: Facts, given: Mapping[str, Any]) -> Iterator[tuple[Rule, Advice]]:
    """What else is worth a try beside `advice`, by the rules of the slot `try`, in their order."""
    own = replace(facts, method=advice.method)
    for rule in rules_of("try"):
        if not rule.applies(own):
            continue
        if "method" in rule.sets:
            if not _given_method(given):
                yield rule, decide(facts, given, rule)
        elif "optim.lr" in advice.values:
            yield rule, advice.changed(rule, _with_rates(advice, _FACTORS[rule.id]))


def _with_rates(advice: Advice, factor: float) -> dict[str, Any]:
    """The settings of rates, each times `factor`."""

    def times(rate: float) -> float:
        return float(f"{factor * rate:.2g}")

    found: dict[str, Any] = {"optim.lr": times(advice.values["optim.lr"])}
    if "adapt.lrs" in advice.values:
        pairs = (each.partition("=") for each in advice.values["adapt.lrs"].split(","))
        found["adapt.lrs"] = ",".join(f"{name}={times(float(rate)):g}" for name, _, rate in pairs)
    return found


def told(facts: Facts) -> tuple[Rule, ...]:
    """What to know, and what to change when it goes wrong."""
    return tuple(rule for rule in RULES if rule.slot in ("warn", "later") and rule.applies(facts))


def _smaller_batches(advice: Advice, facts: Facts, given: Collection[str]) -> Iterator[Advice]:
    """The advice, then with half as many images at once and twice the accumulation, again and again."""
    yield advice
    (rule,) = (rule for rule in rules_of("memory") if rule.id == "memory.batch")
    whole = advice.value("data.batch_size", 0)
    if "optim.accumulate" in given or not rule.applies(facts):
        return
    size = whole // 2
    while size >= _FEWEST_AT_ONCE:
        yield advice.changed(rule, {"data.batch_size": size, "optim.accumulate": whole // size})
        size //= 2


def _given_method(given: Mapping[str, Any]) -> str:
    """The method that settings stand for; empty where none of them is about what trains."""
    if given.get("lora.rank") is not None:
        return "qlora" if given.get("lora.bits") is not None else "lora"
    if given.get("adapt.layer_decay") is not None:
        return "layer-wise"
    if tuple(given.get("adapt.freeze") or ()) == ("backbone",):
        return "head"
    return "last-blocks" if any(given.get(path) is not None for path in _METHOD_PATHS) else ""
