"""Every compact form: what it means, that it is written back as it was read, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest

from warmstart.config import values
from warmstart.config.values import Duration, parse_cadence


@pytest.mark.parametrize(
    ("written", "amount", "unit"),
    [
        ("12", 12, "epochs"),
        (12, 12, "epochs"),
        (1, 1, "epochs"),
        ("12epochs", 12, "epochs"),
        ("1epoch", 1, "epochs"),
        ("500steps", 500, "steps"),
        ("1 step", 1, "steps"),
        (" 1.5EPOCHS ", 1.5, "epochs"),
        ("90s", 90, "seconds"),
        ("10m", 600, "seconds"),
        ("2h", 7200, "seconds"),
        (".1", 0.1, "share"),
        (0.25, 0.25, "share"),
        (1e-5, 1e-5, "share"),
    ],
)
def test_durations(written: Any, amount: float, unit: str):
    assert values.parse_duration(written) == Duration(amount, unit)


@pytest.mark.parametrize("written", [None, "none", "NONE", 0, "0", 0.0, "0epochs", "0steps", "0s"])
def test_no_duration(written: Any):
    assert values.parse_duration(written) is None


@pytest.mark.parametrize(
    "duration",
    [
        Duration(1234567, "steps"),
        Duration(0.123456789012, "share"),
        Duration(1e-7, "share"),
        Duration(2.25, "epochs"),
        Duration(5400, "seconds"),
    ],
    ids=str,
)
def test_a_duration_is_read_back_to_the_digit(duration: Duration):
    assert values.parse_duration(str(duration)) == duration


@pytest.mark.parametrize("bad", ["", "x", "-3", "5 minutes", "3e", "1_000", "nan", "1epochsteps", [1], "٣"])
def test_what_is_no_duration(bad: Any):
    with pytest.raises(ValueError, match="is not a duration; write 12, 12epochs, 500steps, 90s, 10m or 2h"):
        values.parse_duration(bad)


@pytest.mark.parametrize("bad", ["9" * 40, "1e300epochs"])
def test_a_duration_has_an_end(bad: str):
    with pytest.raises(ValueError, match="is longer than any run"):
        values.parse_duration(bad)


def test_durations_in_steps():
    assert Duration(2, "epochs").steps(7) == 14
    assert Duration(0.5, "epochs").steps(7) == 4
    assert Duration(0.01, "epochs").steps(7) == 1  # never nothing
    assert Duration(9, "steps").steps(7) == 9
    with pytest.raises(AssertionError, match="no fixed number of steps"):
        Duration(10, "seconds").steps(7)


@pytest.mark.parametrize(
    ("written", "size"),
    [("64", (64, 64)), (64, (64, 64)), ("32x64", (32, 64)), ("32X64", (32, 64)), ([32, 64], (32, 64))],
)
def test_sizes(written: Any, size: tuple[int, int]):
    assert values.parse_size(written) == size


@pytest.mark.parametrize("bad", ["", "x", "32x", "axb", "1x2x3", 32.5, [1, 2, 3], {"a": 1}, "32x-"])
def test_what_is_no_size(bad: Any):
    with pytest.raises(ValueError, match=r"is not an image size; write 64 or 32x64 \(height x width\)"):
        values.parse_size(bad)


@pytest.mark.parametrize(("bad", "shown"), [("0", "0x0"), ("-8", "-8x-8"), ("32x9000", "32x9000")])
def test_sizes_out_of_range(bad: str, shown: str):
    with pytest.raises(ValueError, match=f"image size {shown} is outside 1..8192 pixels"):
        values.parse_size(bad)


def test_limits():
    assert values.parse_limit(".1") == 0.1
    assert values.parse_limit("500") == 500
    assert isinstance(values.parse_limit(500.0), int)
    assert values.parse_limit("none") is None


@pytest.mark.parametrize("bad", ["", "x", 0, -3, 1.5, "inf", math.inf, "nan", [1], {}])
def test_what_is_no_limit(bad: Any):
    with pytest.raises(
        ValueError, match=r"is not a limit; write a share such as \.1 or a number such as 500"
    ):
        values.parse_limit(bad)


@pytest.mark.parametrize(
    ("written", "number"),
    [("8GB", 2**33), ("8 gib", 2**33), ("512MB", 2**29), (".5GB", 2**29), ("1.5TB", 3 * 2**39)],
)
def test_amounts_of_memory(written: str, number: int):
    assert values.parse_bytes(written) == number


@pytest.mark.parametrize("bad", ["8", 8, "GB", "-3GB", "0GB", "1e3GB", "0.5MB", "8GBs", "8 apples", "", None])
def test_what_is_no_amount_of_memory(bad: Any):
    with pytest.raises(ValueError, match="is not an amount of memory"):
        values.parse_bytes(bad)


def test_lists_of_numbers():
    assert values.parse_floats(".49,.48,.45") == (0.49, 0.48, 0.45)
    assert values.parse_floats("0.1 0.2 0.3") == (0.1, 0.2, 0.3)
    assert values.parse_floats(0.5) == (0.5,)
    assert values.parse_floats([1, "2"]) == (1.0, 2.0)
    assert values.parse_floats("None") is None


@pytest.mark.parametrize("bad", ["", "a,b", "nan", [math.inf], [None], {"a": 1}, []])
def test_what_is_no_list_of_numbers(bad: Any):
    with pytest.raises(ValueError, match=r"is not a list of numbers; write \.49,\.48,\.45"):
        values.parse_floats(bad)


def test_names():
    assert values.parse_names("stem, blocks.*,") == ("stem", "blocks.*")
    assert values.parse_names(["stem", 3]) == ("stem", "3")
    assert values.parse_names("none") == values.parse_names(None) == values.parse_names([]) == ()
    assert values.parse_names(3) == ("3",)


@pytest.mark.parametrize("bad", [{"a": "b"}, [["a"]], 1.5])
def test_what_is_no_list_of_names(bad: Any):
    with pytest.raises(ValueError, match="is not a list of names"):
        values.parse_names(bad)


RATES = (("backbone", 1e-5), ("head", 1e-4))


@pytest.mark.parametrize(
    "written",
    [
        "backbone=1e-5,head=1e-4",
        {"backbone": "1e-5", "head": 1e-4},
        [["backbone", 1e-5], ("head", 1e-4)],
        [{"backbone": 1e-5}, {"head": 1e-4}],
        ["backbone = 1e-5", "head=1e-4"],
    ],
)
def test_rates(written: Any):
    assert values.parse_rates(written) == RATES


@pytest.mark.parametrize("bad", ["backbone", "=1", "a=", "a=1,", 3, [3], [[1, 2, 3]], [{"a": 1, "b": 2}]])
def test_what_is_no_rate(bad: Any):
    with pytest.raises(ValueError, match="is not of the form 'backbone=1e-5'"):
        values.parse_rates(bad)


@pytest.mark.parametrize("bad", ["head=x", "head=1=2"])
def test_rates_are_numbers(bad: str):
    with pytest.raises(ValueError, match="is not a number in head=RATE"):
        values.parse_rates(bad)


def test_workers():
    assert values.parse_workers("AUTO") == "auto"
    assert values.parse_workers("4") == values.parse_workers(4) == 4


@pytest.mark.parametrize("bad", ["", "x", -1, 1.5, [1], None, "99999"])
def test_what_is_no_number_of_workers(bad: Any):
    with pytest.raises(ValueError, match="is not a number of threads; write auto, 0 or 4"):
        values.parse_workers(bad)


@pytest.mark.parametrize(
    "written", ["1epochs", "40steps", "5epochs:20epochs,10epochs:50epochs,1epochs", "3steps:2epochs,1epochs"]
)
def test_a_cadence_and_back(written):
    assert str(parse_cadence(written)) == written
    assert parse_cadence(parse_cadence(written)) == parse_cadence(written.split(","))


def test_a_cadence_in_short():
    found = parse_cadence("5:20,10:50,1")
    assert [(str(interval), str(until)) for interval, until in found.parts] == [
        ("5epochs", "20epochs"),
        ("10epochs", "50epochs"),
        ("1epochs", "None"),
    ]
    assert parse_cadence(None) is parse_cadence("none") is parse_cadence(0) is None


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ("5epochs:20epochs", "every interval but the last needs a limit, and the last has none"),
        ("5epochs,1epochs", "every interval but the last needs a limit"),
        ("5epochs:0,1epochs", "'5epochs:0' is not an interval with a limit"),
        ("0:5epochs,1epochs", "'0:5epochs' is not an interval with a limit"),
        (
            "5epochs:20epochs,1epochs:20epochs,2epochs",
            "the limit 20epochs is not above the one before it, 20epochs",
        ),
        ("often", "'often' is not a duration"),
        ("5epochs:soon,1epochs", "'soon' is not a duration"),
    ],
)
def test_no_cadence(bad, told):
    with pytest.raises(ValueError, match=told):
        parse_cadence(bad)
