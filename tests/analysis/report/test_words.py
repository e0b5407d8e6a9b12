"""One catalogue: both languages say the same, every word is used, every finding has its Chinese."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import warmstart.analysis.report.words as words_file
from warmstart.analysis.diagnose.findings import Finding
from warmstart.analysis.report.words import Words, catalogue

REPORT = Path(words_file.__file__).parent
RULES = sorted((REPORT.parent / "diagnose").glob("rules_*.py"))


@pytest.mark.parametrize("name", catalogue("words.toml"))
def test_both_languages_hold_the_same_numbers(name: str) -> None:
    english, chinese = catalogue("words.toml")[name]
    assert set(re.findall(r"{\w+}", english)) == set(re.findall(r"{\w+}", chinese))
    assert chinese.strip() and (english.strip() or name == "evidence_is_english")


SOURCES = "\n".join(p.read_text(encoding="utf-8") for p in (*REPORT.glob("*.py"), *REPORT.rglob("*.j2")))
# What files of a run say (metrics, splits, states, modes, averages), or what a name is put together of.
LOOKED_UP = re.findall(
    r"\w+",
    """
    finished running interrupted killed failed unknown train val test macro weighted accuracy loss f1
    balanced_accuracy top5 ece map miou fscore fscore_per_image fscore_per_batch f1_micro exact_match combined
    precision recall iou ap threshold pixels f1_positive precision_positive recall_positive
    accuracy_at_threshold f1_positive_at_threshold fisher_ratio fisher_document most_confident_mistake
    likely_mislabelled lr full frozen lora compress norms_train norms_held steps evaluation saving features
    accuracy_fixed accuracy_broken map_fixed map_broken miou_fixed miou_broken b_better b_worse b_cannot
    recipe_better recipe_worse recipe_cannot broken_samples fixed_samples mislabelled_note errors_note trial_finished
    trial_stopped trial_paused trial_running trial_failed trial_waiting
    """,
)


def test_no_word_is_dead() -> None:
    used = set(re.findall(r"['\"](\w+)['\"]", SOURCES)) | set(LOOKED_UP)
    assert set(catalogue("words.toml")) - used == set()


def test_every_word_that_is_asked_for_is_there() -> None:
    asked = set(re.findall(r"words\(\s*['\"](\w+)['\"]", SOURCES))
    assert len(asked) > 80 and asked <= set(catalogue("words.toml"))
    assert set(LOOKED_UP) <= set(catalogue("words.toml"))


def test_every_finding_has_chinese_words() -> None:
    known = set()
    for path in RULES:
        known |= set(re.findall(r"Finding\(\s*\"(\w+)\"", path.read_text(encoding="utf-8")))
    assert len(known) > 15 and known <= set(catalogue("findings.toml")), known - set(
        catalogue("findings.toml")
    )


def test_an_unknown_finding_keeps_its_own_words() -> None:
    assert Words("zh").finding("new_one", "title", "remedy") == ("title", "remedy")
    assert Words("zh").finding("overfitting", "title", "remedy")[0] == "过拟合"
    assert Words("en").finding("overfitting", "title", "remedy") == ("title", "remedy")


def test_a_finding_of_two_meanings_has_words_for_each() -> None:
    found = Finding("imbalance", 0.55, "val cannot show it", (), "", variant="unseen")
    assert found.kind == "imbalance_unseen" and Finding("imbalance", 0.9, "", (), "").kind == "imbalance"
    own, _ = Words("zh").finding(found.kind, found.title, found.remedy)
    assert own not in (found.title, Words("zh").finding("imbalance", "", "")[0])
    variants = {
        v for path in RULES for v in re.findall(r"variant=.*\"(\w+)\"", path.read_text(encoding="utf-8"))
    }
    told = {f"weights_never_loaded_{v}" for v in variants} | {f"imbalance_{v}" for v in variants}
    assert len(variants) == 2 and len(told & set(catalogue("findings.toml"))) == 2
