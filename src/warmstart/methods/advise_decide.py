"""Facts and rules -> advice, and what is left to try where it does not fit into memory. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from warmstart.methods.advise_facts import Facts
from warmstart.methods.advise_rules import METHODS, RULES, SLOTS, Rule, rules_of

_FEWEST_AT_ONCE = 4  # images, before anything else is given up for memory (4.14)
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
        """With other values for some settings, by a rule of the slot `memory`."""
        kept = tuple(decision for decision in self.decisions if decision.path not in values)
        new = tuple(Decision(path, value, rule) for path, value in values.items())
        taken = self.taken if rule in self.taken else (*self.taken, rule)
        return replace(self, decisions=kept + new, taken=taken)


def decide(facts: Facts, given: Mapping[str, Any], step: Rule | None = None) -> Advice:
    """What the rules say of each slot; settings that were `given` (by path) stay as they are.

    `step` is the rule of the slot `memory` that sets another method than the rules of `method` do.
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
    return Advice(facts.method, kept, () if step is None else (step,))


def options(facts: Facts, given: Mapping[str, Any]) -> Iterator[Iterator[Advice]]:
    """What to try one after the other until something fits: for each method (as it is, then with gradient
    checkpointing) batches from the largest to the smallest."""
    (checkpointing,) = (rule for rule in rules_of("memory") if rule.id == "memory.checkpointing")
    start = decide(facts, given)
    own = replace(facts, method=start.method)
    is_chosen = bool(_given_method(given))
    steps = [rule for rule in rules_of("memory") if "method" in rule.sets and rule.applies(own)]
    for advice in (start, *(decide(facts, given, step) for step in steps if not is_chosen)):
        with_method = replace(facts, method=advice.method)
        yield _smaller_batches(advice, with_method, given)
        if checkpointing.applies(with_method) and not checkpointing.sets.keys() & given.keys():
            yield _smaller_batches(advice.changed(checkpointing, checkpointing.sets), with_method, given)


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
